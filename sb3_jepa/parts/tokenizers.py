"""Tokenizers: what becomes a token."""

from collections.abc import Mapping, Sequence

import torch as th
from torch import nn
from torch.nn import functional as F


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
        or to the right.
    :param embed_dim: Width of a token
    :raises ValueError: If the image is smaller than a patch
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
        self.frames = frames
        self.patch_size = patch_size
        self.n_rows, self.n_columns = -(-height // patch_size), -(-width // patch_size)
        # As F.pad wants it: left, right, above, below
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
        if any(self.padding):
            images = F.pad(images, self.padding)
        patches = images.reshape(
            images.shape[0], self.frames, -1, self.n_rows, self.patch_size, self.n_columns, self.patch_size
        )  # (batch, frames, channels, rows, patch, columns, patch)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # (batch, frames, rows, columns, pixels)
        place = self.row_code + self.column_code
        if self.frame_code is not None:
            place = place + self.frame_code
        return (self.projection(patches) + place).flatten(1, 3)


class ColumnTokenizer(nn.Module):
    """
    Each number of a vector is a token: a learned direction times the number, plus a learned code that says which one it
    is (the feature tokenizer of *FT-Transformer*, Gorishniy et al. 2021, arXiv 2106.11959, section 3.1).

    :param n_columns: Length of the vector
    :param embed_dim: Width of a token
    """

    def __init__(self, n_columns: int, embed_dim: int = 64):
        super().__init__()
        self.direction = nn.Parameter(th.empty(n_columns, embed_dim))
        self.code = nn.Parameter(th.empty(n_columns, embed_dim))
        self.reset_parameters()

    @property
    def token_shape(self) -> tuple[int, ...]:
        """How the tokens of an observation are laid out: ``(n_columns,)``."""
        return (len(self.code),)

    def reset_parameters(self) -> None:
        """Initialise uniformly, with the bounds that ``nn.Linear`` would have (as in FT-Transformer)."""
        bound = self.direction.shape[1] ** -0.5
        for parameter in (self.direction, self.code):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, vectors: th.Tensor) -> th.Tensor:
        """
        :param vectors: ``(batch, *shape)`` of ``n_columns`` numbers each
        :return: ``(batch, n_columns, embed_dim)``
        """
        return th.addcmul(self.code, vectors.reshape(vectors.shape[0], -1, 1), self.direction)


class CategoryTokenizer(nn.Module):
    """
    Each categorical variable is a token: the learned embedding of its category.

    :param sizes: Number of categories of each variable
    :param embed_dim: Width of a token
    """

    def __init__(self, sizes: Sequence[int], embed_dim: int = 64):
        super().__init__()
        self.sizes = [int(size) for size in sizes]
        self.embedding = nn.Parameter(th.empty(sum(self.sizes), embed_dim))
        self.reset_parameters()

    @property
    def token_shape(self) -> tuple[int, ...]:
        """How the tokens of an observation are laid out: ``(variables,)``."""
        return (len(self.sizes),)

    def reset_parameters(self) -> None:
        """Initialise uniformly, as :class:`ColumnTokenizer`."""
        bound = self.embedding.shape[1] ** -0.5
        nn.init.uniform_(self.embedding, -bound, bound)

    def forward(self, one_hot: th.Tensor) -> th.Tensor:
        """
        :param one_hot: One-hot vectors of the variables, one after the other: ``(batch, sum of the sizes)``
        :return: ``(batch, variables, embed_dim)``
        """
        variables = one_hot.flatten(1).split(self.sizes, dim=1)
        embeddings = self.embedding.split(self.sizes)
        return th.stack(
            [variable @ embedding for variable, embedding in zip(variables, embeddings, strict=True)], dim=1
        )


class DictTokenizer(nn.Module):
    """
    The tokens of several inputs in one sequence, each with a learned code that says which input it comes from.

    :param tokenizers: One for each key of an observation
    :param embed_dim: Width of a token
    """

    def __init__(self, tokenizers: Mapping[str, nn.Module], embed_dim: int = 64):
        super().__init__()
        self.keys = sorted(tokenizers)
        # The names say which parameters belong to which key. PyTorch objects to dots, and to names such as "pop"
        self.tokenizers = nn.ModuleDict({_module_name(key): tokenizers[key] for key in self.keys})
        self.type_code = nn.Parameter(th.empty(len(self.keys), embed_dim))
        nn.init.normal_(self.type_code, std=0.02)

    def forward(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: ``(batch, *shape)`` for each key
        :return: ``(batch, tokens of all keys, embed_dim)``, in the alphabetical order of the keys
        """
        return th.cat(
            [
                tokenizer(observations[key]) + code
                for key, tokenizer, code in zip(self.keys, self.tokenizers.values(), self.type_code, strict=True)
            ],
            dim=1,
        )


def _module_name(key: str) -> str:
    # Two keys never have one name
    return "key_" + key.replace("%", "%25").replace(".", "%2E")
