"""What masked prediction asks of an encoder."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch as th


@runtime_checkable
class TokenEncoder(Protocol):
    """
    An encoder of tokens of which some can be hidden: a transformer over patches or columns, or a convolution over the
    cells of a grid.
    """

    @property
    def token_shape(self) -> tuple[int, ...]:
        """How the tokens of an observation are laid out, such as ``(frames, rows, columns)``."""

    @property
    def embed_dim(self) -> int:
        """Width of a token."""

    @property
    def class_tokens(self) -> int:
        """Number of class tokens, which come first in what is returned."""

    @property
    def missing_as_nan(self) -> bool:
        """Whether NaN means that an input is missing."""

    @property
    def n_inputs(self) -> list[int]:
        """Number of inputs (pixels, numbers, categories) of each token."""

    def occupied(self, observations: Any) -> th.Tensor | None:
        """
        :param observations: What the encoder takes
        :return: The tokens that hold something, ``(batch, tokens)``, of which masks are made; None if all do
        """

    def encode_tokens(self, observations: Any, places: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: What the encoder takes
        :param places: The tokens that are visible: their places ``(batch, n_visible)``; or, where samples have not as
            many, a boolean for each token, ``(batch, tokens)``; None for all. The others are as if they were not there.
        :return: Outputs of class tokens and visible tokens, ``(batch, class_tokens + n_visible, embed_dim)``; with
            booleans, of all tokens, where those of hidden tokens mean nothing
        """

    def encode_views(self, observations: Any, visible: Sequence[th.Tensor | None]) -> list[th.Tensor]:
        """
        Several views of the same observations, which may be cheaper together.

        :param observations: What the encoder takes
        :param visible: The ``places`` of :meth:`encode_tokens` for each view
        :return: What :meth:`encode_tokens` returns, for each view
        """

    def token_inputs(self, observations: Any) -> th.Tensor:
        """
        What the tokens are made of.

        :param observations: What the encoder takes
        :return: ``(batch, tokens, inputs)``, with zeros for the inputs that a token does not have
        """
