"""Features extractors: the context encoder as Stable-Baselines3 knows it."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_jepa.parts import InputStandardization, PatchTokenizer, TransformerEncoder


class JepaExtractor(BaseFeaturesExtractor):
    """
    Vision transformer over the patches of the stacked frames; the class token's output is the features (the embedding).
    Usable as ``features_extractor_class`` of any Stable-Baselines3 algorithm.

    Its initialisation is its own: ``ortho_init``, which Stable-Baselines3 applies to a finished extractor, is ignored.

    :param observation_space: Images, channels first: ``(frames * channels, height, width)``
    :param embed_dim: Width of the transformer and of the features
    :param patch_size: Side of a square patch in pixels; must divide height and width
    :param depth: Number of transformer blocks
    :param num_heads: Attention heads per block, a divisor of ``embed_dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of ``embed_dim``
    :param frames: Number of frames stacked in the channels of an observation, of 1 (grey) or 3 (RGB) channels each;
        1 for a single picture
    :param frames_as: ``"tokens"``: each patch of each frame is a token, as in the paper. ``"channels"``: the patches of
        one place in all frames form one token; ``frames`` times fewer tokens, and faster by about as much.
        ``"changes"``: the same, of the newest frame and the changes from frame to frame, so that motion is seen sooner.
    :param final_norm: Whether a LayerNorm closes the transformer, as in the original ViT. It keeps the embedding
        variance of a healthy encoder between 0 and 1.
    :param standardize_frames: From how many observations to measure the statistics that standardise the input, before
        anything is learned; 0 for no standardisation. :class:`~sb3_jepa.JepaCallback` collects them for a
        ``JepaPolicy``; in any other policy, give them to ``extractor.standardization.update`` yourself.
    :param normalized_image: Whether to assume that the image is already normalized (this disables dtype and bounds
        checks), as in Stable-Baselines3's ``NatureCNN``
    :raises ValueError: If the observations are not channels-first images, do not fit ``patch_size`` or ``frames``, or
        if an argument is not among those accepted
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        embed_dim: int = 64,
        patch_size: int = 16,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        frames: int = 3,
        frames_as: str = "changes",
        final_norm: bool = True,
        standardize_frames: int = 1024,
        normalized_image: bool = False,
    ):
        if not isinstance(observation_space, spaces.Box) or not is_image_space(
            observation_space, normalized_image=normalized_image
        ):
            raise ValueError(
                "JepaExtractor takes images: a 3-dimensional Box of dtype uint8 with bounds 0 and 255 "
                "(or already normalized images with `normalize_images=False` in `policy_kwargs`), "
                f"got {observation_space}. sb3_jepa.envs.make_pixel_vec_env makes them of what an environment renders"
            )
        if not is_image_space_channels_first(observation_space):
            raise ValueError(
                "JepaExtractor takes channels-first images (channels, height, width), "
                f"got shape {observation_space.shape}. Transpose them (VecTransposeImage does it for uint8 images)"
            )
        n_channels, height, width = observation_space.shape
        if frames <= 0 or n_channels not in (frames, 3 * frames):
            raise ValueError(
                f"`frames` does not match the stack: frames={frames} frames of 1 or 3 channels each "
                f"cannot fill the {n_channels} channels of an observation of shape {observation_space.shape}"
            )
        if frames_as not in ("changes", "channels", "tokens"):
            raise ValueError(f'`frames_as` must be "changes", "channels" or "tokens", got {frames_as!r}')
        if standardize_frames < 0:
            raise ValueError(f"`standardize_frames` must not be negative, got {standardize_frames}")
        super().__init__(observation_space, features_dim=embed_dim)
        n_tokenized = frames if frames_as == "tokens" else 1
        tokenizer = PatchTokenizer(n_tokenized, n_channels // n_tokenized, height, width, patch_size, embed_dim)
        self.standardize_frames = standardize_frames
        self._warned_not_standardized = False
        self.standardization = InputStandardization(
            observation_space.shape, changes_of=frames if frames_as == "changes" else 1
        )
        self.encoder = TransformerEncoder(tokenizer, embed_dim, depth, num_heads, mlp_ratio, final_norm)

    @property
    def n_inputs_to_measure(self) -> int:
        """Number of observations that the input statistics still lack."""
        return max(0, self.standardize_frames - int(self.standardization.n_seen))

    def train(self, mode: bool = True) -> "JepaExtractor":
        """
        Set the module in training mode, with a warning if its inputs should have been standardised and are not.

        :param mode: whether to set training mode (``True``) or evaluation mode (``False``)
        """
        if mode and not self._warned_not_standardized and self.n_inputs_to_measure > 0:
            self._warned_not_standardized = True
            warnings.warn(
                "JepaExtractor is about to learn from inputs that are not standardised, on which it may learn nothing. "
                "Train a JepaPolicy with `callback=sb3_jepa.JepaCallback()` (the algorithms of sb3_jepa add it by "
                "themselves), call `standardization.update` with observations, or say `standardize_frames=0`.",
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

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Preprocessed images ``(batch, frames * channels, height, width)``
        :return: Embedding ``(batch, embed_dim)``
        """
        return self.encoder(self.standardization(observations))
