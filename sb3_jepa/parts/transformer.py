"""A small pre-norm vision transformer whose class token is the embedding."""

import math
from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.parts.places import take_places
from sb3_jepa.parts.tokenizers import n_inputs, token_inputs, token_shape

OUTPUTS = ("class_token", "mean", "per_token", "flat")
# More tokens at once would not fit into a processor's cache
MAX_TOKENS_ON_CPU = 6144
# A larger ratio is a mistake, and would end in a memory error
MAX_MLP_RATIO = 1024


class Attention(nn.Module):
    """
    Multi-head self-attention with one fused projection for queries, keys and values.

    :param dim: Width of a token
    :param num_heads: Number of attention heads, a divisor of ``dim``
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        # The fast kernel has no second derivative, which TRPO needs
        self.is_differentiable_twice = False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _split_heads(self, tokens: th.Tensor) -> th.Tensor:
        # (batch, tokens, dim) -> (batch, heads, tokens, dim / heads)
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def class_token_weights(self, tokens: th.Tensor, missing: th.Tensor | None = None) -> th.Tensor:
        r"""
        What the class token attends to. Its query asks all tokens at once: instead of a key for each token,
        :math:`q^T (W_k x_i)`, there is one question in the space of the tokens, :math:`(W_k^T q)^T x_i`. (The bias of
        the keys adds the same to all, and so nothing.)

        :param tokens: ``(batch, tokens, dim)``, the class token first
        :param missing: Tokens that are not attended to, ``(batch, tokens)``
        :return: ``(batch, heads, tokens)``, which sum to one over the tokens
        """
        dim = tokens.shape[-1]
        query = F.linear(tokens[:, 0], self.qkv.weight[:dim], self.qkv.bias[:dim])
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # (heads, batch, dim / heads)
        key_weight = self.qkv.weight[dim : 2 * dim].unflatten(0, (self.num_heads, -1))
        question = (query * query.shape[-1] ** -0.5) @ key_weight  # (heads, batch, dim)
        scores = question.transpose(0, 1) @ tokens.transpose(1, 2)
        return (scores if missing is None else scores.masked_fill(missing[:, None], -th.inf)).softmax(dim=-1)

    def _attend_class_token(self, tokens: th.Tensor, missing: th.Tensor | None) -> th.Tensor:
        # Project the weighted mean of the tokens, instead of the value of each
        dim = tokens.shape[-1]
        mean = self.class_token_weights(tokens, missing) @ tokens  # (batch, heads, dim)
        value_weight = self.qkv.weight[2 * dim :].unflatten(0, (self.num_heads, -1))
        attended = mean.transpose(0, 1) @ value_weight.transpose(1, 2)  # (heads, batch, dim / heads)
        return attended.transpose(0, 1).flatten(1)[:, None] + self.qkv.bias[2 * dim :]

    def forward(self, tokens: th.Tensor, class_token_only: bool = False, missing: th.Tensor | None = None) -> th.Tensor:
        """
        :param tokens: ``(batch, tokens, dim)``
        :param class_token_only: Compute the output of the first token only. It still attends to all tokens, so the
            result is that of the full attention, at a fraction of the price: there are neither keys nor values.
        :param missing: Tokens that are not attended to, ``(batch, tokens)``; never all of a row. None if there is none.
        :return: ``(batch, tokens, dim)``, or ``(batch, 1, dim)`` for the class token only
        """
        if class_token_only:
            return self.proj(self._attend_class_token(tokens, missing))
        query, key, value = map(self._split_heads, self.qkv(tokens).chunk(3, dim=-1))
        if self.is_differentiable_twice:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            if missing is not None:
                scores = scores.masked_fill(missing[:, None, None], -th.inf)
            attended = scores.softmax(dim=-1) @ value
        else:
            attends_to = None if missing is None else ~missing[:, None, None]
            attended = F.scaled_dot_product_attention(query, key, value, attends_to)
        return self.proj(attended.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """
    Pre-norm transformer block: attention and a two-layer MLP, each with a residual connection.

    :param dim: Width of a token
    :param num_heads: Number of attention heads
    :param mlp_ratio: Hidden width of the MLP as a multiple of ``dim``
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, int(mlp_ratio * dim)), nn.GELU(), nn.Linear(int(mlp_ratio * dim), dim))

    def forward(self, tokens: th.Tensor, class_token_only: bool = False, missing: th.Tensor | None = None) -> th.Tensor:
        """
        :param tokens: ``(batch, tokens, dim)``
        :param class_token_only: Return the class token alone, see :class:`Attention`
        :param missing: Tokens that are not attended to, ``(batch, tokens)``; never all of a row. None if there is none.
        :return: ``(batch, tokens, dim)``, or ``(batch, 1, dim)`` for the class token only
        """
        residual = tokens[:, :1] if class_token_only else tokens
        tokens = residual + self.attention(self.attention_norm(tokens), class_token_only, missing)
        return tokens + self.mlp(self.mlp_norm(tokens))


def check_heads(num_heads: int, width_name: str, width: int, name: str = "num_heads") -> int:
    """
    :param num_heads: Number of attention heads
    :param width_name: The name of what they have to divide
    :param width: What they have to divide
    :param name: What the number is called
    :return: The number
    :raises ValueError: If it is no positive whole number, or does not divide the width
    """
    num_heads = checks.whole_number(name, num_heads)
    if width % num_heads != 0:
        raise ValueError(f"`{name}` must divide `{width_name}`, got {name}={num_heads} and {width_name}={width}")
    return num_heads


def check_mlp_ratio(mlp_ratio: float) -> float:
    """
    :param mlp_ratio: Hidden width of an MLP as a multiple of its input's
    :return: The same
    :raises ValueError: If it is not positive, or too large for any memory
    """
    return checks.number("mlp_ratio", mlp_ratio, above=0, most=MAX_MLP_RATIO)


class TokenReadout(nn.Module):
    """
    A number for each token, with weights of its own (``linear_per_feature`` in *T-JEPA*, arXiv 2410.05016).

    :param n_tokens: Number of tokens
    :param dim: Width of a token
    """

    def __init__(self, n_tokens: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(th.empty(n_tokens, dim))
        self.bias = nn.Parameter(th.zeros(n_tokens))
        # After a LayerNorm, each number then begins with a variance of one
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, tokens: th.Tensor) -> th.Tensor:
        """
        :param tokens: ``(batch, tokens, dim)``
        :return: ``(batch, tokens)``
        """
        return (tokens * self.weight).sum(dim=2) + self.bias


class TransformerEncoder(nn.Module):
    """
    Tokens and learnable class tokens through a stack of blocks. By default there is one, and its output is the
    embedding ``s`` (*JEPA for RL*, arXiv 2504.16591, section 3).

    Where only the class token is read, the last block computes its query, projection and MLP for that token alone:
    exact, and at depth 2 nearly half of the work saved.

    :param tokenizer: Module that turns an observation into ``(batch, tokens, embed_dim)``
    :param embed_dim: Width of the tokens
    :param depth: Number of blocks, at least 1
    :param num_heads: Attention heads per block, a divisor of ``embed_dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of ``embed_dim``
    :param final_norm: Whether a LayerNorm closes the stack, as in the original ViT. It gives each embedding a variance
        of one over its dimensions, and with that bounds the embedding variance, over the batch, by about one.
    :param class_tokens: Number of class tokens. They say nothing of the observation, are always visible, and gather
        what all of it says (the [REG] tokens of *T-JEPA*, arXiv 2410.05016).
    :param output: What is made of the tokens: ``"class_token"``, the first one; ``"mean"`` of the observation's
        tokens; ``"per_token"``, a number for each token, with learned weights; ``"flat"``, all of them, one after
        the other. The class tokens come first in the last two.
    :param missing_as_nan: Whether NaN means that an input is missing. Its token is left out then.
    :raises ValueError: If a size is not positive, ``num_heads`` does not divide ``embed_dim``, ``output`` is none of
        these, or it is ``"class_token"`` and there is none
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        embed_dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        final_norm: bool = True,
        class_tokens: int = 1,
        output: str = "class_token",
        missing_as_nan: bool = False,
    ):
        super().__init__()
        embed_dim, depth = checks.whole_number("embed_dim", embed_dim), checks.whole_number("depth", depth)
        num_heads, mlp_ratio = check_heads(num_heads, "embed_dim", embed_dim), check_mlp_ratio(mlp_ratio)
        self.output = checks.choice("output", output, OUTPUTS)
        class_tokens = checks.whole_number("class_tokens", class_tokens, 0)
        if class_tokens == 0 and output == "class_token":
            raise ValueError('`class_tokens` must be at least 1 for `output="class_token"`, got 0')
        final_norm = checks.flag("final_norm", final_norm)
        self.missing_as_nan = checks.flag("missing_as_nan", missing_as_nan)
        self.tokenizer = checks.instance("tokenizer", tokenizer, nn.Module)
        self.class_token = nn.Parameter(th.zeros(1, class_tokens, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim) if final_norm else nn.Identity()
        self.readout = TokenReadout(class_tokens + self.n_tokens, embed_dim) if output == "per_token" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: Xavier-uniform matrices, zero biases, a small random class token (as in the original ViT)."""
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_token, std=0.02)

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self.class_token.shape[2]

    @property
    def class_tokens(self) -> int:
        """Number of class tokens."""
        return self.class_token.shape[1]

    @property
    def token_shape(self) -> tuple[int, ...]:
        """See :attr:`TokenEncoder.token_shape`."""
        return token_shape(self.tokenizer)

    @property
    def n_inputs(self) -> list[int]:
        """Number of inputs (pixels, numbers, categories) of each token."""
        return n_inputs(self.tokenizer)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of an observation, without class tokens."""
        return math.prod(self.token_shape)

    @property
    def output_dim(self) -> int:
        """Width of what :meth:`forward` returns."""
        if self.output == "per_token":
            return self.class_tokens + self.n_tokens
        return self.embed_dim * (self.class_tokens + self.n_tokens) if self.output == "flat" else self.embed_dim

    @property
    def is_differentiable_twice(self) -> bool:
        """Whether its attention has a second derivative."""
        return any(block.attention.is_differentiable_twice for block in self.blocks)  # type: ignore[union-attr,operator]

    def forward(self, observations: Any) -> th.Tensor:
        """
        :param observations: What the tokenizer takes
        :return: Embedding ``(batch, output_dim)``
        """
        tokens, missing = self._complete(self.tokenizer(observations))
        if self.output == "class_token":
            return self._in_parts(self._embed_class_token, tokens, missing)
        tokens = self._in_parts(self._embed_tokens, tokens, missing)
        present = None if missing is None else ~missing[..., None]
        if self.output == "mean":
            tokens = tokens[:, self.class_tokens :]
            if present is None:
                return tokens.mean(dim=1)
            present = present[:, self.class_tokens :]
            return (tokens * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
        if present is not None:
            tokens = tokens * present
        return tokens.flatten(1) if self.readout is None else self.readout(tokens)

    def occupied(self, observations: Any) -> None:
        """None: all tokens hold something, see :meth:`TokenEncoder.occupied`."""

    def encode_tokens(self, observations: Any, places: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`TokenEncoder.encode_tokens`."""
        (tokens,) = self.encode_views(observations, [places])
        return tokens

    def encode_views(self, observations: Any, visible: Sequence[th.Tensor | None]) -> list[th.Tensor]:
        """See :meth:`TokenEncoder.encode_views`; the tokens are made once."""
        tokens = self.tokenizer(observations)
        return [self._in_parts(self._embed_tokens, *self._view(tokens, places)) for places in visible]

    def _view(self, tokens: th.Tensor, places: th.Tensor | None) -> tuple[th.Tensor, th.Tensor | None]:
        if places is None or places.dtype != th.bool:
            return self._complete(tokens if places is None else take_places(tokens, places))
        # Leave out hidden tokens in the same way as missing ones
        tokens, missing = self._complete(tokens)
        hidden = F.pad(~places, (self.class_tokens, 0))
        hidden = hidden if missing is None else hidden | missing
        return tokens, hidden & ~hidden.all(dim=1, keepdim=True)

    def token_inputs(self, observations: Any) -> th.Tensor:
        """See :meth:`TokenEncoder.token_inputs`: standardised pixels or numbers, or a one-hot category."""
        return token_inputs(self.tokenizer, observations)

    def _complete(self, tokens: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """Tokens with the class tokens in front, and which of them are missing."""
        tokens = th.cat((self.class_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        if not self.missing_as_nan:
            return tokens, None
        missing = tokens[..., 0].isnan()
        # If all is missing and there is no class token, attend to zeros: a softmax over nothing is NaN
        return tokens.masked_fill(missing[..., None], 0.0), missing & ~missing.all(dim=1, keepdim=True)

    @staticmethod
    def _in_parts(embed: Any, tokens: th.Tensor, missing: th.Tensor | None) -> th.Tensor:
        # A compiled graph is for any number of tokens
        if tokens.device.type != "cpu" or th.compiler.is_compiling():
            return embed(tokens, missing)
        n_parts = -(-tokens.shape[0] * tokens.shape[1] // MAX_TOKENS_ON_CPU)
        if n_parts <= 1:
            return embed(tokens, missing)
        parts = tokens.chunk(n_parts)
        missing_parts = [None] * len(parts) if missing is None else missing.chunk(n_parts)
        return th.cat([embed(*part) for part in zip(parts, missing_parts, strict=True)])

    def _embed_class_token(self, tokens: th.Tensor, missing: th.Tensor | None) -> th.Tensor:
        for block in self.blocks[:-1]:
            tokens = block(tokens, missing=missing)
        class_token = self.blocks[-1](tokens, class_token_only=True, missing=missing)
        return self.norm(class_token[:, 0])

    def _embed_tokens(self, tokens: th.Tensor, missing: th.Tensor | None) -> th.Tensor:
        for block in self.blocks:
            tokens = block(tokens, missing=missing)
        return self.norm(tokens)
