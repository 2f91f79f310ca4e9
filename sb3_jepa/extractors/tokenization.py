"""What becomes a token of an observation: its space decides."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.observations import by_key
from sb3_jepa.parts import (
    CategoryTokenizer,
    ColumnTokenizer,
    DictTokenizer,
    InputStandardization,
    PatchTokenizer,
    StandardizedColumnTokenizer,
    StandardizedGridTokenizer,
    StandardizedPatchTokenizer,
)

# As many tokens as the numbers and categories of an observation become by default: more would cost more than they tell
COLUMN_TOKENS = 32
# The attention looks at all pairs
MAX_TOKENS = 4096


class ChannelsFirst(nn.Module):
    """
    Images and grids as :class:`~sb3_jepa.parts.PatchTokenizer` takes them, where Stable-Baselines3 leaves them as the
    environment gives them: the channels first, and the frames of a stack among them.

    :param channel_axis: Which axis the channels are, -3 or -1; None if there are none, as in a single grey picture
    :param scale: What numbers are multiplied by
    """

    def __init__(self, channel_axis: int | None, scale: float = 1.0):
        super().__init__()
        self.channel_axis, self.scale = channel_axis, scale

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: ``(batch, height, width)``, or with channels ``(batch, channels, height, width)``, or with frames
            in front of these; the channels may also be last
        :return: ``(batch, frames * channels, height, width)``
        """
        images = images.unsqueeze(1) if self.channel_axis is None else images.movedim(self.channel_axis, -3)
        if images.ndim == 5:
            images = images.flatten(1, 2)
        return images if self.scale == 1.0 else images * self.scale


class SpaceTokenizers:
    """
    Makes the tokenizers of observation spaces, whose inputs are standardised where that makes sense. The parameters are
    those of :class:`~sb3_jepa.JepaExtractor`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        patch_size: int | None,
        numbers_per_token: int | None,
        frames: int | None,
        frames_as: str,
        channels_first: bool | None,
        normalized_image: bool,
        drop_constant_tokens: bool,
        token_budget: int | None,
        missing_as_nan: bool,
    ):
        self.embed_dim = embed_dim
        self.patch_size = checks.optional(checks.whole_number, "patch_size", patch_size)
        self.numbers_per_token = checks.optional(checks.whole_number, "numbers_per_token", numbers_per_token)
        self.frames = frames
        self.frames_as = checks.choice("frames_as", frames_as, ("changes", "channels", "tokens"))
        self.channels_first = checks.optional(checks.flag, "channels_first", channels_first)
        self.normalized_image = checks.flag("normalized_image", normalized_image)
        self.drop_constant_tokens, self.token_budget = drop_constant_tokens, token_budget
        self.missing_as_nan = checks.flag("missing_as_nan", missing_as_nan)

    def make(self, space: spaces.Space) -> nn.Module:
        """
        :param space: Of observations
        :return: Module that takes preprocessed observations and returns ``(batch, tokens, embed_dim)``
        :raises ValueError: If there is none for this space, or an argument does not fit it
        """
        if self.numbers_per_token is None:
            # A failed sensor is left out alone
            n_columns = 1 if self.missing_as_nan else sum(self._n_columns(one) for one in by_key(space).values())
            n_per_token = max(1, -(-n_columns // COLUMN_TOKENS))
        else:
            n_per_token = self.numbers_per_token
        if not isinstance(space, spaces.Dict):
            return self._make_one(space, n_per_token)
        return DictTokenizer({key: self._make_one(one, n_per_token) for key, one in space.items()}, self.embed_dim)

    def _n_columns(self, space: spaces.Space) -> int:
        if isinstance(space, spaces.MultiDiscrete):
            return space.nvec.size
        if isinstance(space, spaces.MultiBinary) or (isinstance(space, spaces.Box) and not is_picture(space)):
            return get_flattened_obs_dim(space)
        return 0

    def _make_one(self, space: spaces.Space, n_per_token: int) -> nn.Module:
        if isinstance(space, spaces.Discrete):
            return CategoryTokenizer([int(space.n)], self.embed_dim)
        if not isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
            raise ValueError(
                "JepaExtractor takes Box, Discrete, MultiDiscrete and MultiBinary observations and a Dict of these, "
                f"got {space}"
            )
        if isinstance(space, spaces.Box) and is_picture(space):
            return self._make_of_picture(space)
        n_columns = self._n_columns(space)
        n_tokens = -(-n_columns // n_per_token)
        if n_tokens > MAX_TOKENS:
            raise ValueError(
                f"`numbers_per_token={n_per_token}` makes {n_tokens} tokens of the {n_columns} numbers of {space}, and "
                f"at most {MAX_TOKENS} are accepted: pass a larger `numbers_per_token`"
            )
        if isinstance(space, spaces.MultiDiscrete):
            return CategoryTokenizer(space.nvec.flatten().tolist(), self.embed_dim, n_per_token)
        columns = ColumnTokenizer(n_columns, self.embed_dim, n_per_token, self.missing_as_nan)
        if isinstance(space, spaces.MultiBinary):
            return columns
        return StandardizedColumnTokenizer(InputStandardization(space.shape, per="input"), columns)

    def _make_of_picture(self, space: spaces.Box) -> nn.Module:
        axis = channel_axis(space, self.channels_first)
        height, width = (size for index, size in enumerate(space.shape[-3:]) if axis is None or index != axis + 3)
        n_channels = int(np.prod(space.shape)) // (height * width)
        is_image = is_image_space(space, normalized_image=self.normalized_image)
        # Stable-Baselines3 scales those that it knows
        scale = 1.0 / 255.0 if is_bytes(space) and not is_image_space(space) else 1.0
        before = ChannelsFirst(axis, scale)
        if is_image or is_bytes(space):
            n_frames = space.shape[0] if len(space.shape) == 4 else self._count_frames(n_channels, space)
            patches: nn.Module = self._make_patches(n_channels, height, width, n_frames)
        else:
            tokenizer = PatchTokenizer(1, n_channels, height, width, self.patch_size, self.embed_dim)
            patches = StandardizedGridTokenizer(
                InputStandardization((n_channels, height, width), per="channel"), tokenizer
            )
        # What Stable-Baselines3 gives is as it should be
        is_ready = axis == -3 and len(space.shape) == 3 and scale == 1.0
        return patches if is_ready else nn.Sequential(before, patches)

    def _make_patches(self, n_channels: int, height: int, width: int, n_frames: int) -> nn.Module:
        n_tokenized = n_frames if self.frames_as == "tokens" else 1
        changes_of = n_frames if self.frames_as == "changes" else 1
        return StandardizedPatchTokenizer(
            InputStandardization((n_channels, height, width), changes_of),
            PatchTokenizer(n_tokenized, n_channels // n_tokenized, height, width, self.patch_size, self.embed_dim),
            self.drop_constant_tokens,
            self.token_budget,
        )

    def _count_frames(self, n_channels: int, space: spaces.Box) -> int:
        frames = count_frames(n_channels) if self.frames is None else self.frames
        if n_channels % frames != 0:
            raise ValueError(
                f"`frames` does not match the stack: frames={frames} frames of as many channels each "
                f"cannot fill the {n_channels} channels of an observation of shape {space.shape}"
            )
        return frames


def is_bytes(space: spaces.Box) -> bool:
    """
    :param space: Of one observation, or of one key of a ``Dict``
    :return: Whether its numbers are those of a picture, uint8 from 0 to 255
    """
    return space.dtype == np.uint8 and bool((space.low == 0).all() and (space.high == 255).all())


def is_picture(space: spaces.Space) -> bool:
    """
    :param space: Of one observation, or of one key of a ``Dict``
    :return: Whether it has neighbours in two directions: an image or a grid with channels, a stack of such, or a single
        grey image
    """
    return isinstance(space, spaces.Box) and (len(space.shape) in (3, 4) or (len(space.shape) == 2 and is_bytes(space)))


def channel_axis(space: spaces.Box, channels_first: bool | None = None) -> int | None:
    """
    Where an image or grid, or those of a stack, have their channels.

    :param space: Of one observation, or of one key of a ``Dict``
    :param channels_first: Whether they are first, where the smallest axis does not tell; None if it has to
    :return: -3 or -1; None if there are no channels
    :raises ValueError: If no axis is the smallest one, or if it lies between the others
    """
    if len(space.shape) == 2:
        return None
    first, middle, last = space.shape[-3:]
    if first < min(middle, last):
        return -3
    if last < min(first, middle):
        return -1
    if channels_first is not None:
        return -3 if channels_first else -1
    raise ValueError(
        f"Which axis of {space} are the channels? The smallest one is taken for them, and here that is in doubt. Say "
        f"`channels_first=True` if they are the {first} in front, or `channels_first=False` if they are the {last} at "
        "the end, in `features_extractor_kwargs`"
    )


def count_frames(n_channels: int) -> int:
    """
    :param n_channels: Channels of an image
    :return: How many stacked frames these probably are: RGB for 6, 9, 12, ... and grey otherwise
    """
    return n_channels // 3 if n_channels % 3 == 0 and n_channels > 3 else n_channels


def has_only_standardized(tokenizer: Any) -> bool:
    """
    :param tokenizer: Of observations
    :return: Whether all their inputs are standardised: none is a category, nor binary
    """
    if isinstance(tokenizer, DictTokenizer):
        return all(has_only_standardized(one) for one in tokenizer.tokenizers.values())
    return any(isinstance(module, InputStandardization) for module in tokenizer.modules())
