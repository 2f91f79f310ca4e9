"""Healthy or collapsed: one word and one sentence."""

import math
from typing import NamedTuple

# Below this embedding variance the paper speaks of collapse (JEPA for RL, arXiv 2504.16591)
COLLAPSED_VARIANCE = 1e-7
# ... or below this fraction of what it was at the start
COLLAPSED_FRACTION = 1e-3
# Low rank: variance in fewer directions than this, and an effective rank below this fraction of the dimensions. In a
# simple environment a healthy encoder may have one of the two, but not both
LOW_PARTICIPATION = 2.0
LOW_RANK_FRACTION = 1 / 10


class Verdict(NamedTuple):
    """
    :param label: ``"healthy"``, ``"low rank"``, ``"collapsed"`` or ``"diverged"``
    :param reason: A sentence that says why, with figures
    """

    label: str
    reason: str


def assess(variance: float, rank: float, participation: float, embed_dim: int, first_variance: float = 0.0) -> Verdict:
    """
    Judge an encoder by the embeddings of many observations.

    :param variance: Embedding variance
    :param rank: Effective rank
    :param participation: Participation ratio
    :param embed_dim: Width of the embedding
    :param first_variance: Embedding variance of the untrained encoder; 0 if it is not known
    :return: ``"diverged"`` if the embedding is not finite, ``"collapsed"`` if it hardly varies, ``"low rank"`` if it
        varies in hardly more than one direction
    """
    began = f", it began with {first_variance:.1e}" if first_variance > 0 else ""
    if not math.isfinite(variance):
        return Verdict("diverged", "its embeddings are NaN or infinite.")
    if variance < max(COLLAPSED_VARIANCE, COLLAPSED_FRACTION * first_variance):
        return Verdict(
            "collapsed",
            f"its embedding variance is {variance:.1e}{began}. It now tells observations hardly apart, however small "
            "the prediction loss is.",
        )
    used = f"its effective rank is {rank:.1f} of {embed_dim}"
    if participation < LOW_PARTICIPATION and rank < LOW_RANK_FRACTION * embed_dim:
        return Verdict(
            "low rank",
            f"{used}, and its embedding variance of {variance:.1e} lies in as little as {participation:.1f} directions "
            "(participation ratio). All that it tells of an observation is where it lies along these.",
        )
    return Verdict("healthy", f"its embedding variance is {variance:.1e}{began}, {used}.")
