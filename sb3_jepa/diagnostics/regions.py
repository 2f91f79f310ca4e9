"""How well the tokens of an image tell its regions apart."""

import math
from collections.abc import Sequence

import torch as th
from torch.nn import functional as F

from sb3_jepa.common import checks


@th.no_grad()
def similarity_gap(tokens: th.Tensor, regions: th.Tensor, grid: Sequence[int]) -> th.Tensor:
    """
    How much more similar adjacent tokens are within a region than across the border between two: the mean cosine of
    the pairs of one kind minus that of the other (the claim of *DMT-JEPA*, Mo and Yun 2024, arXiv 2405.17995). Tokens
    are adjacent if they follow each other along one axis of the grid; all images count as one.

    :param tokens: ``(batch, tokens, dim)``
    :param regions: Label of the region that each token is in, ``(batch, tokens)``, whole numbers
    :param grid: How the tokens are laid out, such as ``(rows, columns)``
    :return: Scalar between -2 and 2; NaN if all pairs are of one kind
    :raises ValueError: If the shapes do not fit each other
    """
    if tokens.ndim != 3 or regions.shape != tokens.shape[:2]:
        raise ValueError(
            "tokens must have shape (batch, tokens, dim) and regions (batch, tokens), "
            f"got {tuple(tokens.shape)} and {tuple(regions.shape)}"
        )
    grid = checks.sizes("grid", grid)
    if math.prod(grid) != tokens.shape[1]:
        raise ValueError(f"`grid` must have as many places as there are tokens, {tokens.shape[1]}, got {grid}")
    tokens, regions = tokens.unflatten(1, grid), regions.unflatten(1, grid)
    cosines, is_within = [], []
    for axis, size in enumerate(grid, start=1):
        one, other = (tokens.narrow(axis, start, size - 1) for start in (0, 1))
        region, other_region = (regions.narrow(axis, start, size - 1) for start in (0, 1))
        cosines.append(F.cosine_similarity(one, other, dim=-1).flatten())
        is_within.append((region == other_region).flatten())
    cosine, within = th.cat(cosines), th.cat(is_within)
    # NaN if there are no pairs of one kind
    return cosine[within].mean() - cosine[~within].mean()
