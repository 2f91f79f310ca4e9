"""Features extractors: the context encoder as Stable-Baselines3 knows it."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import (
    get_flattened_obs_dim,
    is_image_space,
    is_image_space_channels_first,
    preprocess_obs,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_jepa.parts import (
    CategoryTokenizer,
    ColumnTokenizer,
    DictTokenizer,
    InputStandardization,
    PatchTokenizer,
    StandardizedPatchTokenizer,
    TransformerEncoder,
    measuring,
)

# Each is a token, and the attention looks at all pairs
MAX_COLUMNS = 4096


class JepaExtractor(BaseFeaturesExtractor):
    """
    Transformer over the tokens of an observation; the class token's output is the features (the embedding). Usable as
    ``features_extractor_class`` of any Stable-Baselines3 algorithm, with any observation that these take:

    - Images: the patches of the stacked frames are tokens
    - Vectors, and all else that is a ``Box`` or ``MultiBinary``: each number is a token
    - ``Discrete`` and ``MultiDiscrete``: each variable is a token
    - ``Dict`` of these: all tokens in one sequence, with a code for the key

    Its initialisation is its own: ``ortho_init``, which Stable-Baselines3 applies to a finished extractor, is ignored.
    ``TRPO``, which differentiates twice, needs :class:`~sb3_jepa.JepaCallback` with it.

    :param observation_space: Images have their channels first, ``(frames * channels, height, width)``, or are a stack
        of Gymnasium's ``FrameStackObservation``, ``(frames, height, width, channels)``
    :param embed_dim: Width of the transformer, and of the features if they are one token or a mean
    :param patch_size: Side of a square patch in pixels. Where it does not divide height or width, zeros are added.
    :param depth: Number of transformer blocks
    :param num_heads: Attention heads per block, a divisor of ``embed_dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of ``embed_dim``
    :param frames: Number of frames stacked in the channels of an image, oldest first; 1 for a single picture. By
        default 6, 9, 12, ... channels are taken for RGB frames, and any other number for grey ones. (Under
        ``"changes"`` the three colours of a picture that are taken for three frames lose nothing.)
    :param frames_as: ``"tokens"``: each patch of each frame is a token, as in the paper. ``"channels"``: the patches of
        one place in all frames form one token; ``frames`` times fewer tokens, and faster by about as much.
        ``"changes"``: the same, of the newest frame and the changes from frame to frame, so that motion is seen sooner.
    :param final_norm: Whether a LayerNorm closes the transformer, as in the original ViT. It keeps the embedding
        variance of a healthy encoder between 0 and 1.
    :param standardize_frames: From how many observations to measure the statistics that standardise the input, before
        anything is learned; 0 for no standardisation. :class:`~sb3_jepa.JepaCallback` takes them from what the
        algorithm is about to learn from; without it, give them to :meth:`measure_inputs` yourself. Images are
        standardised by one deviation, and vectors by one for each number; what is categorical is not.
    :param frozen: Whether the parameters stay as they are, see :func:`~sb3_jepa.load_encoder`. The readout of
        ``output="per_token"`` belongs to who uses the tokens, and learns all the same.
    :param normalized_image: Whether to assume that the image is already normalized (this disables dtype and bounds
        checks), as in Stable-Baselines3's ``NatureCNN``
    :param drop_constant_tokens: Whether to leave out the patches of images that never changed while the input
        statistics were measured, such as the background. What a random policy has not shown by then is never seen.
    :param token_budget: How many tokens an image keeps at most: those whose patches differ most from what is already
        known, which is the frame before, or else the mean of the input statistics (without these, black), see
        :class:`~sb3_jepa.parts.token_selection.TokenSelection`. An image that has no more keeps all.
    :param autocast: Whether to compute the transformer in bfloat16, on devices that do. Parameters, standardised inputs
        and embedding stay float32. On a GPU it is faster; on a CPU it is seldom so.
    :param compile_kwargs: If given, the encoder is compiled, with these keyword arguments of ``torch.compile``; ``{}``
        for its defaults, ``dict(mode="reduce-overhead")`` for CUDA graphs. The first batches take up to minutes, and on
        a CPU a C++ compiler must be installed. PyTorch keeps eight graphs for all encoders of a process, and one model
        needs five to nine: call ``torch.compiler.reset()`` before the next one. ``TRPO`` and
        :func:`~sb3_jepa.export_policy` do without.
    :param class_tokens: Number of class tokens, which are *T-JEPA*'s [REG] tokens (arXiv 2410.05016): they say nothing
        of the observation, and are always visible
    :param output: What the features are: ``"class_token"``, the output of the first class token; ``"mean"`` of the
        observation's tokens; ``"per_token"``, a number for each token, with learned weights; ``"flat"``, all tokens,
        one after the other, ``embed_dim`` for each. The class tokens come first in the last two.
    :param missing_as_nan: Whether NaN in a vector means that this number is missing, as if a sensor had failed. Its
        token is left out.
    :raises ValueError: If the observations are none of these, do not fit ``patch_size`` or ``frames``, or if an
        argument is not among those accepted
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        embed_dim: int = 64,
        patch_size: int = 16,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        frames: int | None = None,
        frames_as: str = "changes",
        final_norm: bool = True,
        standardize_frames: int = 1024,
        frozen: bool = False,
        normalized_image: bool = False,
        drop_constant_tokens: bool = False,
        token_budget: int | None = None,
        autocast: bool = False,
        compile_kwargs: dict[str, Any] | None = None,
        class_tokens: int = 1,
        output: str = "class_token",
        missing_as_nan: bool = False,
    ):
        if frames_as not in ("changes", "channels", "tokens"):
            raise ValueError(f'`frames_as` must be "changes", "channels" or "tokens", got {frames_as!r}')
        if standardize_frames < 0:
            raise ValueError(f"`standardize_frames` must not be negative, got {standardize_frames}")
        if drop_constant_tokens and standardize_frames == 0:
            raise ValueError(
                "`drop_constant_tokens=True` needs the input statistics: `standardize_frames` must be positive, got 0"
            )
        super().__init__(observation_space, features_dim=embed_dim)
        self.standardize_frames = standardize_frames
        self.frames = frames
        self._warned_not_standardized = False
        make = partial(
            make_tokenizer,
            embed_dim=embed_dim,
            patch_size=patch_size,
            frames=frames,
            frames_as=frames_as,
            normalized_image=normalized_image,
            drop_constant_tokens=drop_constant_tokens,
            token_budget=token_budget,
        )
        tokenizer = (
            DictTokenizer({key: make(space) for key, space in observation_space.items()}, embed_dim)
            if isinstance(observation_space, spaces.Dict)
            else make(observation_space)
        )
        self._selections = [
            module.selection
            for module in tokenizer.modules()
            if isinstance(module, StandardizedPatchTokenizer) and module.selection is not None
        ]
        if (drop_constant_tokens or token_budget is not None) and not self._selections:
            raise ValueError(
                "`drop_constant_tokens` and `token_budget` leave out patches of images, and there is no image in "
                f"{observation_space}"
            )
        if missing_as_nan and not any(isinstance(module, ColumnTokenizer) for module in tokenizer.modules()):
            raise ValueError(
                f"`missing_as_nan` leaves out numbers of vectors, and there is no vector in {observation_space}"
            )
        self.encoder = TransformerEncoder(
            tokenizer, embed_dim, depth, num_heads, mlp_ratio, final_norm, class_tokens, output, missing_as_nan
        )
        self._features_dim = self.encoder.output_dim
        self.autocast = autocast
        self.compile_kwargs = compile_kwargs
        self._compile()
        if frozen:
            self.freeze()

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
        # Copies, such as a target encoder, and unpickled extractors: PyTorch leaves out what it compiled
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
        # What is frozen stays as it is, once it was measured
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
        transformer's initialisation, or pretrained weights, without a word.

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
        # What is exported is neither rounded nor compiled
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
        # With CUDA graphs, the next run writes over what this one returns
        return self.encoder(observations).clone()


def preprocess(observations: Any, space: spaces.Space, normalize_images: bool, encoders: Iterable[nn.Module]) -> Any:
    """
    Stable-Baselines3's preprocessing, but that images stay bytes if all encoders take these: a
    :class:`JepaExtractor` scales them where it makes tokens of them, and with less effort.

    :param observations: Tensors ``(batch, *observation shape)``, or a dictionary of such
    :param space: Observation space of the policy
    :param normalize_images: Whether the policy normalizes images
    :param encoders: Of the policy
    :return: What the encoders take
    """
    if not (normalize_images and all(isinstance(encoder, JepaExtractor) for encoder in encoders)):
        return preprocess_obs(observations, space, normalize_images=normalize_images)
    if isinstance(space, spaces.Dict):
        return {key: preprocess(observations[key], one, normalize_images, ()) for key, one in space.items()}
    if is_image_space(space) and observations.dtype == th.uint8:
        return observations
    return preprocess_obs(observations, space, normalize_images=normalize_images)


def takes_nan(policy: nn.Module) -> bool:
    """
    :param policy: Of any algorithm
    :return: Whether NaN in an observation says that a number is missing
    """
    extractors = [module for module in policy.modules() if isinstance(module, JepaExtractor)]
    return bool(extractors) and all(extractor.encoder.missing_as_nan for extractor in extractors)


class GymnasiumFrames(nn.Module):
    """Frames of Gymnasium's ``FrameStackObservation`` as channels, which Stable-Baselines3 takes for no image."""

    def forward(self, frames: th.Tensor) -> th.Tensor:
        """
        :param frames: ``(batch, frames, height, width, channels)``, 0 to 255
        :return: ``(batch, frames * channels, height, width)``, 0 to 1
        """
        return frames.permute(0, 1, 4, 2, 3).flatten(1, 2) / 255.0


def make_tokenizer(
    space: spaces.Space,
    embed_dim: int,
    patch_size: int,
    frames: int | None,
    frames_as: str,
    normalized_image: bool,
    drop_constant_tokens: bool = False,
    token_budget: int | None = None,
) -> nn.Module:
    """
    What turns preprocessed observations of a space into tokens; its inputs are standardised, where that makes sense.

    :param space: Of one observation, or of one key of a ``Dict``
    :param embed_dim: Width of a token
    :param patch_size: Side of a square patch in pixels
    :param frames: Number of stacked frames, or None to guess
    :param frames_as: ``"changes"``, ``"channels"`` or ``"tokens"``
    :param normalized_image: Whether to assume that images are already normalized
    :param drop_constant_tokens: Whether to leave out the patches of images that are constant
    :param token_budget: How many tokens an image keeps at most; None for all
    :return: Module that returns ``(batch, tokens, embed_dim)``
    :raises ValueError: If there is none for this space
    """

    def make_patches(n_channels: int, height: int, width: int, n_frames: int) -> nn.Module:
        n_tokenized = n_frames if frames_as == "tokens" else 1
        return StandardizedPatchTokenizer(
            InputStandardization((n_channels, height, width), changes_of=n_frames if frames_as == "changes" else 1),
            PatchTokenizer(n_tokenized, n_channels // n_tokenized, height, width, patch_size, embed_dim),
            drop_constant_tokens,
            token_budget,
        )

    if isinstance(space, spaces.Discrete):
        return CategoryTokenizer([int(space.n)], embed_dim)
    if isinstance(space, spaces.MultiDiscrete):
        return CategoryTokenizer(space.nvec.flatten().tolist(), embed_dim)
    if isinstance(space, spaces.MultiBinary):
        return ColumnTokenizer(get_flattened_obs_dim(space), embed_dim)
    if not isinstance(space, spaces.Box):
        raise ValueError(
            "JepaExtractor takes Box, Discrete, MultiDiscrete and MultiBinary observations and a Dict of these, "
            f"got {space}"
        )
    if is_gymnasium_stack(space):
        n_frames, height, width, n_channels = space.shape
        return nn.Sequential(GymnasiumFrames(), make_patches(n_frames * n_channels, height, width, n_frames))
    if len(space.shape) != 3:
        n_columns = get_flattened_obs_dim(space)
        if n_columns > MAX_COLUMNS:
            raise ValueError(
                f"JepaExtractor makes a token of each number of a vector, at most {MAX_COLUMNS}, got {n_columns} in "
                f"{space}. An image has three dimensions (a single grey one has one channel) or is a uint8 stack of "
                "Gymnasium's, (frames, height, width, channels)"
            )
        return nn.Sequential(InputStandardization(space.shape, per_input=True), ColumnTokenizer(n_columns, embed_dim))
    _check_image(space, normalized_image)
    n_channels, height, width = space.shape
    frames = count_frames(n_channels) if frames is None else frames
    if frames <= 0 or n_channels % frames != 0:
        raise ValueError(
            f"`frames` does not match the stack: frames={frames} frames of as many channels each "
            f"cannot fill the {n_channels} channels of an observation of shape {space.shape}"
        )
    return make_patches(n_channels, height, width, frames)


def is_gymnasium_stack(space: spaces.Box) -> bool:
    """
    :param space: Of one observation, or of one key of a ``Dict``
    :return: Whether it is a stack of Gymnasium's ``FrameStackObservation``, ``(frames, height, width, channels)``
    """
    is_uint8 = space.dtype == np.uint8 and bool((space.low == 0).all() and (space.high == 255).all())
    return len(space.shape) == 4 and is_uint8


def count_frames(n_channels: int) -> int:
    """
    :param n_channels: Channels of an image
    :return: How many stacked frames these probably are: RGB for 6, 9, 12, ... and grey otherwise
    """
    return n_channels // 3 if n_channels % 3 == 0 and n_channels > 3 else n_channels


def _check_image(space: spaces.Box, normalized_image: bool) -> None:
    if not is_image_space(space, normalized_image=normalized_image):
        raise ValueError(
            "JepaExtractor takes a 3-dimensional Box for an image, which is of dtype uint8 with bounds 0 and 255 "
            "(or already normalized: with `normalize_images=False` in `policy_kwargs`, and if the policy is none of "
            f"sb3_jepa with `normalized_image=True` in `features_extractor_kwargs`), got {space}. "
            "If it is none, flatten it (gymnasium.wrappers.FlattenObservation)"
        )
    if not is_image_space_channels_first(space):
        raise ValueError(
            "JepaExtractor takes channels-first images (channels, height, width), "
            f"got shape {space.shape}. Transpose them (VecTransposeImage does it for uint8 images)"
        )
    n_channels, height, width = space.shape
    if n_channels >= min(height, width):
        raise ValueError(
            "JepaExtractor, like Stable-Baselines3, takes an image's smallest dimension for its channels, and that "
            f"must not be in doubt: got {n_channels} channels of {height}x{width} pixels. Enlarge the image, stack "
            "fewer frames, or flatten it (gymnasium.wrappers.FlattenObservation)"
        )
