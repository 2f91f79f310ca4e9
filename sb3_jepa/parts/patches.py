"""Tokenizers of images and grids: their patches become tokens."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.parts.places import take_places

# Bounds for the number of patches that the default size leaves
LEAST_PATCHES, MOST_PATCHES = 16, 64


def default_patch_size(height: int, width: int) -> int:
    """
    :param height: Of an image or grid
    :param width: Of an image or grid
    :return: The largest power of two that leaves at least 16 patches (less than four times as many). Of what is much
        longer than high, it is no higher than that, if that leaves 64 patches at most.
    :raises ValueError: If a side is not positive
    """

    height, width = checks.whole_number("height", height), checks.whole_number("width", width)

    def n_patches(patch_size: int) -> int:
        return -(-height // patch_size) * -(-width // patch_size)

    patch_size = 1
    while (n_patches(2 * patch_size) >= LEAST_PATCHES and 2 * patch_size <= min(height, width)) or (
        n_patches(patch_size) > MOST_PATCHES
    ):
        patch_size *= 2
    return patch_size


class PatchTokenizer(nn.Module):
    """
    Patches of a stack of frames, each with a learned code for its place: ``(row, column)`` in the image and, if there
    are several, the frame (*JEPA for RL*, arXiv 2504.16591, section 3).

    :param frames: Number of stacked frames ``k``, whose patches are tokens of their own. With 1 and ``k`` times the
        channels, the ``k`` patches of one place form one token, a tubelet: ``k`` times fewer tokens.
    :param channels: Channels of one frame (1 for grey, 3 for RGB)
    :param height: Height of a frame in pixels
    :param width: Width of a frame in pixels
    :param patch_size: Side of a square patch in pixels. Where it does not divide height or width, zeros are added below
        or to the right. By default it comes from the image, see :func:`default_patch_size`.
    :param embed_dim: Width of a token
    :raises ValueError: If both sides of the image are smaller than a patch
    """

    def __init__(
        self,
        frames: int,
        channels: int,
        height: int,
        width: int,
        patch_size: int | None = None,
        embed_dim: int = 64,
    ):
        super().__init__()
        frames, channels = checks.whole_number("frames", frames), checks.whole_number("channels", channels)
        height, width = checks.whole_number("height", height), checks.whole_number("width", width)
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        patch_size = checks.optional(checks.whole_number, "patch_size", patch_size) or default_patch_size(height, width)
        if max(height, width) < patch_size:
            raise ValueError(
                f"An image of {height}x{width} pixels is smaller than a patch: `patch_size` must be at most "
                f"{max(height, width)}, got {patch_size}. None takes one that fits, here "
                f"{default_patch_size(height, width)}"
            )
        self.frames = frames
        self.patch_size = patch_size
        self.n_rows, self.n_columns = -(-height // patch_size), -(-width // patch_size)
        # In the order of F.pad: left, right, above, below
        self.padding = (0, self.n_columns * patch_size - width, 0, self.n_rows * patch_size - height)
        self.projection = nn.Linear(channels * patch_size**2, embed_dim)
        self.row_code = nn.Parameter(th.zeros(self.n_rows, 1, embed_dim))
        self.column_code = nn.Parameter(th.zeros(self.n_columns, embed_dim))
        self.frame_code = nn.Parameter(th.zeros(frames, 1, 1, embed_dim)) if frames > 1 else None
        self.reset_parameters()

    @property
    def token_shape(self) -> tuple[int, ...]:
        """How the tokens of an observation are laid out: ``(frames, rows, columns)``."""
        return self.frames, self.n_rows, self.n_columns

    @property
    def n_inputs(self) -> list[int]:
        """Number of inputs of each token."""
        return [self.projection.in_features] * math.prod(self.token_shape)

    def token_inputs(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: As of :meth:`forward`
        :return: Their pixels, ``(batch, tokens, pixels)``
        """
        return self.patches(images).flatten(1, 3)

    def reset_parameters(self) -> None:
        """Initialise: Xavier-uniform projection with zero bias, small random codes (as in the original ViT)."""
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        for code in (self.row_code, self.column_code, self.frame_code):
            if code is not None:
                nn.init.normal_(code, std=0.02)

    @th.no_grad()
    def absorb(self, ratio: th.Tensor) -> None:
        """
        Make up for channels that are standardised in another way, see
        :meth:`~sb3_jepa.parts.standardization.InputStandardization.follow`.

        :param ratio: What the weights of each channel are multiplied by
        """
        self.projection.weight.unflatten(1, (ratio.numel(), -1)).mul_(ratio.reshape(-1, 1))

    def forward(self, images: th.Tensor, places: th.Tensor | None = None) -> th.Tensor:
        """
        :param images: ``(batch, frames * channels, height, width)``, frames in order, oldest first
        :param places: Of the patches that become tokens, ``(tokens,)`` or ``(batch, tokens)``; None for all
        :return: ``(batch, tokens, embed_dim)``, ordered by frame, row, column
        """
        if places is None:
            return (self.projection(self.patches(images)) + self.place_code).flatten(1, 3)
        patches = take_places(self.patches(images).flatten(1, 3), places)
        return self.projection(patches) + F.embedding(places, self.place_code.flatten(0, 2))

    def patches(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: As of :meth:`forward`
        :return: Their pixels, ``(batch, frames, rows, columns, pixels)``
        """
        if any(self.padding):
            images = F.pad(images, self.padding)
        patches = images.reshape(
            images.shape[0], self.frames, -1, self.n_rows, self.patch_size, self.n_columns, self.patch_size
        )  # (batch, frames, channels, rows, patch, columns, patch)
        return patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)

    @property
    def place_code(self) -> th.Tensor:
        """What is added to a token for its place, ``(frames or 1, rows, columns, embed_dim)``."""
        place = (self.row_code + self.column_code)[None]
        return place if self.frame_code is None else place + self.frame_code
