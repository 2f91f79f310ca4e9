"""Aggregator: what a sequence of views and actions says together."""

import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.parts.transformer import Block, check_heads, check_mlp_ratio


class SequenceAggregator(nn.Module):
    r"""
    Transformer over pairs of view and action, with an aggregate token [AGG] in front (*seq-JEPA*, Ghaemi, Muller,
    Bakhtiari 2025, arXiv 2505.03176, section 3):

    .. math:: u_i = [z_i ; e(a_i)], \quad u_M = [z_M ; 0], \quad z_\mathrm{AGG} = g(u_1, \ldots, u_M)

    The action that follows on the newest view is withheld, since it is not known yet. What differs from the paper: its
    blocks normalise their output, and its dropout of 0.1 is not there. (In SB3, dropout would make the policy that acts
    another one than the policy that learns.)

    :param view_dim: Width of a view's embedding
    :param action_dim: Width of an encoded action
    :param action_embed_dim: Width of an action's embedding; 0 if the aggregator is not told the actions
    :param length: Number of views at most
    :param depth: Number of blocks
    :param num_heads: Attention heads, a divisor of ``view_dim + action_embed_dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of its width
    :param order_code: Whether a learned code says how old each view is. The paper has none, so that order is known from
        the actions alone; velocities cannot be seen without it.
    :raises ValueError: If a size is not positive, or ``num_heads`` does not divide the width
    """

    def __init__(
        self,
        view_dim: int,
        action_dim: int,
        action_embed_dim: int = 16,
        length: int = 4,
        depth: int = 1,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        order_code: bool = True,
    ):
        super().__init__()
        self.view_dim, self.length = checks.whole_number("view_dim", view_dim), checks.whole_number("length", length)
        self.action_embed_dim = checks.whole_number("action_embed_dim", action_embed_dim, 0)
        self.dim = self.view_dim + self.action_embed_dim
        num_heads = check_heads(num_heads, "embed_dim + action_embed_dim", self.dim)
        depth, mlp_ratio = checks.whole_number("depth", depth), check_mlp_ratio(mlp_ratio)
        action_dim, order_code = checks.whole_number("action_dim", action_dim), checks.flag("order_code", order_code)
        is_told = self.action_embed_dim > 0
        self.action_embedding = nn.Linear(action_dim, self.action_embed_dim, bias=False) if is_told else None
        self.aggregate_token = nn.Parameter(th.zeros(self.dim))
        self.order_code = nn.Parameter(th.zeros(self.length, self.dim)) if order_code else None
        self.blocks = nn.ModuleList(Block(self.dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(self.dim)
        if self.order_code is not None:
            # As large as an embedding's differences: with 0.02, velocities are seen much later
            nn.init.normal_(self.order_code, std=0.3)

    def forward(self, views: th.Tensor, actions: th.Tensor, is_real: th.Tensor) -> th.Tensor:
        """
        :param views: Embeddings, oldest first, ``(batch, length, view_dim)``
        :param actions: Encoded actions between them, ``(batch, length - 1, action_dim)``
        :param is_real: 1 where there is a view, 0 before the begin of an episode, ``(batch, length)``
        :return: The aggregate, ``(batch, view_dim + action_embed_dim)``
        """
        tokens = views
        if self.action_embedding is not None:
            embedded = self.action_embedding(actions)
            newest = embedded.new_zeros(views.shape[0], 1, self.action_embed_dim)
            tokens = th.cat((views, th.cat((embedded, newest), dim=1)), dim=2)
        if self.order_code is not None:
            tokens = tokens + self.order_code
        tokens = th.cat((self.aggregate_token.expand(views.shape[0], 1, -1), tokens), dim=1)
        missing = th.cat((is_real.new_zeros(views.shape[0], 1, dtype=th.bool), is_real < 0.5), dim=1)
        for index, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, class_token_only=index == len(self.blocks), missing=missing)
        return self.norm(tokens[:, 0])
