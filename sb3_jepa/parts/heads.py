"""Heads: small networks that read something else than an embedding off embeddings."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks


class InverseDynamics(nn.Module):
    r"""
    Two-layer MLP that guesses which action led from one embedding to the next:
    :math:`\hat a = W_2\,\mathrm{relu}(W_1 [s_x, s_y] + b_1) + b_2` (*Curiosity-driven Exploration*, Pathak et al. 2017,
    arXiv 1705.05363, section 2.2).

    :param embed_dim: Width of the embedding
    :param action_dim: Width of the encoded action (for ``Discrete``, the number of actions)
    :param hidden_dim: Hidden width
    :raises ValueError: If a width is not positive
    """

    def __init__(self, embed_dim: int, action_dim: int, hidden_dim: int = 128):
        super().__init__()
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        action_dim = checks.whole_number("action_dim", action_dim)
        hidden_dim = checks.whole_number("hidden_dim", hidden_dim)
        self.hidden = nn.Linear(2 * embed_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, action_dim)

    def forward(self, embedding: th.Tensor, next_embedding: th.Tensor) -> th.Tensor:
        """
        :param embedding: ``(batch, embed_dim)``
        :param next_embedding: Of the next observation, ``(batch, embed_dim)``
        :return: Guess of the encoded action between the two, ``(batch, action_dim)``
        """
        return self.output(F.relu(self.hidden(th.cat((embedding, next_embedding), dim=1))))
