"""Masks: which tokens of an observation are seen, and which are predicted from them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod, sqrt
from typing import NamedTuple

import torch as th

from sb3_jepa.common import checks

# How often blocks get new positions, if they leave too little to the context
MAX_REDRAWS = 10
# How often they get a new size, if no positions help. The constructor tries less often than training and refuses what
# needs more, so that training does not fail
MAX_SIZES_AT_FIRST, MAX_SIZES = 10, 1000


class Masks(NamedTuple):
    """
    The places of tokens, counted without class tokens, in the order of the grid: row by row, frame by frame. What is
    predicted is never seen: the context and the targets of a sample have no place in common.

    :param context: Places of the tokens that are seen, in ascending order, ``(batch, n_context)``
    :param targets: Places of the tokens that are predicted, mask by mask, in ascending order,
        ``(batch, n_masks, n_targets)``. Different masks may have places in common.

    Where samples have not as many of them, both are booleans for each token: ``(batch, tokens)`` and
    ``(batch, n_masks, tokens)``.
    """

    context: th.Tensor
    targets: th.Tensor

    def to(self, device: th.device | str) -> "Masks":
        """
        :param device: Where the tokens are
        :return: The same places on that device
        """
        return Masks(self.context.to(device), self.targets.to(device))


class MaskSampler(ABC):
    """
    Draws masks for the samples of a batch. They have as many places in each sample, so that tokens can be stacked; but
    where they depend on the input, a number in proportion to the tokens that a sample has.

    :param grid: How the tokens of an observation are laid out
    :param n_masks: How many masks of hidden tokens there are in each sample
    :raises ValueError: If there are fewer than two tokens, or no masks
    """

    def __init__(self, grid: Sequence[int], n_masks: int):
        self.grid = checks.sizes("grid", grid)
        self.n_tokens = prod(self.grid)
        if self.n_tokens < 2:
            raise ValueError(f"`grid` must have at least two tokens, got {self.grid}")
        self.n_masks = checks.whole_number("n_masks", n_masks)

    def sample(
        self, batch_size: int, generator: th.Generator | None = None, candidates: th.Tensor | None = None
    ) -> Masks:
        """
        :param batch_size: Number of samples
        :param generator: Of random numbers, on the CPU; None for PyTorch's global one
        :param candidates: The tokens of each sample that may be chosen, ``(batch, tokens)``, on the CPU; None for all
        :return: Their masks, on the CPU: places, or booleans if there are candidates
        """
        if candidates is None:
            return self._sample(batch_size, generator)
        return self._sample_among(candidates, generator)

    @abstractmethod
    def _sample(self, batch_size: int, generator: th.Generator | None) -> Masks:
        """Masks of all tokens, as places."""

    @abstractmethod
    def _sample_among(self, candidates: th.Tensor, generator: th.Generator | None) -> Masks:
        """Masks of candidates, as booleans."""


class SubsetMasks(MaskSampler):
    """
    Random subsets of the tokens, for tokens without neighbourhood such as the columns of a table (*T-JEPA*, Thimonier
    et al. 2025, arXiv 2410.05016). Their sizes are drawn once per batch, from all pairs that fit.

    :param grid: How the tokens of an observation are laid out
    :param n_masks: Number of target masks: independent subsets of the tokens that are not seen
    :param context_scale: Least and largest share of the tokens that are seen; at least one token
    :param target_scale: Least and largest share of the tokens in a target mask; at least one token
    :raises ValueError: If an argument is out of range, or the smallest context and target are more than all tokens
    """

    def __init__(
        self,
        grid: Sequence[int],
        n_masks: int = 4,
        context_scale: tuple[float, float] = (0.15, 0.4),
        target_scale: tuple[float, float] = (0.15, 0.6),
    ):
        super().__init__(grid, n_masks)
        self.context_scale = context_scale = checks.pair("context_scale", context_scale, above=0, most=1)
        self.target_scale = target_scale = checks.pair("target_scale", target_scale, above=0, most=1)
        least_context, most_context = (max(1, round(self.n_tokens * share)) for share in context_scale)
        self._least_targets, self._most_targets = (max(1, round(self.n_tokens * share)) for share in target_scale)
        if least_context + self._least_targets > self.n_tokens:
            raise ValueError(
                f"`context_scale` and `target_scale` must leave room for each other, got {context_scale} and "
                f"{target_scale}: at least {least_context} + {self._least_targets} of {self.n_tokens} tokens"
            )
        # The same as to draw pairs of sizes until one fits: a context is as likely as it has targets that fit beside it
        self._context_sizes = range(least_context, most_context + 1)
        self._chances = th.tensor(
            [max(0.0, self._targets_beside(size) - self._least_targets + 1.0) for size in self._context_sizes]
        )

    def _targets_beside(self, n_context: int) -> int:
        return min(self._most_targets, self.n_tokens - n_context)

    def _sample(self, batch_size: int, generator: th.Generator | None) -> Masks:
        n_context = self._context_sizes[int(self._chances.multinomial(1, generator=generator))]
        most_targets = self._targets_beside(n_context)
        n_targets = int(th.randint(self._least_targets, most_targets + 1, (), generator=generator))
        shuffled = th.rand(batch_size, self.n_tokens, generator=generator).argsort(dim=1)
        context, hidden = shuffled[:, :n_context], shuffled[:, n_context:]
        chosen = th.rand(batch_size, self.n_masks, hidden.shape[1], generator=generator).topk(n_targets, sorted=False)
        targets = hidden.gather(1, chosen.indices.flatten(1)).unflatten(1, (self.n_masks, n_targets))
        return Masks(context.sort(dim=1).values, targets.sort(dim=2).values)

    def _sample_among(self, candidates: th.Tensor, generator: th.Generator | None) -> Masks:
        chances = th.rand(2, generator=generator).tolist()
        context_share, target_share = map(_between, (self.context_scale, self.target_scale), chances)
        n_candidates = candidates.sum(dim=1, keepdim=True)
        context = _choose(candidates, (n_candidates * context_share).round().clamp(min=1), generator)
        hidden = (candidates & ~context)[:, None].expand(-1, self.n_masks, -1)
        n_targets = (n_candidates * target_share).round().clamp(min=1)
        return Masks(context, _choose(hidden, n_targets[:, None], generator))


class BlockMasks(MaskSampler):
    """
    Rectangular blocks of hidden tokens, for tokens with neighbours: hidden ones are then not simply a mean of those
    around them. All blocks of a batch have one size, and each its own position.

    As in *I-JEPA* (Assran et al. 2023, arXiv 2301.08243), each block is a target mask, and the context another, large
    block without the tokens of the targets. With ``union``, as in *V-JEPA* (Bardes et al. 2024, arXiv 2404.08471), the
    blocks together are the only target mask, and the context is all else.

    Where the number of tokens differs from sample to sample, all keep as many as the smallest has, chosen at random.

    :param grid: Sides of the grid of tokens: ``(rows, columns)``, ``(frames, rows, columns)``, or ``(length,)``
    :param n_masks: Number of blocks
    :param target_scale: Least and largest share of a frame's tokens in a block
    :param aspect_ratio: Least and largest ratio of a block's height to its width. A block that would leave the grid
        on one side grows on the other one.
    :param context_scale: Least and largest share of a frame's tokens in the context's block, a square; None for all
        tokens that are not in a target. Without effect with ``union``.
    :param union: Whether the blocks together are one target mask
    :param frame_scale: Least and largest share of the frames that a block of targets spans
    :param min_context: The number of tokens that each sample's context has at least; by default a sixth of all. All
        keep as many as the smallest has: without it, one sample would starve the others.
    :raises ValueError: If an argument is out of range, or the blocks hide too much of the grid
    """

    def __init__(
        self,
        grid: Sequence[int],
        n_masks: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        aspect_ratio: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] | None = (0.85, 1.0),
        union: bool = False,
        frame_scale: tuple[float, float] = (1.0, 1.0),
        min_context: int | None = None,
    ):
        super().__init__(grid, n_masks)
        if len(self.grid) > 3:
            raise ValueError(f"`grid` must have one, two or three sides, got {self.grid}")
        self.target_scale = checks.pair("target_scale", target_scale, above=0, most=1)
        self.aspect_ratio = checks.pair("aspect_ratio", aspect_ratio, above=0)
        self.frame_scale = checks.pair("frame_scale", frame_scale, above=0, most=1)
        self.union = checks.flag("union", union)
        context_scale = checks.optional(checks.pair, "context_scale", context_scale, above=0, most=1)
        self.context_scale = None if self.union else context_scale
        min_context = checks.optional(checks.whole_number, "min_context", min_context)
        self.min_context = min_context or max(1, self.n_tokens // 6)
        self._sides = (1,) * (3 - len(self.grid)) + self.grid  # (frames, rows, columns)
        # Refuse what is impossible now, without drawing from the global random numbers
        self._sample_blocks(1, th.Generator().manual_seed(0), MAX_SIZES_AT_FIRST)

    def _sample(self, batch_size: int, generator: th.Generator | None) -> Masks:
        context, targets = self._sample_blocks(batch_size, generator, MAX_SIZES)
        return Masks(_choose_places(context, generator), _choose_places(targets, generator))

    def _sample_among(self, candidates: th.Tensor, generator: th.Generator | None) -> Masks:
        context, targets = self._sample_blocks(len(candidates), generator, MAX_SIZES)
        return Masks(context & candidates, targets & candidates[:, None])

    def _sample_blocks(
        self, batch_size: int, generator: th.Generator | None, max_sizes: int
    ) -> tuple[th.Tensor, th.Tensor]:
        """Blocks of one size, as booleans for each token."""
        for _ in range(max_sizes):
            target_size, context_size = self._draw_sizes(generator)
            context, targets = self._draw(batch_size, target_size, context_size, generator)
            fits = context.sum(dim=1) >= self.min_context
            for _ in range(MAX_REDRAWS):
                if fits.all():
                    break
                failed = (~fits).nonzero()[:, 0]
                context[failed], targets[failed] = self._draw(len(failed), target_size, context_size, generator)
                fits[failed] = context[failed].sum(dim=1) >= self.min_context
            if fits.any():
                if not fits.all():
                    fitting = fits.nonzero()[:, 0]
                    copied = fitting[th.randint(len(fitting), (batch_size - len(fitting),), generator=generator)]
                    context[~fits], targets[~fits] = context[copied], targets[copied]
                return context, targets
        raise ValueError(
            f"The blocks must leave `min_context` tokens to the context, but hardly ever do with `grid`={self.grid}, "
            f"`min_context`={self.min_context}, `n_masks`={self.n_masks}, `target_scale`={self.target_scale}, and "
            f"`context_scale`={self.context_scale}: take fewer or smaller blocks, or a larger context"
        )

    def _draw_sizes(self, generator: th.Generator | None) -> tuple[list[int], list[int] | None]:
        """The size of the blocks of a batch, of targets and of the context: frames, rows, columns."""
        frame_chance, *chances = th.rand(4, generator=generator).tolist()
        n_frames = max(1, round(self._sides[0] * _between(self.frame_scale, frame_chance)))
        target_size = self._fit(_between(self.target_scale, chances[0]), _between(self.aspect_ratio, chances[1]))
        if self.context_scale is None:
            return [n_frames, *target_size], None
        return [n_frames, *target_size], [self._sides[0], *self._fit(_between(self.context_scale, chances[2]), 1.0)]

    def _fit(self, share: float, aspect_ratio: float) -> tuple[int, int]:
        """Rows and columns of a block that is a share of a frame."""
        _, n_rows, n_columns = self._sides
        area = share * n_rows * n_columns
        rows = min(max(sqrt(area * aspect_ratio), 1.0), n_rows)
        columns = min(max(area / rows, 1.0), n_columns)
        rows = min(max(area / columns, 1.0), n_rows)
        return round(rows), round(columns)

    def _draw(
        self, batch_size: int, target_size: list[int], context_size: list[int] | None, generator: th.Generator | None
    ) -> tuple[th.Tensor, th.Tensor]:
        """Which tokens are context, ``(batch, n_tokens)``, and which are targets, ``(batch, n_masks, n_tokens)``."""
        targets = self._draw_blocks(batch_size, self.n_masks, target_size, generator)
        hidden = targets.any(dim=1)
        context = ~hidden
        if context_size is not None:
            context &= self._draw_blocks(batch_size, 1, context_size, generator)[:, 0]
        return context, hidden[:, None] if self.union else targets

    def _draw_blocks(
        self, batch_size: int, n_blocks: int, size: list[int], generator: th.Generator | None
    ) -> th.Tensor:
        inside = []
        for side, length in zip(self._sides, size, strict=True):
            start = th.randint(side - length + 1, (batch_size, n_blocks, 1), generator=generator)
            place = th.arange(side)
            inside.append((place >= start) & (place < start + length))
        frames, rows, columns = inside
        return (frames[..., None, None] & rows[..., None, :, None] & columns[..., None, None, :]).flatten(2)


def _between(ends: Sequence[float], chance: float) -> float:
    return ends[0] + chance * (ends[1] - ends[0])


def _choose(candidates: th.Tensor, n_chosen: th.Tensor, generator: th.Generator | None) -> th.Tensor:
    """So many of each row's candidates, or all if there are fewer, as booleans."""
    chances = th.rand(candidates.shape, generator=generator).masked_fill_(~candidates, 2.0)
    return candidates & (chances.argsort(dim=-1).argsort(dim=-1) < n_chosen)


def _choose_places(candidates: th.Tensor, generator: th.Generator | None) -> th.Tensor:
    """Of each row's candidates, as many as the row with the fewest has. The first ones would favour a corner."""
    counts = candidates.sum(dim=-1)
    n_places = int(counts.min())
    if n_places == counts.max():
        return candidates.nonzero()[:, -1].unflatten(0, (*counts.shape, n_places))  # Faster than to choose
    ranks = th.rand(candidates.shape, generator=generator).masked_fill_(~candidates, -1.0)
    return ranks.topk(n_places, sorted=False).indices.sort(dim=-1).values
