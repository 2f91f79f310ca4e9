"""Tokenizers: what becomes a token."""

import torch as th
from torch import nn


class PatchTokenizer(nn.Module):
    """
    Patches of a stack of frames, each with a learned code for its place: ``(row, column)`` in the image and, if there
    are several, the frame (*JEPA for RL*, arXiv 2504.16591, section 3).

    :param frames: Number of stacked frames ``k``, whose patches are tokens of their own. With 1 and ``k`` times the
        channels, the ``k`` patches of one place form one token, a tubelet: ``k`` times fewer tokens.
    :param channels: Channels of one frame (1 for grey, 3 for RGB)
    :param height: Height of a frame in pixels
    :param width: Width of a frame in pixels
    :param patch_size: Side of a square patch in pixels; must divide height and width
    :param embed_dim: Width of a token
    :raises ValueError: If the image is smaller than a patch or not divisible by it
    """

    def __init__(
        self,
        frames: int,
        channels: int,
        height: int,
        width: int,
        patch_size: int = 16,
        embed_dim: int = 64,
    ):
        super().__init__()
        if patch_size <= 0:
            raise ValueError(f"`patch_size` must be positive, got {patch_size}")
        if height < patch_size or width < patch_size:
            raise ValueError(
                f"An image of {height}x{width} pixels is smaller than a patch: `patch_size` is {patch_size}"
            )
        if height % patch_size != 0 or width % patch_size != 0:
            raise ValueError(
                f"`patch_size` must divide the height and width of the image, got patch_size={patch_size} "
                f"for {height}x{width} pixels"
            )
        self.frames = frames
        self.patch_size = patch_size
        self.n_rows, self.n_columns = height // patch_size, width // patch_size
        self.projection = nn.Linear(channels * patch_size**2, embed_dim)
        self.row_code = nn.Parameter(th.zeros(self.n_rows, 1, embed_dim))
        self.column_code = nn.Parameter(th.zeros(self.n_columns, embed_dim))
        self.frame_code = nn.Parameter(th.zeros(frames, 1, 1, embed_dim)) if frames > 1 else None
        self.reset_parameters()

    @property
    def n_tokens(self) -> int:
        """Number of tokens per observation, the class token not counted."""
        return self.frames * self.n_rows * self.n_columns

    def reset_parameters(self) -> None:
        """Initialise: Xavier-uniform projection with zero bias, small random codes (as in the original ViT)."""
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        for code in (self.row_code, self.column_code, self.frame_code):
            if code is not None:
                nn.init.normal_(code, std=0.02)

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: ``(batch, frames * channels, height, width)``, frames in order, oldest first
        :return: ``(batch, tokens, embed_dim)``, ordered by frame, row, column
        """
        patches = images.reshape(
            len(images), self.frames, -1, self.n_rows, self.patch_size, self.n_columns, self.patch_size
        )  # (batch, frames, channels, rows, patch, columns, patch)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # (batch, frames, rows, columns, pixels)
        place = self.row_code + self.column_code
        if self.frame_code is not None:
            place = place + self.frame_code
        return (self.projection(patches) + place).flatten(1, 3)
