"""I-JEPA: hidden tokens of an observation are predicted from those that are visible."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.common.ranks import join_batches
from sb3_jepa.objectives.objective import Objective, check_momentum
from sb3_jepa.objectives.output import ObjectiveInput, ObjectiveOutput
from sb3_jepa.parts.losses import weighted_mean
from sb3_jepa.parts.masks import BlockMasks, Masks, SubsetMasks
from sb3_jepa.parts.places import take_places
from sb3_jepa.parts.predictors import MaskedPredictor
from sb3_jepa.parts.targets import MomentumEncoder, TargetEncoder, target_module
from sb3_jepa.parts.token_encoder import TokenEncoder
from sb3_jepa.parts.token_selection import TokenSelection
from sb3_jepa.parts.transformer import check_heads

LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
TARGETS = ("momentum", "frozen", "input")


class MaskedPrediction(Objective):
    r"""
    *I-JEPA* (Assran et al. 2023, arXiv 2301.08243): the context encoder sees some tokens of an observation. From its
    outputs, a narrow transformer predicts what a target encoder, which sees all tokens, makes of hidden ones,

    .. math:: L = \frac{1}{|M|} \sum_{M} \frac{1}{|M_i|} \sum_{j \in M_i}
              \ell\left(g_\phi(f_\theta(x_C), j), \mathrm{sg}(\bar f(x))_j\right)

    with the context :math:`C` and the masks :math:`M_i`, which have no token in common with it. It needs no actions and
    no next observations: for :func:`~sb3_jepa.pretrain`, or beside the policy::

        from sb3_jepa import MaskedPrediction
        from sb3_jepa.pretrain import pretrain

        pretrain("CartPole-v1", "encoder", MaskedPrediction, n_steps=10_000, n_updates=1_000)

    What differs from the paper: tokens may be numbers, categories and the inputs of a ``Dict`` too. Class tokens, which
    the paper has not, are always visible, and never a target. Inputs that are missing (NaN) are no targets either, and
    have no part in a prediction.

    :param encoder: The context encoder: a :class:`~sb3_jepa.JepaExtractor`, or any that is or has (as ``encoder``) a
        :class:`~sb3_jepa.parts.TokenEncoder`
    :param embed_dim: Width of the embedding
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
    :param kwargs: Those of :class:`Objective`: the momentum and the coefficients. ``momentum`` is that of the papers by
        default, ``(0.996, 1.0)``; in a few hundred updates the target encoder hardly moves with it, and ``(0.99, 1.0)``
        served better. Fixed targets have none.
    :raises ValueError: If the encoder has no tokens that can be hidden, the teacher does not fit it, or an argument is
        not among those accepted
    """

    # Whether the target encoder sees the context too; else it sees only the other tokens
    target_sees_context = True
    # Number of inputs of each token
    n_inputs: th.Tensor
    # Which inputs a token has, ``(tokens, inputs)``; None if all tokens have as many
    has_input: th.Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
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
        **kwargs: Any,
    ):
        target = checks.choice("target", target, TARGETS)
        prediction_loss = checks.choice("prediction_loss", prediction_loss, LOSSES)
        normalize_targets = checks.flag("normalize_targets", normalize_targets)
        target_transform_kwargs = checks.keyword_arguments("target_transform_kwargs", target_transform_kwargs)
        checks.optional(checks.subclass, "target_transform_class", target_transform_class, cls=nn.Module)
        checks.optional(checks.instance, "teacher", teacher, cls=nn.Module)
        kwargs = {"momentum": (0.996, 1.0), **kwargs}
        if target != "momentum":
            # Fixed targets have no momentum, but a bad value is still refused
            check_momentum(kwargs["momentum"])
            kwargs["momentum"] = 1.0
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
        tokens, target_encoder = _checked_token_encoder(encoder), None
        target_tokens = _checked_token_encoder(target_module(encoder if teacher is None else teacher))
        target_dim = target_tokens.embed_dim
        if teacher is not None:
            _check_teacher(target_tokens, tokens)
            target_encoder = TargetEncoder(teacher)
        elif target == "input":
            target_encoder = TargetEncoder(nn.Identity())
        super().__init__(encoder, embed_dim, target_encoder=target_encoder, **kwargs)
        self.target, self.prediction_loss, self.normalize_targets = target, prediction_loss, normalize_targets
        shape, has_patches = tokens.token_shape, is_of_patches(encoder)
        # Blocks lie within frames. If a frame is one patch, hide whole frames
        grid = shape[:1] if shape[1:] == (1, 1) else shape
        families = _mask_families(mask_kwargs)
        masks_class = BlockMasks if has_patches else SubsetMasks
        self.masks = [masks_class(grid, **family) for family in families]
        has_input = None
        widths = th.tensor(tokens.n_inputs)
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
            shape, tokens.embed_dim, target_dim, predictor_dim, predictor_depth, predictor_heads
        )

    def _make_target_transform(
        self, cls: type[nn.Module], grid: Sequence[int], dim: int, kwargs: Mapping[str, Any]
    ) -> None:
        try:
            self.target_transform = cls(grid, dim, **kwargs)
        except ValueError as error:
            # Say whose arguments they are: the encoder has some of the same names
            raise ValueError(f"`target_transform_kwargs`, {dict(kwargs)}: {error}") from error
        # Without a momentum copy its parameters would never learn, and the context may have another width
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
    def targets(self, batch: ObjectiveInput, visible: th.Tensor | None = None) -> th.Tensor:
        """
        :param batch: What it learns from
        :param visible: The tokens that the target encoder sees, ``(batch, tokens)``; None for all
        :return: What could be predicted, of all tokens, ``(batch, tokens, target_dim)``
        """
        if self.target == "input":
            return _token_encoder(batch.encoder).token_inputs(batch.observations)
        target_encoder = self.target_encoder
        class_tokens = _token_encoder(target_encoder.encoder).class_tokens
        targets = target_encoder.encode_tokens(batch.observations, visible)[:, class_tokens:]
        if self.normalize_targets:
            targets = F.layer_norm(targets, targets.shape[-1:])
        return targets if self.target_transform_copy is None else self.target_transform_copy(targets)

    def prediction_output(self, batch: ObjectiveInput) -> ObjectiveOutput:
        """
        :param batch: What it learns from: the observations
        :return: The prediction loss, and nothing else
        """
        encoder = _token_encoder(batch.encoder)
        targets = self.targets(batch) if self.target_sees_context else None
        missing = present = None
        if encoder.missing_as_nan:
            is_nan = encoder.token_inputs(batch.observations).isnan()
            # A token that holds several numbers is missing if all of them are
            missing = is_nan.sum(dim=2) >= self.n_inputs
            present = ~is_nan if self.target == "input" else ~missing[..., None]
        weights = self._weights(present)
        families = self._sample_masks(batch)
        visible = [masks.context for masks in families]
        contexts = batch.encoder.encode_views(batch.observations, visible)  # type: ignore[operator]
        losses = []
        for masks, context in zip(families, contexts, strict=True):
            if self.target_transform is not None:
                context = self.target_transform.transform_context(context, encoder.class_tokens)
            prediction = self._predict_hidden(context, masks, missing)
            of_masks = self.targets(batch, self._complement(masks.context)) if targets is None else targets
            losses.append(self._loss(prediction, of_masks, masks, weights))
        # Log the mean over the ranks. Each rank's gradient is still that of its own losses
        (joined,) = join_batches(th.stack(losses))
        return ObjectiveOutput(joined.mean(), {})

    def _sample_masks(self, batch: ObjectiveInput) -> list[Masks]:
        observations = batch.observations
        tensor = next(iter(observations.values())) if isinstance(observations, Mapping) else observations
        occupied = _token_encoder(batch.encoder).occupied(observations)
        candidates: dict[str, Any] = {} if occupied is None else dict(candidates=occupied.cpu())
        return [family.sample(len(tensor), **candidates).to(tensor.device) for family in self.masks]

    def _complement(self, context: th.Tensor) -> th.Tensor:
        """The tokens that are not in the context, ``(batch, tokens)``."""
        if context.dtype == th.bool:
            return ~context
        hidden = context.new_ones(len(context), len(self.n_inputs), dtype=th.bool)
        return hidden.scatter_(1, context, False)

    def _predict_hidden(self, context: th.Tensor, masks: Masks, missing: th.Tensor | None) -> th.Tensor:
        """What is predicted of the targets of masks, of all tokens if these are booleans."""
        if masks.context.dtype != th.bool:
            is_missing = None if missing is None else missing.gather(1, masks.context)
            return self.predictor(context, masks.context, masks.targets, is_missing)
        if self.target_transform is not None:
            raise ValueError(
                "`target_transform_class` needs an encoder all of whose tokens hold something, and this one has tokens "
                "that are not occupied"
            )
        everywhere = th.arange(masks.context.shape[1], device=context.device)
        not_seen = ~masks.context if missing is None else ~masks.context | missing
        return self.predictor(
            context, everywhere.expand_as(masks.context), everywhere.expand_as(masks.targets), not_seen, masks.targets
        )

    def _loss(self, prediction: th.Tensor, targets: th.Tensor, masks: Masks, weights: th.Tensor | None) -> th.Tensor:
        """The mean error of what is predicted of masks, ``(batch, n_masks, n_targets, target_dim)``."""
        if weights is not None:
            targets = targets.nan_to_num(0.0)
            weights = weights.expand(len(targets), -1, -1)
        if masks.targets.dtype == th.bool:
            counted = masks.targets[..., None].float()
            weight = counted if weights is None else counted * weights[:, None]
            target = targets[:, None].expand_as(prediction)
        else:
            hidden, shape = masks.targets.flatten(1), masks.targets.shape[1:]
            target = take_places(targets, hidden).unflatten(1, shape)
            if weights is None:
                return LOSSES[self.prediction_loss](prediction, target)
            weight = take_places(weights, hidden).unflatten(1, shape)
        return weighted_mean(LOSSES[self.prediction_loss](prediction, target, reduction="none"), weight)

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
    return len(_checked_token_encoder(encoder).token_shape) == 3


def _check_teacher(teacher: TokenEncoder, encoder: TokenEncoder) -> None:
    if teacher.token_shape != encoder.token_shape:
        raise ValueError(
            f"`teacher` must have the tokens of the encoder, {encoder.token_shape}, got {teacher.token_shape}"
        )
    # Images of another size may have as many tokens
    for own, its in zip(encoder.n_inputs, teacher.n_inputs, strict=True):
        if own != its:
            raise ValueError(
                "`teacher` must see the same observations as the encoder: a token is made of "
                f"{own} pixels, numbers or categories there, got {its}"
            )
    # A teacher that does not leave out missing tokens would make all tokens NaN as soon as one is
    if encoder.missing_as_nan and not teacher.missing_as_nan:
        raise ValueError(
            "`teacher` must have `missing_as_nan=True` if the encoder has, got one with `missing_as_nan=False`"
        )


def _token_encoder(encoder: nn.Module) -> TokenEncoder:
    """What makes the tokens of an encoder: itself, or its ``encoder``."""
    return encoder if hasattr(encoder, "token_shape") else getattr(encoder, "encoder", None)  # type: ignore[return-value]


def _checked_token_encoder(encoder: nn.Module) -> TokenEncoder:
    found = _token_encoder(encoder)
    if not isinstance(found, TokenEncoder):
        raise ValueError(
            "Masked prediction hides tokens of an encoder: it needs a sb3_jepa.JepaExtractor, got "
            f"{type(encoder).__name__}"
        )
    if any(isinstance(getattr(module, "selection", None), TokenSelection) for module in encoder.modules()):
        raise ValueError(
            "Masked prediction hides tokens of its own choice: the encoder must have no `token_budget` and no "
            "`drop_constant_tokens`"
        )
    if math.prod(found.token_shape) < 2:
        raise ValueError(
            f"Masked prediction needs an observation of at least 2 tokens, got {found.token_shape}: smaller "
            "patches, for example"
        )
    return found
