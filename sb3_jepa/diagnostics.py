"""Gauges of what an encoder has learned."""

import torch as th


@th.no_grad()
def effective_rank(embeddings: th.Tensor) -> th.Tensor:
    r"""
    RankMe: :math:`\exp\left(-\sum_k p_k \log p_k\right)` with :math:`p_k = \sigma_k / \lVert\sigma\rVert_1`, the
    singular values :math:`\sigma` of the embedding matrix (Garrido et al. 2023, arXiv 2210.02885, eq. 1). Between 1,
    all embeddings on one line, and ``embed_dim``.

    :param embeddings: ``(samples, embed_dim)``, more samples than dimensions
    :return: Scalar
    :raises ValueError: If the embeddings are not two-dimensional
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must have shape (samples, embed_dim), got {tuple(embeddings.shape)}")
    singular_values = th.linalg.svdvals(embeddings)
    p = singular_values / singular_values.sum().clamp(min=th.finfo(embeddings.dtype).tiny)
    return th.exp(th.special.entr(p).sum())
