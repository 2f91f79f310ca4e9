"""Predictors: from the context's embedding to a guess of the target's."""

import torch as th
from torch import nn
from torch.nn import functional as F


class ActionConditionedPredictor(nn.Module):
    r"""
    Two-layer MLP that is told the action: :math:`\hat s_y = W_2\,\mathrm{relu}(W_1 s_x + W_a a + b_1) + b_2`.
    The projected action is added after the first layer (*JEPA for RL*, arXiv 2504.16591, section 3). It is kept small
    on purpose, so that the encoder has to do the work.

    The gain that it begins with decides about collapse. A predictor that begins weak lets the embedding grow until both
    agree; one that begins stronger than the future is predictable makes it shrink.

    :param embed_dim: Width of the embedding
    :param action_dim: Width of the encoded action (for ``Discrete``, the number of actions)
    :param hidden_dim: Hidden width
    :param init_gain: Gain of an orthogonal initialisation of the three matrices; ``None`` for that of ``nn.Linear``,
        whose gain is 0.6
    :raises ValueError: If ``hidden_dim`` or ``init_gain`` is not positive
    """

    def __init__(self, embed_dim: int, action_dim: int, hidden_dim: int = 128, init_gain: float | None = None):
        super().__init__()
        if hidden_dim <= 0:
            raise ValueError(f"`hidden_dim` must be positive, got {hidden_dim}")
        if init_gain is not None and not init_gain > 0:
            raise ValueError(f"`init_gain` must be positive, got {init_gain}")
        self.hidden = nn.Linear(embed_dim, hidden_dim)
        self.action = nn.Linear(action_dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, embed_dim)
        if init_gain is not None:
            for layer in (self.hidden, self.action, self.output):
                nn.init.orthogonal_(layer.weight, init_gain)

    def forward(self, embedding: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param embedding: ``(batch, embed_dim)``
        :param actions: Encoded actions ``(batch, action_dim)``
        :return: Predicted embedding of the next observation ``(batch, embed_dim)``
        """
        return self.output(F.relu(self.hidden(embedding) + self.action(actions)))
