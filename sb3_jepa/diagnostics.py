"""Gauges of what an encoder has learned."""

from collections import deque
from collections.abc import Mapping

import torch as th
from torch import nn

# So many of the latest embeddings are kept for the effective rank
N_RECENT_EMBEDDINGS = 1024


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


class ObjectiveGauge(nn.Module):
    """
    Gathers what an objective says of itself over the minibatches of an update, without waiting for the device.

    ``first_embedding_variance`` is that of the untrained encoder; 0 until then. It is a buffer, so that a run that goes
    on knows how it began, and so is ``warned_of_collapse``.
    """

    first_embedding_variance: th.Tensor
    warned_of_collapse: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first_embedding_variance", th.zeros(()))
        self.register_buffer("warned_of_collapse", th.zeros((), dtype=th.bool))
        self.reset()

    def reset(self) -> None:
        """Forget the terms and embeddings of past minibatches."""
        self._recent_embeddings: deque[th.Tensor] = deque()
        self._is_untrained = float(self.first_embedding_variance) == 0.0
        self._term_sums: dict[str, th.Tensor] = {}
        self.n_minibatches = 0
        self.n_samples = 0

    def add(self, embedding: th.Tensor, terms: Mapping[str, th.Tensor]) -> None:
        """
        :param embedding: Of a minibatch, ``(batch, embed_dim)``, without gradient
        :param terms: The objective's, without gradient, among them ``"embedding_variance"``
        """
        if self._is_untrained:
            self.first_embedding_variance.copy_(terms["embedding_variance"])
            self._is_untrained = False
        self._recent_embeddings.append(embedding)
        self.n_samples += len(embedding)
        n_kept = sum(map(len, self._recent_embeddings))
        while n_kept - len(self._recent_embeddings[0]) >= N_RECENT_EMBEDDINGS:
            n_kept -= len(self._recent_embeddings.popleft())
        for name, term in terms.items():
            self._term_sums[name] = self._term_sums[name] + term if name in self._term_sums else term
        self.n_minibatches += 1

    def means(self) -> dict[str, float]:
        """The terms, averaged over the minibatches since :meth:`reset`; empty if there was none."""
        return {name: float(term_sum) / self.n_minibatches for name, term_sum in self._term_sums.items()}

    def effective_rank(self) -> float:
        """Of the latest embeddings, see :func:`effective_rank`."""
        return float(effective_rank(th.cat(list(self._recent_embeddings))))
