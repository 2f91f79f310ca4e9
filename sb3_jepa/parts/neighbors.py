"""Targets of patches made of the patches around them."""

import itertools
import math
from collections.abc import Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.parts.places import take_places
from sb3_jepa.parts.transformer import Block, check_heads

AGGREGATIONS = ("attention", "mean")
SELECTIONS = ("similar", "random")


class NeighborAggregation(nn.Module):
    """
    The target of a patch is made of those neighbours that are most similar to it, and not of the patch itself, so that
    targets differ across the border of an object, and less within it (*DMT-JEPA*, Mo and Yun 2024, arXiv 2405.17995).

    The neighbours are pooled by two class-attention blocks, whose query begins as the mean of the image. The same
    blocks transform the tokens of the context in front of the predictor (:meth:`transform_context`). Only there they
    are trained: what makes targets is meant to be a momentum copy, see
    :class:`~sb3_jepa.parts.targets.MomentumEncoder`.

    :param grid: How the patches are laid out: ``(tokens,)``, ``(rows, columns)`` or ``(frames, rows, columns)``
    :param embed_dim: Width of a token
    :param num_heads: Attention heads per block, a divisor of ``embed_dim``
    :param window: Side of the window around a patch in which its neighbours are, an odd number. It ends at the border
        of the grid.
    :param k: How many of the neighbours are taken. At a border there may be fewer, of which all are taken.
    :param aggregation: ``"attention"``, or ``"mean"`` for the mean of the neighbours, which has no parameters
    :param selection: Which neighbours are taken: the most ``"similar"``, going by the cosine, or ``"random"`` ones, new
        in every call, to tell what the similarity is good for
    :raises ValueError: If the grid has fewer than two tokens, ``window`` is not an odd number of at least 3, ``k`` is
        more than there are neighbours in a window, ``num_heads`` does not divide ``embed_dim``, or ``aggregation`` or
        ``selection`` is unknown
    """

    places: th.Tensor
    missing: th.Tensor

    def __init__(
        self,
        grid: Sequence[int],
        embed_dim: int,
        num_heads: int = 4,
        window: int = 3,
        k: int = 4,
        aggregation: str = "attention",
        selection: str = "similar",
    ):
        super().__init__()
        # The smallest grid and window in which each token has a neighbour
        grid, window = checks.sizes("grid", grid), checks.whole_number("window", window, 3)
        if math.prod(grid) < 2:
            raise ValueError(f"`grid` must have at least 2 tokens, got {grid}")
        if window % 2 == 0:
            raise ValueError(f"`window` must be an odd number, got {window}")
        # On an axis of one place there are no neighbours
        axes = [size for size in grid if size > 1]
        # At most the neighbours of a window
        self.k = checks.whole_number("k", k, 1, window ** len(axes) - 1)
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        num_heads = check_heads(num_heads, "embed_dim", embed_dim)
        self.aggregation = checks.choice("aggregation", aggregation, AGGREGATIONS)
        self.selection = checks.choice("selection", selection, SELECTIONS)
        places, missing = neighbor_places(axes, window)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("missing", missing, persistent=False)
        self.blocks = nn.ModuleList()
        if aggregation == "attention":
            self.blocks.extend(Block(embed_dim, num_heads, mlp_ratio=4.0) for _ in range(2))
        self.norm = nn.LayerNorm(embed_dim) if aggregation == "attention" else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: Xavier-uniform matrices, zero biases (as the blocks of the encoder)."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, latents: th.Tensor) -> th.Tensor:
        """
        :param latents: Of the target encoder, of all patches, ``(batch, tokens, embed_dim)``
        :return: Targets, ``(batch, tokens, embed_dim)``
        :raises ValueError: If there are not as many tokens as places in the grid
        """
        _, n_tokens, embed_dim = latents.shape
        if n_tokens != len(self.places):
            raise ValueError(f"`latents` must have a token for each of {len(self.places)} places, got {n_tokens}")
        latents = F.layer_norm(latents, (embed_dim,))
        places, missing = self.select(latents)
        # Each token of each image is a sequence of its own, (batch * tokens, k, embed_dim)
        neighbors = take_places(latents, places.flatten(1)).reshape(-1, self.k, embed_dim)
        missing = missing.flatten(0, 1)
        if self.aggregation == "mean":
            weights = (~missing).to(neighbors.dtype)
            weights = weights / weights.sum(dim=1, keepdim=True)
            return (weights[:, None] @ neighbors).view_as(latents)
        # One sequence for each token, image by image; its query is the mean of the image
        query = latents.mean(dim=1, keepdim=True).repeat_interleave(n_tokens, dim=0)
        # The query is among its keys, and never missing
        missing = F.pad(missing, (1, 0), value=False)
        for block in self.blocks:
            query = block(th.cat((query, neighbors), dim=1), class_token_only=True, missing=missing)
        return self.norm(query).view_as(latents)

    def select(self, latents: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param latents: As of :meth:`forward`, after the LayerNorm that it begins with
        :return: The places of the neighbours that are taken, and True where there are not as many, both
            ``(batch, tokens, k)``
        """
        shape = (len(latents), *self.places.shape)
        places, missing = self.places.expand(shape), self.missing.expand(shape)
        with th.no_grad():
            if self.selection == "random":
                # Drawn on the CPU like the masks, so that one seed gives the same neighbours on all devices
                scores = th.rand(shape).to(latents.device)
            else:
                # Compare all pairs: gathering the neighbours of each token would take more memory
                directions = F.normalize(latents, dim=-1)
                scores = (directions @ directions.transpose(1, 2)).gather(2, places)
            chosen = scores.masked_fill(missing, -th.inf).topk(self.k, dim=-1, sorted=False).indices
        return places.gather(2, chosen), missing.gather(2, chosen)

    def transform_context(self, context: th.Tensor, class_tokens: int = 0) -> th.Tensor:
        """
        What the mean of the context attends to, added to all of its tokens. They stay as they are if neighbours are
        aggregated by their mean, which has nothing to learn.

        :param context: Of the context encoder, ``(batch, class_tokens + context tokens, embed_dim)``
        :param class_tokens: How many class tokens come first. They are attended to, but have no part in the mean, which
            is one of patches, as where targets are made.
        :return: For the predictor, of the same shape
        """
        for block in self.blocks:
            # Put the query among its keys, which the paper leaves open for the context: targets have it among them, and
            # a copy of these weights
            tokens = th.cat((context[:, class_tokens:].mean(dim=1, keepdim=True), context), dim=1)
            tokens = block.attention_norm(tokens)  # type: ignore[operator]
            context = context + block.attention(tokens, class_token_only=True)  # type: ignore[operator]
            context = context + block.mlp(block.mlp_norm(context))  # type: ignore[operator]
        return self.norm(context)


def neighbor_places(grid: Sequence[int], window: int) -> tuple[th.Tensor, th.Tensor]:
    """
    The places in the window around each place of a grid, without the place itself.

    :param grid: Sizes of the grid
    :param window: Side of the window, an odd number
    :return: Places, and True for those beyond the border of the grid, both ``(tokens, window**len(grid) - 1)``. In
        their stead, the nearest place within the grid is named.
    """
    reach = window // 2
    centers = th.tensor(list(itertools.product(*map(range, grid))))
    offsets = th.tensor(list(itertools.product(range(-reach, reach + 1), repeat=len(grid))))
    around = centers[:, None] + offsets[offsets.any(dim=1)]  # (tokens, neighbours, axes)
    within = around.clamp(min=th.zeros(len(grid), dtype=th.long), max=th.tensor(tuple(grid)) - 1)
    places = th.arange(len(centers)).view(*grid)[within.unbind(dim=-1)]
    return places, (within != around).any(dim=-1)
