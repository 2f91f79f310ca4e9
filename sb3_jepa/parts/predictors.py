"""Predictors: from the context's embedding to a guess of the target's."""

from collections.abc import Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.parts.transformer import Block, check_heads, check_mlp_ratio


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
    :raises ValueError: If a width or ``init_gain`` is not positive
    """

    def __init__(self, embed_dim: int, action_dim: int, hidden_dim: int = 128, init_gain: float | None = None):
        super().__init__()
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        action_dim = checks.whole_number("action_dim", action_dim)
        hidden_dim = checks.whole_number("hidden_dim", hidden_dim)
        init_gain = checks.optional(checks.number, "init_gain", init_gain, above=0)
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


def position_code(grid: Sequence[int], dim: int) -> th.Tensor:
    """
    Fixed code for the places of a grid: for each axis, sines and cosines of the position at frequencies from 1 down to
    nearly 1 / 10000 (*Attention Is All You Need*, Vaswani et al. 2017, arXiv 1706.03762, section 3.5).

    :param grid: Sides of the grid
    :param dim: Width of the code. Each axis gets an equal, even part of it; zeros fill what remains.
    :return: ``(places, dim)``, the last axis running fastest
    :raises ValueError: If a side is not positive, or there are fewer than two numbers for each axis
    """
    grid, dim = checks.sizes("grid", grid), checks.whole_number("dim", dim)
    n_frequencies = dim // (2 * len(grid))
    if n_frequencies < 1:
        raise ValueError(f"`dim` must be at least {2 * len(grid)} for the {len(grid)} axes of `grid`, got {dim}")
    frequencies = 10000.0 ** (-th.arange(n_frequencies) / n_frequencies)
    positions = th.cartesian_prod(*(th.arange(side) for side in grid)).view(-1, len(grid))
    angles = positions[..., None] * frequencies  # (places, axes, frequencies)
    code = th.cat((angles.sin(), angles.cos()), dim=2).flatten(1)
    return F.pad(code, (0, dim - code.shape[1]))


class MaskedPredictor(nn.Module):
    """
    Narrow transformer that predicts hidden tokens from those that are seen. In the place of each, a learned mask token
    says that it is to be predicted, and a fixed code where it is (*I-JEPA*, Assran et al. 2023, arXiv 2301.08243,
    section 3).

    :param grid: How the tokens of an observation are laid out. Sides of 1 have no part in the code.
    :param embed_dim: Width of the context's tokens
    :param output_dim: Width of what is predicted; None for ``embed_dim``
    :param predictor_dim: Width of the predictor's own tokens
    :param depth: Number of blocks, at least 1
    :param num_heads: Attention heads per block, a divisor of ``predictor_dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of ``predictor_dim``
    :raises ValueError: If a size is not positive, ``num_heads`` does not divide ``predictor_dim``, or the latter is too
        small for a code of the places
    """

    place_code: th.Tensor

    def __init__(
        self,
        grid: Sequence[int],
        embed_dim: int,
        output_dim: int | None = None,
        predictor_dim: int = 32,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
    ):
        super().__init__()
        grid, embed_dim = checks.sizes("grid", grid), checks.whole_number("embed_dim", embed_dim)
        output_dim = checks.optional(checks.whole_number, "output_dim", output_dim) or embed_dim
        predictor_dim = checks.whole_number("predictor_dim", predictor_dim)
        depth, mlp_ratio = checks.whole_number("depth", depth), check_mlp_ratio(mlp_ratio)
        num_heads = check_heads(num_heads, "predictor_dim", predictor_dim)
        # An axis of one place needs no code
        axes = [side for side in grid if side != 1] or [1]
        if predictor_dim < 2 * len(axes):
            raise ValueError(
                f"`predictor_dim` must be at least {2 * len(axes)} for the {len(axes)} axes of `grid`, got "
                f"{predictor_dim}"
            )
        self.input = nn.Linear(embed_dim, predictor_dim)
        self.mask_token = nn.Parameter(th.zeros(predictor_dim))
        self.register_buffer("place_code", position_code(axes, predictor_dim), persistent=False)
        self.blocks = nn.ModuleList(Block(predictor_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(predictor_dim)
        self.output = nn.Linear(predictor_dim, output_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: Xavier-uniform matrices, zero biases, a small random mask token."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        context: th.Tensor,
        context_places: th.Tensor,
        target_places: th.Tensor,
        missing: th.Tensor | None = None,
        predicted: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        :param context: Tokens that are seen, ``(batch, class_tokens + n_context, embed_dim)``, class tokens first
        :param context_places: Their places without class tokens, ``(batch, n_context)``
        :param target_places: Of the hidden tokens, ``(batch, n_masks, n_targets)``
        :param missing: Places of the context that nothing is known of, ``(batch, n_context)``: neither their tokens nor
            where they are has a part in the prediction. None if there is none.
        :param predicted: Which of the target places are to be predicted, ``(batch, n_masks, n_targets)``; None for all.
            The others have no part in the prediction either.
        :return: Predicted tokens ``(batch, n_masks, n_targets, output_dim)``. No mask knows of the others.
        """
        batch_size, n_masks, n_targets = target_places.shape
        code = F.embedding(context_places, self.place_code)
        no_code = code.new_zeros(batch_size, context.shape[1] - code.shape[1], code.shape[2])
        seen = self.input(context) + th.cat((no_code, code), dim=1)
        hidden = self.mask_token + F.embedding(target_places, self.place_code)
        tokens = th.cat((seen[:, None].expand(-1, n_masks, -1, -1), hidden), dim=2).flatten(0, 1)
        if missing is not None:
            missing = F.pad(missing, (context.shape[1] - missing.shape[1], n_targets), value=False)
            missing = missing.repeat_interleave(n_masks, dim=0)
        if predicted is not None:
            left_out = F.pad(~predicted.flatten(0, 1), (context.shape[1], 0), value=False)
            missing = left_out if missing is None else left_out | missing
            # Where all tokens are missing, attend to all: a softmax over nothing is NaN
            missing = missing & ~missing.all(dim=1, keepdim=True)
        for block in self.blocks:
            tokens = block(tokens, missing=missing)
        predicted = self.output(self.norm(tokens[:, -n_targets:]))
        return predicted.unflatten(0, (batch_size, n_masks))
