"""Tokenizers of numbers and categories, and of several inputs together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.parts.standardization import InputStandardization
from sb3_jepa.parts.standardized_patches import StandardizedPatchTokenizer


class ColumnTokenizer(nn.Module):
    r"""
    Numbers of a vector as tokens. By default each is one: a learned direction times the number, plus a learned code
    that says which one it is (the feature tokenizer of *FT-Transformer*, Gorishniy et al. 2021, arXiv 2106.11959,
    section 3.1). Of a long vector, a token may hold several neighbours, and is the sum of their directions times their
    numbers, plus a code, :math:`T_j = c_j + \sum_{i \in j} x_i d_i`.

    :param n_columns: Length of the vector
    :param embed_dim: Width of a token
    :param numbers_per_token: How many neighbours a token holds; the last one holds what is left
    :param missing_as_nan: Whether NaN says that a number is missing. A token is NaN then, and without gradient, if all
        its numbers are missing; where only some are, they count as 0, the mean of what is standardised. Otherwise what
        holds NaN is NaN.
    """

    def __init__(self, n_columns: int, embed_dim: int = 64, numbers_per_token: int = 1, missing_as_nan: bool = False):
        super().__init__()
        n_columns, embed_dim = checks.whole_number("n_columns", n_columns), checks.whole_number("embed_dim", embed_dim)
        numbers_per_token = checks.whole_number("numbers_per_token", numbers_per_token)
        self.n_columns, self.numbers_per_token = n_columns, numbers_per_token
        self.missing_as_nan = checks.flag("missing_as_nan", missing_as_nan)
        n_tokens = -(-n_columns // numbers_per_token)
        # Fill up the last token with zeros
        self.n_missing = n_tokens * numbers_per_token - n_columns
        self.direction = nn.Parameter(th.empty(n_columns + self.n_missing, embed_dim))
        self.code = nn.Parameter(th.empty(n_tokens, embed_dim))
        self.reset_parameters()

    @property
    def token_shape(self) -> tuple[int, ...]:
        """How the tokens of an observation are laid out: ``(tokens,)``."""
        return (len(self.code),)

    @property
    def n_inputs(self) -> list[int]:
        """Number of inputs of each token."""
        sizes = [self.numbers_per_token] * len(self.code)
        sizes[-1] -= self.n_missing
        return sizes

    def token_inputs(self, vectors: th.Tensor) -> th.Tensor:
        """
        :param vectors: As of :meth:`forward`
        :return: ``(batch, tokens, numbers_per_token)``, with zeros for what the last token lacks
        """
        # A single number may have no axis
        numbers = vectors.reshape(vectors.shape[0], -1)
        return F.pad(numbers, (0, self.n_missing)).unflatten(1, (-1, self.numbers_per_token))

    def reset_parameters(self) -> None:
        """Initialise uniformly, with the bounds that ``nn.Linear`` would have (as in FT-Transformer)."""
        bound = self.direction.shape[1] ** -0.5
        nn.init.uniform_(self.direction, -bound, bound)
        nn.init.uniform_(self.code, -bound, bound)
        # Scale down, so that the size of a token does not depend on how many numbers it holds
        with th.no_grad():
            self.direction.mul_(self.numbers_per_token**-0.5)

    @th.no_grad()
    def absorb(self, ratio: th.Tensor, shift: th.Tensor) -> None:
        """
        Make up for inputs that are standardised in another way, see
        :meth:`~sb3_jepa.parts.standardization.InputStandardization.follow`.

        :param ratio: What the weights of each number are multiplied by
        :param shift: By how much each number has moved, in its new deviations
        """
        direction = self.direction[: self.n_columns]
        direction.mul_(ratio.reshape(-1, 1))
        moved = F.pad(direction * shift.reshape(-1, 1), (0, 0, 0, self.n_missing))
        self.code.add_(moved.unflatten(0, (-1, self.numbers_per_token)).sum(dim=1))

    def forward(self, vectors: th.Tensor) -> th.Tensor:
        """
        :param vectors: ``(batch, *shape)`` of ``n_columns`` numbers each
        :return: ``(batch, tokens, embed_dim)``
        """
        inputs = self.token_inputs(vectors)
        if not self.missing_as_nan:
            return self._embed(inputs)
        is_nan = inputs.isnan()
        # Fill with 0: since 0 * NaN is NaN, a token that is left out would still spoil the gradient of its direction
        tokens = self._embed(inputs.masked_fill(is_nan, 0.0))
        if self.n_missing > 0:
            is_nan[:, -1, -self.n_missing :] = True
        return tokens.masked_fill(is_nan.all(dim=2, keepdim=True), th.nan)

    def _embed(self, inputs: th.Tensor) -> th.Tensor:
        if self.numbers_per_token == 1:
            return th.addcmul(self.code, inputs, self.direction)
        direction = self.direction.unflatten(0, (-1, self.numbers_per_token))  # (tokens, numbers, embed_dim)
        return th.baddbmm(self.code[:, None], inputs.transpose(0, 1), direction).transpose(0, 1)


class StandardizedColumnTokenizer(nn.Sequential):
    """
    Standardised numbers as tokens. Their statistics follow the data.

    :param standardization: Of the numbers, each on its own
    :param tokenizer: Of what is standardised
    """

    def __init__(self, standardization: InputStandardization, tokenizer: ColumnTokenizer):
        checks.instance("standardization", standardization, InputStandardization)
        super().__init__(standardization, checks.instance("tokenizer", tokenizer, ColumnTokenizer))

    def follow(self, vectors: th.Tensor) -> None:
        """
        Let the statistics follow the data; tokens stay as they are, see
        :meth:`~sb3_jepa.parts.standardization.InputStandardization.follow`.

        :param vectors: ``(batch, *shape)``
        """
        self[1].absorb(*self[0].follow(vectors))  # type: ignore[operator]


class CategoryTokenizer(nn.Module):
    """
    Each categorical variable is a token: the learned embedding of its category. Of many variables, a token may hold
    several neighbours, and is the sum of their embeddings, plus a code that says which ones they are.

    :param sizes: Number of categories of each variable
    :param embed_dim: Width of a token
    :param variables_per_token: How many neighbours a token holds; the last one holds what is left
    """

    def __init__(self, sizes: Sequence[int], embed_dim: int = 64, variables_per_token: int = 1):
        super().__init__()
        sizes, embed_dim = checks.sizes("sizes", sizes), checks.whole_number("embed_dim", embed_dim)
        variables_per_token = checks.whole_number("variables_per_token", variables_per_token)
        starts = range(0, len(sizes), variables_per_token)
        # Number of categories of all variables of a token
        self.sizes = [sum(sizes[start : start + variables_per_token]) for start in starts]
        self.variables_per_token = variables_per_token
        self.embedding = nn.Parameter(th.empty(sum(self.sizes), embed_dim))
        self.code = nn.Parameter(th.zeros(len(self.sizes), embed_dim)) if variables_per_token > 1 else None
        self.reset_parameters()

    @property
    def token_shape(self) -> tuple[int, ...]:
        """How the tokens of an observation are laid out: ``(tokens,)``."""
        return (len(self.sizes),)

    @property
    def n_inputs(self) -> list[int]:
        """Number of inputs of each token."""
        return self.sizes

    def token_inputs(self, one_hot: th.Tensor) -> th.Tensor:
        """
        :param one_hot: As of :meth:`forward`
        :return: ``(batch, tokens, categories)``, with zeros for the categories that a token does not have
        """
        width = max(self.sizes)
        variables = one_hot.flatten(1).split(self.sizes, dim=1)
        return th.stack([F.pad(variable, (0, width - variable.shape[1])) for variable in variables], dim=1)

    def reset_parameters(self) -> None:
        """Initialise uniformly, as :class:`ColumnTokenizer`."""
        bound = (self.embedding.shape[1] * self.variables_per_token) ** -0.5
        nn.init.uniform_(self.embedding, -bound, bound)

    def forward(self, one_hot: th.Tensor) -> th.Tensor:
        """
        :param one_hot: One-hot vectors of the variables, one after the other: ``(batch, sum of the sizes)``
        :return: ``(batch, tokens, embed_dim)``
        """
        variables = one_hot.flatten(1).split(self.sizes, dim=1)
        embeddings = self.embedding.split(self.sizes)
        tokens = th.stack(
            [variable @ embedding for variable, embedding in zip(variables, embeddings, strict=True)], dim=1
        )
        return tokens if self.code is None else tokens + self.code


class DictTokenizer(nn.Module):
    """
    The tokens of several inputs in one sequence, each with a learned code that says which input it comes from.

    :param tokenizers: One for each key of an observation
    :param embed_dim: Width of a token
    """

    def __init__(self, tokenizers: Mapping[str, nn.Module], embed_dim: int = 64):
        super().__init__()
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        if not isinstance(tokenizers, Mapping) or not tokenizers:
            checks.refuse("tokenizers", "a dictionary with a tokenizer for each key", tokenizers)
        self.keys = sorted(tokenizers)
        # Name modules by their keys. PyTorch refuses dots, and names such as "pop"
        self.tokenizers = nn.ModuleDict({_module_name(key): tokenizers[key] for key in self.keys})
        self.type_code = nn.Parameter(th.empty(len(self.keys), embed_dim))
        nn.init.normal_(self.type_code, std=0.02)

    @property
    def by_key(self) -> dict[str, nn.Module]:
        """The tokenizers by the keys of an observation."""
        return dict(zip(self.keys, self.tokenizers.values(), strict=True))

    @property
    def token_shape(self) -> tuple[int, ...]:
        """How the tokens of an observation are laid out: in one sequence, ``(tokens of all keys,)``."""
        return (len(self.n_inputs),)

    @property
    def n_inputs(self) -> list[int]:
        """Number of inputs of each token."""
        return [n for tokenizer in self.tokenizers.values() for n in n_inputs(tokenizer)]

    def token_inputs(self, observations: Mapping[str, th.Tensor], keys: Sequence[str] | None = None) -> th.Tensor:
        """
        :param observations: As of :meth:`forward`
        :param keys: As of :meth:`forward`
        :return: ``(batch, tokens of these keys, inputs)``, with zeros for the inputs that a token does not have
        """
        inputs = [
            token_inputs(tokenizer, observations[key])
            for key, tokenizer in self.by_key.items()
            if keys is None or key in keys
        ]
        width = max(one.shape[2] for one in inputs)
        return th.cat([F.pad(one, (0, width - one.shape[2])) for one in inputs], dim=1)

    def forward(self, observations: Mapping[str, th.Tensor], keys: Sequence[str] | None = None) -> th.Tensor:
        """
        :param observations: ``(batch, *shape)`` for each key
        :param keys: Of which keys tokens are made; all by default
        :return: ``(batch, tokens of these keys, embed_dim)``, in the alphabetical order of the keys
        """
        return th.cat(
            [
                tokenizer(observations[key]) + code
                for key, tokenizer, code in zip(self.keys, self.tokenizers.values(), self.type_code, strict=True)
                if keys is None or key in keys
            ],
            dim=1,
        )


def follow(tokenizer: nn.Module, observations: Any) -> None:
    """
    Let the input statistics that do so follow the data; tokens stay as they are.

    :param tokenizer: Any of these, or a ``Sequential`` that ends with one
    :param observations: What it takes; of a ``Dict``, keys that have no such statistics may be missing
    """
    if isinstance(tokenizer, DictTokenizer):
        for key, one in tokenizer.by_key.items():
            if key in observations:
                follow(one, observations[key])
    elif hasattr(tokenizer, "follow"):
        tokenizer.follow(observations)  # type: ignore[operator]
    elif type(tokenizer) is nn.Sequential:
        *before, last = tokenizer
        for module in before:
            observations = module(observations)
        follow(last, observations)


def _last(tokenizer: nn.Module) -> Any:
    # The modules before the last one reorder and standardise the input
    while isinstance(tokenizer, nn.Sequential):
        tokenizer = tokenizer[-1]
    return tokenizer


def token_shape(tokenizer: nn.Module) -> tuple[int, ...]:
    """
    :param tokenizer: Any of these, or a ``Sequential`` that ends with one
    :return: How the tokens of an observation are laid out
    """
    return _last(tokenizer).token_shape


def n_inputs(tokenizer: nn.Module) -> list[int]:
    """
    :param tokenizer: Any of these, or a ``Sequential`` that ends with one
    :return: Number of inputs (pixels, numbers, categories) of each token
    """
    return _last(tokenizer).n_inputs


def token_inputs(tokenizer: nn.Module, observations: Any) -> th.Tensor:
    """
    :param tokenizer: Any of these, or a ``Sequential`` that ends with one
    :param observations: What it takes
    :return: What it makes tokens of, ``(batch, tokens, inputs)``
    """
    if isinstance(tokenizer, nn.Sequential) and not isinstance(tokenizer, StandardizedPatchTokenizer):
        *before, last = tokenizer
        for module in before:
            observations = module(observations)
        return token_inputs(last, observations)
    return tokenizer.token_inputs(observations)  # type: ignore[operator]


def _module_name(key: str) -> str:
    # Escape what would give two keys the same name
    return "key_" + key.replace("%", "%25").replace(".", "%2E")
