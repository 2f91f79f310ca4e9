"""Healthy or collapsed: one word and one sentence."""

from typing import NamedTuple

# Below this embedding variance the paper speaks of collapse (JEPA for RL, arXiv 2504.16591)
COLLAPSED_VARIANCE = 1e-7
# ... and this fraction of what it was at the start is no accident
COLLAPSED_FRACTION = 1e-3
# Of the dimensions of an embedding, so many at least are used by one that is healthy
LOW_RANK_FRACTION = 1 / 10


class Verdict(NamedTuple):
    """
    :param label: ``"healthy"``, ``"low rank"`` or ``"collapsed"``
    :param reason: A sentence that says why, with figures
    """

    label: str
    reason: str


def assess(variance: float, rank: float, embed_dim: int, first_variance: float) -> Verdict:
    """
    Judge an encoder by the embeddings of many observations.

    :param variance: Embedding variance
    :param rank: Effective rank
    :param embed_dim: Width of the embedding
    :param first_variance: Embedding variance of the untrained encoder; 0 if it is not known
    :return: ``"collapsed"`` if the embedding hardly varies, ``"low rank"`` if it varies in hardly any direction
    """
    began = f", it began with {first_variance:.1e}" if first_variance > 0 else ""
    if variance < max(COLLAPSED_VARIANCE, COLLAPSED_FRACTION * first_variance):
        return Verdict(
            "collapsed",
            f"its embedding variance is {variance:.1e}{began}. It now tells observations hardly apart, however small "
            "the prediction loss is.",
        )
    lowest_rank = max(2.0, LOW_RANK_FRACTION * embed_dim)
    if rank < lowest_rank:
        return Verdict(
            "low rank",
            f"its effective rank is {rank:.1f} of {embed_dim} dimensions (below {lowest_rank:.1f}), with an embedding "
            f"variance of {variance:.1e}. All that it tells of an observation lies in a few directions.",
        )
    return Verdict(
        "healthy", f"its embedding variance is {variance:.1e}{began}, its effective rank {rank:.1f} of {embed_dim}."
    )
