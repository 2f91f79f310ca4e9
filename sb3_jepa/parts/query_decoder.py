"""Decoder of several steps at once: a learned query for each, which reads the context's tokens."""

import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.parts.transformer import check_heads


class QueryDecoder(nn.Module):
    """
    Transformer decoder with a learned query for each step, which attends to the other queries and to the context
    (*ACT*, Zhao et al. 2023, arXiv 2304.13705, section IV-C; *ACT-JEPA*, Vujinovic, Kovacevic 2025, arXiv 2501.14622,
    whose predictor and action decoder are two of these). Its blocks normalise their inputs, and have no dropout.

    :param n_queries: Number of steps
    :param context_dim: Width of the context's tokens
    :param output_dim: Width of what is decoded for a step
    :param dim: Width of the queries
    :param depth: Number of blocks
    :param num_heads: Attention heads, a divisor of ``dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of ``dim``
    :raises ValueError: If a size is not positive, or ``num_heads`` does not divide ``dim``
    """

    def __init__(
        self,
        n_queries: int,
        context_dim: int,
        output_dim: int,
        dim: int = 64,
        depth: int = 1,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        n_queries, depth = checks.whole_number("n_queries", n_queries), checks.whole_number("depth", depth)
        context_dim, output_dim = (
            checks.whole_number("context_dim", context_dim),
            checks.whole_number("output_dim", output_dim),
        )
        dim = checks.whole_number("dim", dim)
        num_heads = check_heads(num_heads, "dim", dim)
        mlp_ratio = checks.number("mlp_ratio", mlp_ratio, above=0)
        self.input = nn.Linear(context_dim, dim) if context_dim != dim else nn.Identity()
        self.queries = nn.Parameter(th.randn(n_queries, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim, num_heads, int(mlp_ratio * dim), 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, output_dim)

    def forward(self, context: th.Tensor) -> th.Tensor:
        """
        :param context: ``(batch, tokens, context_dim)``
        :return: ``(batch, n_queries, output_dim)``
        """
        memory = self.input(context)
        tokens = self.queries.expand(len(context), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, memory)
        return self.output(self.norm(tokens))
