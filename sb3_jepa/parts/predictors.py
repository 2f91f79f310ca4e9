"""Predictors: from the context's embedding to a guess of the target's."""

import torch as th
from torch import nn
from torch.nn import functional as F


class ActionConditionedPredictor(nn.Module):
    r"""
    Two-layer MLP that is told the action: :math:`\hat s_y = W_2\,\mathrm{relu}(W_1 s_x + W_a a + b_1) + b_2`.
    The projected action is added after the first layer (*JEPA for RL*, arXiv 2504.16591, section 3). It is kept small
    on purpose, so that the encoder has to do the work.

    :param embed_dim: Width of the embedding
    :param action_dim: Width of the encoded action (for ``Discrete``, the number of actions)
    :param hidden_dim: Hidden width
    """

    def __init__(self, embed_dim: int, action_dim: int, hidden_dim: int = 128):
        super().__init__()
        if hidden_dim <= 0:
            raise ValueError(f"`hidden_dim` must be positive, got {hidden_dim}")
        self.hidden = nn.Linear(embed_dim, hidden_dim)
        self.action = nn.Linear(action_dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, embed_dim)

    def forward(self, embedding: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param embedding: ``(batch, embed_dim)``
        :param actions: Encoded actions ``(batch, action_dim)``
        :return: Predicted embedding of the next observation ``(batch, embed_dim)``
        """
        return self.output(F.relu(self.hidden(embedding) + self.action(actions)))
