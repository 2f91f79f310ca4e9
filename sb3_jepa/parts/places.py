"""Tokens at some of their places."""

import torch as th


def take_places(tokens: th.Tensor, places: th.Tensor) -> th.Tensor:
    """
    :param tokens: ``(batch, places, dim)``
    :param places: ``(tokens,)``, the same for all, or ``(batch, tokens)``
    :return: ``(batch, tokens, dim)``
    """
    if places.dim() == 1:
        return tokens.index_select(1, places)
    # Index whole rows: PyTorch's gather looks up each number on its own
    rows = th.arange(tokens.shape[0], device=places.device)[:, None] * tokens.shape[1] + places
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (-1, places.shape[1]))
