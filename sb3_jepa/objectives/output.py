"""What an objective gets, and what it returns."""

from typing import Any, NamedTuple

import torch as th
from torch import nn


class ObjectiveInput(NamedTuple):
    """
    What an objective learns from: a minibatch, and the encoder that sees it. Each objective takes what it needs.

    :param encoder: The context encoder
    :param observations: Preprocessed observations, what the encoder takes
    :param embedding: Context embedding ``(batch, embed_dim)``, with its gradient; None if it was not computed, for
        an objective that needs none
    :param actions: Encoded actions ``(batch, action_dim)``, for a horizon above 1 ``(batch, horizon, action_dim)``;
        None if they are not known
    :param next_observations: What the encoder takes, of the next time step; for a horizon above 1 of all steps,
        ``(batch * horizon, ...)``, the steps of one sample after those of another; None if that is not known
    :param valid: Weights of the pairs, ``(batch,)``, or ``(batch, horizon)`` for a window: 1 where the next observation
        belongs to the same episode and is known, else 0; None if all are 1
    :param target: Target embedding of the next observations ``(batch, embed_dim)``, for a horizon above 1
        ``(batch, horizon, embed_dim)``, where it is known already
    :param rewards: What each step brought, shaped as ``valid``; None unless the objective needs it
    :param ends: 1 where a step ended its episode, and not for want of time, 0 in the steps of a window after that,
        shaped as ``valid``; None unless the objective needs it
    """

    encoder: nn.Module
    observations: Any
    embedding: th.Tensor | None = None
    actions: th.Tensor | None = None
    next_observations: Any = None
    valid: th.Tensor | None = None
    target: th.Tensor | None = None
    rewards: th.Tensor | None = None
    ends: th.Tensor | None = None


class ObjectiveOutput(NamedTuple):
    """
    What an objective makes of a minibatch.

    :param loss: The weighted loss, a scalar
    :param terms: Its unweighted terms for the logger, scalars without gradient, among them
        ``"embedding_variance"`` if there was an embedding
    :param prediction: Predicted embeddings ``(batch, embed_dim)``, for a horizon above 1 those of the first step; None
        if something else was predicted than one embedding for each sample
    :param target: What the predictor had to guess ``(batch, embed_dim)``
    :param valid: Weights of these pairs ``(batch,)``, as of :class:`ObjectiveInput`
    """

    loss: th.Tensor
    terms: dict[str, th.Tensor]
    prediction: th.Tensor | None = None
    target: th.Tensor | None = None
    valid: th.Tensor | None = None
