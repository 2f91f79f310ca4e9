"""What an objective returns."""

from typing import NamedTuple

import torch as th


class ObjectiveOutput(NamedTuple):
    """
    What an objective makes of a minibatch.

    :param loss: The weighted loss, a scalar
    :param terms: Its unweighted terms and gauges for the logger, scalars without gradient, among them
        ``"embedding_variance"``
    :param prediction: Predicted embeddings ``(batch, embed_dim)``; None if nothing was predicted
    :param target: What the predictor had to guess ``(batch, embed_dim)``
    :param valid: ``(batch,)``, 1 for pairs that count and 0 for those that do not; None when all do
    """

    loss: th.Tensor
    terms: dict[str, th.Tensor]
    prediction: th.Tensor | None = None
    target: th.Tensor | None = None
    valid: th.Tensor | None = None
