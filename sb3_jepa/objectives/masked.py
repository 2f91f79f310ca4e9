"""Masked prediction: hidden tokens of an observation are guessed from those that are visible."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.common.ranks import join_batches
from sb3_jepa.objectives.objective import Momentum, Objective, check_momentum
from sb3_jepa.objectives.output import ObjectiveInput
from sb3_jepa.parts.masks import BlockMasks, SubsetMasks
from sb3_jepa.parts.places import take_places
from sb3_jepa.parts.predictors import MaskedPredictor
from sb3_jepa.parts.standardized_patches import StandardizedPatchTokenizer
from sb3_jepa.parts.targets import MomentumEncoder, TargetEncoder
from sb3_jepa.parts.tokenizers import n_inputs
from sb3_jepa.parts.transformer import TransformerEncoder, check_heads

LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
TARGETS = ("momentum", "frozen", "input")


class MaskedPrediction(Objective):
    r"""
    The context encoder sees some tokens of an observation. From what it makes of them, a narrow transformer predicts
    what a target encoder, which sees all tokens, makes of some that were hidden,

    .. math:: L = \frac{1}{|M|} \sum_{M} \frac{1}{|M_i|} \sum_{j \in M_i}
              \ell\left(g_\phi(f_\theta(x_C), j), \mathrm{sg}(\bar f(x))_j\right)

    with the context :math:`C` and the masks :math:`M_i`, which have no token in common with it (*I-JEPA*, Assran et al.
    2023, arXiv 2301.08243). It needs neither actions nor what came next: for :func:`~sb3_jepa.pretrain`, or beside the
    policy. The encoder is any with the tokens of a :class:`~sb3_jepa.JepaExtractor`; all its class tokens are always
    visible, and never a target. Inputs that are missing (NaN) are no targets either, and have no part in a prediction.

    :param encoder: The context encoder
    :param embed_dim: Width of the embedding
    :param action_dim: Width of the encoded action, which is not used
    :param target: What is predicted: ``"momentum"``, the tokens of a momentum copy of the context encoder;
        ``"frozen"``, those of ``teacher``; ``"input"``, what the tokens are made of (pixels, numbers, categories)
    :param teacher: An encoder for ``target="frozen"``, see :func:`~sb3_jepa.read_encoder`. It may be of any size, but
        its tokens must be those of the context encoder. Among the ``objective_kwargs`` of a policy, of
        :class:`~sb3_jepa.JepaCallback` or of :func:`~sb3_jepa.pretrain`, it may be its path.
    :param mask_kwargs: Keyword arguments of the masks: :class:`~sb3_jepa.parts.BlockMasks` of the patches of an image,
        else :class:`~sb3_jepa.parts.SubsetMasks`. Several in a list are several predictions, whose losses are averaged.
    :param prediction_loss: ``"mse"``, ``"l1"`` or ``"smooth_l1"``, averaged over tokens and dimensions
    :param normalize_targets: Whether a LayerNorm without parameters is applied to the tokens of the target encoder
    :param target_transform_class: What makes targets of the tokens of the target encoder, such as
        :class:`~sb3_jepa.parts.NeighborAggregation`. It is given ``(frames, rows, columns)`` and the width of a token.
        Its ``transform_context(context, class_tokens)`` is applied in front of the predictor; targets come from a
        momentum copy.
    :param target_transform_kwargs: Further keyword arguments to pass to it
    :param predictor_dim: Width of the predictor
    :param predictor_depth: Number of its blocks
    :param predictor_heads: Attention heads in each, a divisor of ``predictor_dim``
    :param momentum: ``m`` of the target encoder in [0, 1]; or a pair, its values at the start and at the end of the
        training; or a schedule of the remaining progress (from 1 to 0). The default is the papers'; in a few hundred
        updates the target encoder hardly moves with it, and ``(0.99, 1.0)`` served better. Fixed targets have none.
    :param prediction_coef: Weight of the prediction loss; 0 switches the prediction off
    :param variance_coef: Weight of the variance loss of *JEPA for RL*, of the embedding
    :param deviation_coef: Weight of the hinge on the deviation of the embedding
    :param covariance_coef: Weight of the covariance of the embedding
    :raises ValueError: If the encoder has no tokens that can be hidden, the teacher does not fit it, or an argument is
        not among those accepted
    """

    # Of each token
    n_inputs: th.Tensor
    # Where not all tokens have as many inputs: those that there are
    has_input: th.Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int = 0,
        target: str = "momentum",
        teacher: nn.Module | None = None,
        mask_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        prediction_loss: str = "mse",
        normalize_targets: bool = False,
        target_transform_class: type[nn.Module] | None = None,
        target_transform_kwargs: Mapping[str, Any] | None = None,
        predictor_dim: int = 32,
        predictor_depth: int = 2,
        predictor_heads: int = 4,
        momentum: Momentum = (0.996, 1.0),
        prediction_coef: float = 1.0,
        variance_coef: float = 0.0,
        deviation_coef: float = 0.0,
        covariance_coef: float = 0.0,
    ):
        target = checks.choice("target", target, TARGETS)
        prediction_loss = checks.choice("prediction_loss", prediction_loss, LOSSES)
        normalize_targets = checks.flag("normalize_targets", normalize_targets)
        target_transform_kwargs = checks.keyword_arguments("target_transform_kwargs", target_transform_kwargs)
        checks.optional(checks.subclass, "target_transform_class", target_transform_class, cls=nn.Module)
        checks.optional(checks.instance, "teacher", teacher, cls=nn.Module)
        # Also where it has no effect
        check_momentum(momentum)
        predictor_dim = checks.whole_number("predictor_dim", predictor_dim)
        predictor_depth = checks.whole_number("predictor_depth", predictor_depth)
        predictor_heads = check_heads(predictor_heads, "predictor_dim", predictor_dim, "predictor_heads")
        if (teacher is not None) != (target == "frozen"):
            raise ValueError(
                '`target="frozen"` needs an encoder as `teacher`, and no other target takes one, got '
                f"target={target!r} and teacher={type(teacher).__name__}"
            )
        if target == "input" and (target_transform_class is not None or normalize_targets):
            raise ValueError(
                "`target_transform_class` and `normalize_targets` are for the tokens of an encoder, and "
                '`target="input"` has none'
            )
        if target_transform_class is None and target_transform_kwargs:
            raise ValueError(
                f"`target_transform_kwargs` need a `target_transform_class`, got {target_transform_kwargs} alone"
            )
        transformer = _transformer(encoder)
        target_encoder, target_dim = None, transformer.embed_dim
        if teacher is not None:
            _check_teacher(_transformer(teacher), transformer)
            target_encoder, target_dim = TargetEncoder(teacher), _transformer(teacher).embed_dim
        elif target == "input":
            target_encoder = TargetEncoder(nn.Identity())
        super().__init__(
            encoder,
            embed_dim,
            action_dim,
            momentum if target == "momentum" else 1.0,
            prediction_coef,
            variance_coef,
            deviation_coef,
            covariance_coef,
            target_encoder,
        )
        self.target, self.prediction_loss, self.normalize_targets = target, prediction_loss, normalize_targets
        shape, has_patches = transformer.token_shape, is_of_patches(encoder)
        # Blocks span frames. Where a frame is one patch, only frames can be hidden
        grid = shape[:1] if shape[1:] == (1, 1) else shape
        families = _mask_families(mask_kwargs)
        masks_class = BlockMasks if has_patches else SubsetMasks
        self.masks = [masks_class(grid, **kwargs) for kwargs in families]
        has_input = None
        widths = th.tensor(n_inputs(transformer.tokenizer))
        self.register_buffer("n_inputs", widths, persistent=False)
        if target == "input":
            target_dim = int(widths.max())
            if widths.min() < target_dim:
                has_input = th.arange(target_dim) < widths[:, None]
        self.register_buffer("has_input", has_input, persistent=False)
        self.target_transform: Any = None
        self.target_transform_copy: MomentumEncoder | None = None
        if target_transform_class is not None:
            if not has_patches:
                raise ValueError(f"`target_transform_class` needs the patches of an image, got tokens {shape}")
            self._make_target_transform(target_transform_class, shape, target_dim, target_transform_kwargs)
        self.predictor = MaskedPredictor(
            shape, transformer.embed_dim, target_dim, predictor_dim, predictor_depth, predictor_heads
        )

    def _make_target_transform(
        self, cls: type[nn.Module], grid: Sequence[int], dim: int, kwargs: Mapping[str, Any]
    ) -> None:
        try:
            self.target_transform = cls(grid, dim, **kwargs)
        except ValueError as error:
            # The encoder has arguments of the same names
            raise ValueError(f"`target_transform_kwargs`, {dict(kwargs)}: {error}") from error
        # Those would stay as they began, and the context may have another width
        if self.target != "momentum" and next(self.target_transform.parameters(), None) is not None:
            raise ValueError(
                "`target_transform_class` has parameters, which learn in front of the predictor and are copied for the "
                f'targets: it needs `target="momentum"`, got {self.target!r}'
            )
        self.target_transform_copy = MomentumEncoder(self.target_transform)

    def update_target(self, encoder: nn.Module) -> None:
        """
        Move the target encoder, and the copy of the target transform, one step of momentum. To be called after each
        optimiser step.

        :param encoder: The context encoder
        """
        super().update_target(encoder)
        if self.target_transform_copy is not None:
            self.target_transform_copy.update(self.target_transform, self.momentum)

    @th.no_grad()
    def targets(self, batch: ObjectiveInput) -> th.Tensor:
        """
        :param batch: What it learns from
        :return: What could be predicted, of all tokens, ``(batch, tokens, target_dim)``
        """
        if self.target == "input":
            return _transformer(batch.encoder).token_inputs(batch.observations)
        target_encoder = self.target_encoder
        class_tokens = _transformer(target_encoder.encoder).class_tokens
        targets = target_encoder.encode_tokens(batch.observations)[:, class_tokens:]
        if self.normalize_targets:
            targets = F.layer_norm(targets, targets.shape[-1:])
        return targets if self.target_transform_copy is None else self.target_transform_copy(targets)

    def predict(self, batch: ObjectiveInput) -> tuple[th.Tensor, None, None, dict[str, th.Tensor]]:
        """
        :param batch: What it learns from: the observations
        :return: The prediction loss, and nothing else
        """
        targets = self.targets(batch)
        transformer = _transformer(batch.encoder)
        missing = present = None
        if transformer.missing_as_nan:
            is_nan = transformer.token_inputs(batch.observations).isnan()
            # A token that holds several numbers is missing if all of them are
            missing = is_nan.sum(dim=2) >= self.n_inputs
            present = ~is_nan if self.target == "input" else ~missing[..., None]
        weights = self._weights(present)
        if weights is not None:
            targets = targets.nan_to_num(0.0)
        families = [family.sample(len(targets)).to(targets.device) for family in self.masks]
        visible = [masks.context for masks in families]
        contexts = batch.encoder.encode_views(batch.observations, visible)  # type: ignore[operator]
        losses = []
        for masks, context in zip(families, contexts, strict=True):
            if self.target_transform is not None:
                context = self.target_transform.transform_context(context, transformer.class_tokens)
            is_missing = None if missing is None else missing.gather(1, masks.context)
            prediction = self.predictor(context, masks.context, masks.targets, is_missing)
            hidden, shape = masks.targets.flatten(1), masks.targets.shape
            target = take_places(targets, hidden).unflatten(1, shape[1:])
            if weights is None:
                losses.append(LOSSES[self.prediction_loss](prediction, target))
                continue
            weight = take_places(weights.expand(len(targets), -1, -1), hidden).unflatten(1, shape[1:])
            weight = weight.expand_as(prediction)
            errors = LOSSES[self.prediction_loss](prediction, target, reduction="none")
            losses.append((errors * weight).sum() / weight.sum().clamp(min=1.0))
        # The mean over the ranks, for the logger. The gradient stays that of each rank's own.
        (joined,) = join_batches(th.stack(losses))
        return joined.mean(), None, None, {}

    def _weights(self, present: th.Tensor | None) -> th.Tensor | None:
        """0 for what is no target, ``(batch or 1, tokens, target_dim or 1)``; None if all is one."""
        weights = None if self.has_input is None else self.has_input[None].float()
        if present is not None:
            weights = present.float() if weights is None else weights * present
        return weights


def _mask_families(mask_kwargs: Any) -> list[dict[str, Any]]:
    """The keyword arguments of each family of masks, at least of one."""
    if not isinstance(mask_kwargs, (list, tuple)):
        return [checks.keyword_arguments("mask_kwargs", mask_kwargs)]
    families = [checks.keyword_arguments(f"mask_kwargs[{index}]", one) for index, one in enumerate(mask_kwargs)]
    return families or [{}]


def is_of_patches(encoder: nn.Module) -> bool:
    """
    :param encoder: With tokens
    :return: Whether its tokens are the patches of an image, and not those of vectors, categories or a ``Dict``
    :raises ValueError: If the encoder has no tokens that can be hidden
    """
    return len(_transformer(encoder).token_shape) == 3


def _check_teacher(teacher: TransformerEncoder, encoder: TransformerEncoder) -> None:
    if teacher.token_shape != encoder.token_shape:
        raise ValueError(
            f"`teacher` must have the tokens of the encoder, {encoder.token_shape}, got {teacher.token_shape}"
        )
    # Images of another size may have as many
    for own, its in zip(n_inputs(encoder.tokenizer), n_inputs(teacher.tokenizer), strict=True):
        if own != its:
            raise ValueError(
                "`teacher` must see the same observations as the encoder: a token is made of "
                f"{own} pixels, numbers or categories there, got {its}"
            )
    # All its tokens would be NaN as soon as one is
    if encoder.missing_as_nan and not teacher.missing_as_nan:
        raise ValueError(
            "`teacher` must have `missing_as_nan=True` if the encoder has, got one with `missing_as_nan=False`"
        )


def _transformer(encoder: nn.Module) -> TransformerEncoder:
    """The transformer of an extractor, or the encoder itself if it is one."""
    transformer = encoder if isinstance(encoder, TransformerEncoder) else getattr(encoder, "encoder", None)
    if not isinstance(transformer, TransformerEncoder):
        raise ValueError(
            "Masked prediction hides tokens of an encoder: it needs a sb3_jepa.JepaExtractor, got "
            f"{type(encoder).__name__}"
        )
    selections = [
        module.selection for module in transformer.modules() if isinstance(module, StandardizedPatchTokenizer)
    ]
    if any(selection is not None for selection in selections):
        raise ValueError(
            "Masked prediction hides tokens of its own choice: the encoder must have no `token_budget` and no "
            "`drop_constant_tokens`"
        )
    if math.prod(transformer.token_shape) < 2:
        raise ValueError(
            f"Masked prediction needs an observation of at least 2 tokens, got {transformer.token_shape}: smaller "
            "patches, for example"
        )
    return transformer
