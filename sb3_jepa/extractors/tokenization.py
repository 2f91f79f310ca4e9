"""What becomes a token of an observation: its space decides."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import nn

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

# Number of tokens that all vectors of an observation become by default: more would be slow
COLUMN_TOKENS = 32
# The cost of attention grows with the square of this
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
        """To ``(batch, frames * channels, height, width)``, from images with or without frames and channels."""
        images = images.unsqueeze(1) if self.channel_axis is None else images.movedim(self.channel_axis, -3)
        if images.ndim == 5:
            images = images.flatten(1, 2)
        return images if self.scale == 1.0 else images * self.scale


@dataclass(frozen=True)
class ImageOptions:
    """How images and grids become tokens: the arguments of :class:`~sb3_jepa.JepaExtractor` of these names."""

    patch_size: int | None
    frames: int | None
    frames_as: str
    channels_first: bool | None
    normalized_image: bool
    drop_constant_tokens: bool
    token_budget: int | None

    def count_frames(self, space: spaces.Box) -> int:
        """How many frames are stacked in an image; a ``ValueError`` if ``frames`` does not divide the channels."""
        if len(space.shape) == 4:
            return space.shape[0]
        n_channels = self.shape_of(space)[0]
        frames = count_frames(n_channels) if self.frames is None else self.frames
        if n_channels % frames != 0:
            raise ValueError(
                f"`frames` does not match the stack: frames={frames} frames of as many channels each "
                f"cannot fill the {n_channels} channels of an observation of shape {space.shape}"
            )
        return frames

    def shape_of(self, space: spaces.Box) -> tuple[int, int, int]:
        """``(channels, height, width)`` of images or grids, with the channels of all frames together."""
        axis = channel_axis(space, self.channels_first)
        height, width = (size for index, size in enumerate(space.shape[-3:]) if axis is None or index != axis + 3)
        return int(np.prod(space.shape)) // (height * width), height, width

    def are_images(self, space: spaces.Space) -> bool:
        """Whether observations are images: neither grids, whose numbers may be any, nor vectors."""
        return is_picture(space) and (is_image_space(space, normalized_image=self.normalized_image) or is_bytes(space))  # type: ignore[arg-type]


def make_tokenizer(
    space: spaces.Space, embed_dim: int, images: ImageOptions, numbers_per_token: int, missing_as_nan: bool
) -> nn.Module:
    """
    Module that turns preprocessed observations of a space into ``(batch, tokens, embed_dim)``, with its inputs
    standardised where that makes sense; a ``ValueError`` if there is none, or an argument does not fit.
    """

    def make(one: spaces.Space) -> nn.Module:
        if isinstance(one, spaces.Box) and is_picture(one):
            return _picture_tokenizer(one, embed_dim, images)
        return _vector_tokenizer(one, embed_dim, numbers_per_token, missing_as_nan)

    if isinstance(space, spaces.Dict):
        tokenizer: nn.Module = DictTokenizer({key: make(one) for key, one in space.items()}, embed_dim)
    else:
        tokenizer = make(space)
    kinds = {type(module) for module in tokenizer.modules()}
    if (images.drop_constant_tokens or images.token_budget is not None) and StandardizedPatchTokenizer not in kinds:
        raise ValueError(
            f"`drop_constant_tokens` and `token_budget` leave out patches of images, and there is no image in {space}"
        )
    if missing_as_nan and ColumnTokenizer not in kinds:
        raise ValueError(f"`missing_as_nan` leaves out numbers of vectors, and there is no vector in {space}")
    return tokenizer


def default_numbers_per_token(space: spaces.Space, missing_as_nan: bool) -> int:
    """So that about 32 tokens hold all numbers of a space; one if a failed sensor is left out alone."""
    n_columns = 1 if missing_as_nan else sum(_n_columns(one) for one in by_key(space).values())
    return max(1, -(-n_columns // COLUMN_TOKENS))


def resolve(images: ImageOptions, space: spaces.Space, tokenizer: nn.Module) -> ImageOptions:
    """The same with what was chosen in place of ``None``, unless the images and grids of a ``Dict`` differ in that."""
    patch_sizes = {module.patch_size for module in tokenizer.modules() if isinstance(module, PatchTokenizer)}
    stacks = (one for one in by_key(space).values() if images.are_images(one) and len(one.shape) != 4)
    frames = {images.count_frames(one) for one in stacks}
    return replace(
        images,
        patch_size=patch_sizes.pop() if len(patch_sizes) == 1 else images.patch_size,
        frames=frames.pop() if len(frames) == 1 else images.frames,
    )


def _n_columns(space: spaces.Space) -> int:
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.size
    if isinstance(space, spaces.MultiBinary) or (isinstance(space, spaces.Box) and not is_picture(space)):
        return get_flattened_obs_dim(space)
    return 0


def _vector_tokenizer(space: spaces.Space, embed_dim: int, n_per_token: int, missing_as_nan: bool) -> nn.Module:
    if isinstance(space, spaces.Discrete):
        return CategoryTokenizer([int(space.n)], embed_dim)
    if not isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(
            "JepaExtractor takes Box, Discrete, MultiDiscrete and MultiBinary observations and a Dict of these, "
            f"got {space}"
        )
    n_columns = _n_columns(space)
    n_tokens = -(-n_columns // n_per_token)
    if n_tokens > MAX_TOKENS:
        raise ValueError(
            f"`numbers_per_token={n_per_token}` makes {n_tokens} tokens of the {n_columns} numbers of {space}, and "
            f"at most {MAX_TOKENS} are accepted: pass a larger `numbers_per_token`"
        )
    if isinstance(space, spaces.MultiDiscrete):
        return CategoryTokenizer(space.nvec.flatten().tolist(), embed_dim, n_per_token)
    columns = ColumnTokenizer(n_columns, embed_dim, n_per_token, missing_as_nan)
    if isinstance(space, spaces.MultiBinary):
        return columns
    return StandardizedColumnTokenizer(InputStandardization(space.shape, per="input"), columns)


def _picture_tokenizer(space: spaces.Box, embed_dim: int, images: ImageOptions) -> nn.Module:
    axis = channel_axis(space, images.channels_first)
    n_channels, height, width = shape = images.shape_of(space)
    # Stable-Baselines3 scales the images that it recognises
    scale = 1.0 / 255.0 if is_bytes(space) and not is_image_space(space) else 1.0
    before = ChannelsFirst(axis, scale)
    patches: nn.Module
    if images.are_images(space):
        n_frames = images.count_frames(space)
        n_tokenized = n_frames if images.frames_as == "tokens" else 1
        patches = StandardizedPatchTokenizer(
            InputStandardization(shape, n_frames if images.frames_as == "changes" else 1),
            PatchTokenizer(n_tokenized, n_channels // n_tokenized, height, width, images.patch_size, embed_dim),
            images.drop_constant_tokens,
            images.token_budget,
        )
    else:
        tokenizer = PatchTokenizer(1, n_channels, height, width, images.patch_size, embed_dim)
        patches = StandardizedGridTokenizer(InputStandardization(shape, per="channel"), tokenizer)
    # Stable-Baselines3 has already put the channels of its images first
    is_ready = axis == -3 and len(space.shape) == 3 and scale == 1.0
    return patches if is_ready else nn.Sequential(before, patches)


def is_bytes(space: spaces.Box) -> bool:
    """Whether the numbers of a space are those of a picture, uint8 from 0 to 255."""
    return space.dtype == np.uint8 and bool((space.low == 0).all() and (space.high == 255).all())


def is_picture(space: spaces.Space) -> bool:
    """Whether observations have neighbours in two directions: images, grids with channels, or stacks of such."""
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
    """How many stacked frames ``n_channels`` probably are: RGB for 6, 9, 12, ... and grey otherwise."""
    return n_channels // 3 if n_channels % 3 == 0 and n_channels > 3 else n_channels


def has_only_standardized(tokenizer: Any) -> bool:
    """Whether all inputs of a tokenizer are standardised: none is a category, nor binary."""
    if isinstance(tokenizer, DictTokenizer):
        return all(has_only_standardized(one) for one in tokenizer.tokenizers.values())
    return any(isinstance(module, InputStandardization) for module in tokenizer.modules())
