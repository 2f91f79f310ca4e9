"""Features extractors: the context encoder as Stable-Baselines3 knows it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.state_dicts import HOW_TO_FIT
from sb3_jepa.extractors.tokenization import (
    ImageOptions,
    default_numbers_per_token,
    has_only_standardized,
    make_tokenizer,
    resolve,
)
from sb3_jepa.parts import InputStandardization, StandardizedPatchTokenizer, TransformerEncoder, measuring
from sb3_jepa.parts.tokenizers import follow


class JepaExtractor(BaseFeaturesExtractor):
    """
    Transformer over the tokens of an observation; the class token's output is the features (the embedding). Usable as
    ``features_extractor_class`` of any Stable-Baselines3 algorithm, with any observation that these take:

    - Images, which are ``uint8`` from 0 to 255, and other boxes of three dimensions, which are grids: their patches are
      tokens, of all the stacked frames together. A grey image needs no channels, and a stack of Gymnasium's
      ``FrameStackObservation`` has one dimension more.
    - Vectors, and all else that is a ``Box`` or ``MultiBinary``: each number is a token, and of more than 32 numbers a
      token holds several neighbours
    - ``Discrete`` and ``MultiDiscrete``: each variable is a token, or likewise several
    - ``Dict`` of these: all tokens in one sequence, with a code for the key

    Its initialisation is its own: ``ortho_init``, which Stable-Baselines3 applies to a finished extractor, is ignored.
    ``TRPO``, which differentiates twice, needs :class:`~sb3_jepa.JepaCallback` with it.

    All that follows ``embed_dim`` is given by its name, in ``features_extractor_kwargs``: first what belongs to the
    transformer, then to images and grids (from ``patch_size``), vectors and categories (``numbers_per_token``), input
    statistics (``standardize_frames``), the readout (``class_tokens``), and speed (``autocast``).

    :param observation_space: Of the observations
    :param embed_dim: Width of the transformer, and of the features if they are one token or a mean
    :param depth: Number of transformer blocks
    :param num_heads: Attention heads per block, a divisor of ``embed_dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of ``embed_dim``
    :param final_norm: Whether a LayerNorm closes the transformer, as in the original ViT. It keeps the embedding
        variance of a healthy encoder between 0 and 1.
    :param frozen: Whether the parameters stay as they are, see :func:`~sb3_jepa.load_encoder`. The readout of
        ``output="per_token"`` belongs to the network that uses the tokens, and learns all the same.
    :param patch_size: Side of a square patch in pixels. Where it does not divide height or width, zeros are added. By
        default the largest power of two that leaves at least 16 patches: 16 for 64 x 96 and 84 x 84 pixels.
    :param frames: Number of frames stacked in the channels of an image, oldest first; 1 for a single picture. By
        default 6, 9, 12, ... channels are taken for RGB frames, and any other number for grey ones. (Under
        ``"changes"`` the three colours of a picture that are taken for three frames lose nothing.)
    :param frames_as: ``"tokens"``: each patch of each frame is a token, as in the paper. ``"channels"``: the patches of
        one place in all frames form one token; ``frames`` times fewer tokens, and faster by about as much.
        ``"changes"``: the same, of the newest frame and the changes from frame to frame, so that motion is seen sooner.
    :param channels_first: Whether images and grids have their channels first or last, for those where the smallest axis
        does not tell
    :param normalized_image: Whether to assume that the image is already normalized (this disables dtype and bounds
        checks), as in Stable-Baselines3's ``NatureCNN``
    :param drop_constant_tokens: Whether to leave out the patches of images that never changed while the input
        statistics were measured, such as the background. What a random policy has not shown by then is never seen.
    :param token_budget: How many tokens an image keeps at most: those whose patches differ most from what is already
        known, which is the frame before, or else the mean of the input statistics (without these, black), see
        :class:`~sb3_jepa.parts.token_selection.TokenSelection`. An image that has no more keeps all.
    :param numbers_per_token: How many numbers of vectors, or variables of ``MultiDiscrete``, a token holds. By default
        as many as leave about 32 tokens for all vectors of an observation together; with ``missing_as_nan``, one.
    :param missing_as_nan: Whether NaN in a vector means that this number is missing, as if a sensor had failed. Its
        token is left out; one that holds several numbers, if all of them are missing (the others count as the mean).
    :param standardize_frames: From how many observations to measure the statistics that standardise the input, before
        anything is learned; 0 for no standardisation. :class:`~sb3_jepa.JepaCallback` does so with the first rollout;
        without it, give them to :meth:`measure_inputs` yourself. Images are standardised by one deviation, vectors by
        one for each number, and grids by one for each channel; what is categorical is not. Those of vectors and grids
        then follow the data, see :meth:`follow_inputs`.
    :param class_tokens: Number of class tokens, which are *T-JEPA*'s [REG] tokens (arXiv 2410.05016): they say nothing
        of the observation, and are always visible
    :param output: What the features are: ``"class_token"``, the output of the first class token; ``"mean"`` of the
        observation's tokens; ``"per_token"``, a number for each token, with learned weights; ``"flat"``, all tokens,
        one after the other, ``embed_dim`` for each. The class tokens come first in the last two.
    :param autocast: Whether to compute the transformer in bfloat16, on devices that do. Parameters, standardised inputs
        and embedding stay float32. On a GPU it is faster; on a CPU it is seldom so.
    :param compile_kwargs: If given, the encoder is compiled, with these keyword arguments of ``torch.compile``; ``{}``
        for its defaults, ``dict(mode="reduce-overhead")`` for CUDA graphs. The first batches take up to minutes, and on
        a CPU a C++ compiler must be installed. PyTorch keeps eight graphs for all encoders of a process, and one model
        needs five to nine: call ``torch.compiler.reset()`` before the next one. ``TRPO`` and
        :func:`~sb3_jepa.export_policy` do without.
    :raises ValueError: If the observations are none of these, do not fit ``patch_size`` or ``frames``, do not tell
        where their channels are, or if an argument is not among those accepted
    """

    # Whether images may stay bytes, which it scales where it makes tokens of them
    takes_bytes = True

    def __init__(
        self,
        observation_space: spaces.Space,
        embed_dim: int = 64,
        *,
        # Transformer
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        final_norm: bool = True,
        frozen: bool = False,
        # Images and grids
        patch_size: int | None = None,
        frames: int | None = None,
        frames_as: str = "changes",
        channels_first: bool | None = None,
        normalized_image: bool = False,
        drop_constant_tokens: bool = False,
        token_budget: int | None = None,
        # Vectors and categories
        numbers_per_token: int | None = None,
        missing_as_nan: bool = False,
        # Input statistics
        standardize_frames: int = 1024,
        # Readout
        class_tokens: int = 1,
        output: str = "class_token",
        # Speed
        autocast: bool = False,
        compile_kwargs: dict[str, Any] | None = None,
    ):
        checks.instance("observation_space", observation_space, spaces.Space)
        embed_dim, frozen = checks.whole_number("embed_dim", embed_dim), checks.flag("frozen", frozen)
        images = ImageOptions(
            patch_size=checks.optional(checks.whole_number, "patch_size", patch_size),
            frames=checks.optional(checks.whole_number, "frames", frames),
            frames_as=checks.choice("frames_as", frames_as, ("changes", "channels", "tokens")),
            channels_first=checks.optional(checks.flag, "channels_first", channels_first),
            normalized_image=checks.flag("normalized_image", normalized_image),
            drop_constant_tokens=checks.flag("drop_constant_tokens", drop_constant_tokens),
            token_budget=checks.optional(checks.whole_number, "token_budget", token_budget),
        )
        missing_as_nan = checks.flag("missing_as_nan", missing_as_nan)
        numbers_per_token = checks.optional(checks.whole_number, "numbers_per_token", numbers_per_token)
        if numbers_per_token is None:
            numbers_per_token = default_numbers_per_token(observation_space, missing_as_nan)
        standardize_frames = checks.whole_number("standardize_frames", standardize_frames, 0)
        autocast = checks.flag("autocast", autocast)
        if compile_kwargs is not None:
            compile_kwargs = checks.keyword_arguments("compile_kwargs", compile_kwargs)
        if drop_constant_tokens and standardize_frames == 0:
            raise ValueError(
                "`drop_constant_tokens=True` needs the input statistics: `standardize_frames` must be positive, got 0"
            )
        super().__init__(observation_space, features_dim=embed_dim)
        self.standardize_frames, self.frames = standardize_frames, images.frames
        self.autocast, self.compile_kwargs = autocast, compile_kwargs
        self._warned_not_standardized = False
        tokenizer = make_tokenizer(observation_space, embed_dim, images, numbers_per_token, missing_as_nan)
        self._selections = [
            module.selection
            for module in tokenizer.modules()
            if isinstance(module, StandardizedPatchTokenizer) and module.selection is not None
        ]
        self.encoder = TransformerEncoder(
            tokenizer, embed_dim, depth, num_heads, mlp_ratio, final_norm, class_tokens, output, missing_as_nan
        )
        self._features_dim = self.encoder.output_dim
        self._kwargs = asdict(resolve(images, observation_space, tokenizer)) | dict(
            embed_dim=embed_dim,
            depth=int(depth),
            num_heads=int(num_heads),
            mlp_ratio=float(mlp_ratio),
            final_norm=bool(final_norm),
            numbers_per_token=numbers_per_token,
            missing_as_nan=missing_as_nan,
            standardize_frames=standardize_frames,
            class_tokens=int(class_tokens),
            output=str(output),
            autocast=autocast,
        )
        self._compile()
        if frozen:
            self.freeze()

    @property
    def resolved_kwargs(self) -> dict[str, Any]:
        """
        The keyword arguments that make the same extractor again, also where the defaults are others: ``patch_size``,
        ``frames`` and ``numbers_per_token`` as they came out. (Where the images of a ``Dict`` differ in one, it is as
        it was given.) They fit into JSON: ``compile_kwargs``, which may hold functions and changes nothing that is
        computed, is left out.
        """
        return dict(self._kwargs, frozen=self.is_frozen)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        own = self.state_dict()
        theirs = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        if any(theirs[name].shape != value.shape for name, value in own.items() if name in theirs):
            # The last argument is PyTorch's list of error messages
            args[-1].append(HOW_TO_FIT)

    def freeze(self, frozen: bool = True) -> None:
        """
        Let the parameters stay as they are from now on, except for the readout of ``output="per_token"``.

        :param frozen: False to let them learn again
        """
        self.requires_grad_(not frozen)
        if self.encoder.readout is not None:
            self.encoder.readout.requires_grad_(True)

    @property
    def is_frozen(self) -> bool:
        """Whether the parameters stay as they are."""
        return not self.encoder.class_token.requires_grad

    def _compile(self) -> None:
        if self.compile_kwargs is None:
            return
        try:
            self.encoder.compile(**self.compile_kwargs)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"`compile_kwargs` must be keyword arguments of torch.compile, got {self.compile_kwargs}: {error}"
            ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        # PyTorch does not copy or pickle what it compiled
        super().__setstate__(state)
        self._compile()

    @property
    def standardizations(self) -> list[InputStandardization]:
        """One for each image or vector."""
        return [module for module in self.modules() if isinstance(module, InputStandardization)]

    @property
    def n_inputs_to_measure(self) -> int:
        """Number of observations that the input statistics still lack."""
        n_seen = min((int(standardization.n_seen) for standardization in self.standardizations), default=None)
        # A frozen encoder keeps the statistics that it has
        if n_seen is None or (self.is_frozen and n_seen > 0):
            return 0
        return max(0, self.standardize_frames - n_seen)

    @th.no_grad()
    def measure_inputs(self, observations: PyTorchObs) -> None:
        """
        Merge observations into the statistics that standardise the input. Changes the function that is computed: only
        to be called before the training.

        :param observations: Preprocessed observations
        """
        with measuring(self.standardizations):
            self.encoder.tokenizer(observations)

    @th.no_grad()
    def follow_inputs(self, observations: PyTorchObs) -> None:
        """
        Let the statistics of vectors and grids follow the data, so that what moves later, or moves away, is neither
        clipped nor too small to be seen. The first linear layer makes up for it: what is computed stays the same, but
        for inputs that have moved so far that they are better learned anew, see
        :meth:`~sb3_jepa.parts.InputStandardization.follow`. Images, whose range is known, stay as they were measured.

        :param observations: Preprocessed observations
        """
        follow(self.encoder.tokenizer, observations)

    @property
    def follows_inputs(self) -> bool:
        """Whether there are statistics that follow the data."""
        is_measured = self.standardize_frames > 0 and self.n_inputs_to_measure == 0
        return is_measured and any(standardization.follows for standardization in self.standardizations)

    @property
    def sees_nothing_vary(self) -> bool:
        """Whether all observations that were measured are the same."""
        if self.standardize_frames == 0 or not has_only_standardized(self.encoder.tokenizer):
            return False
        return all(one.n_seen > 0 and not one.varies for one in self.standardizations)

    def train(self, mode: bool = True) -> "JepaExtractor":
        """
        Set the module in training mode, with a warning if its inputs should be standardised and were never measured.

        :param mode: whether to set training mode (``True``) or evaluation mode (``False``)
        """
        n_missing = self.n_inputs_to_measure if mode and not self._warned_not_standardized else 0
        if n_missing > 0 and n_missing == self.standardize_frames:
            self._warned_not_standardized = True
            warnings.warn(
                "JepaExtractor is about to learn from inputs that are not standardised, on which it may learn nothing. "
                "Pass `callback=sb3_jepa.JepaCallback()` to learn() (the algorithms of sb3_jepa add it by themselves), "
                "call `measure_inputs` with observations, or say `standardize_frames=0`.",
                UserWarning,
                stacklevel=2,
            )
        return super().train(mode)

    def apply(self, fn: Callable[[nn.Module], Any]) -> "JepaExtractor":
        """
        Apply a function to all submodules, except Stable-Baselines3's ``ortho_init``, which would replace the
        transformer's initialisation, or pretrained weights, silently.

        :param fn: Function to apply
        """
        if isinstance(fn, partial) and fn.func is BasePolicy.init_weights:
            return self
        return super().apply(fn)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Preprocessed observations, such as images ``(batch, frames * channels, height, width)``
        :return: Embedding ``(batch, features_dim)``
        """
        # An exported policy is neither rounded nor compiled
        if th.compiler.is_exporting():
            return self.encoder.forward(observations)
        if not self.autocast:
            return self._encode(observations)
        with th.autocast(self.encoder.class_token.device.type, th.bfloat16):
            return self._encode(observations).float()

    def encode_tokens(self, observations: PyTorchObs, places: th.Tensor | None = None) -> th.Tensor:
        """
        The outputs of all tokens, for objectives that predict some of them. Not compiled.

        :param observations: Preprocessed observations
        :param places: The tokens that are visible, ``(batch, n_visible)``; None for all
        :return: Of the class tokens, then of the visible ones, ``(batch, class_tokens + n_visible, embed_dim)``
        """
        (tokens,) = self.encode_views(observations, [places])
        return tokens

    def encode_views(self, observations: PyTorchObs, visible: Sequence[th.Tensor | None]) -> list[th.Tensor]:
        """
        Several views of the same observations, whose tokens are made once. Not compiled.

        :param observations: Preprocessed observations
        :param visible: The ``places`` of :meth:`encode_tokens` for each view
        :return: What :meth:`encode_tokens` returns, for each view
        """
        if not self.autocast:
            return self.encoder.encode_views(observations, visible)
        with th.autocast(self.encoder.class_token.device.type, th.bfloat16):
            return [tokens.float() for tokens in self.encoder.encode_views(observations, visible)]

    def token_inputs(self, observations: PyTorchObs) -> th.Tensor:
        """
        What the tokens are made of: standardised pixels or numbers, or a one-hot category.

        :param observations: Preprocessed observations
        :return: ``(batch, tokens, inputs)``
        """
        return self.encoder.token_inputs(observations)

    def _encode(self, observations: PyTorchObs) -> th.Tensor:
        if self.compile_kwargs is None:
            return self.encoder(observations)
        # A compiled function has no second derivative
        if self.encoder.is_differentiable_twice:
            return self.encoder.forward(observations)
        for selection in self._selections:
            selection.update()
        # Copy: with CUDA graphs, the next run overwrites this output
        return self.encoder(observations).clone()
