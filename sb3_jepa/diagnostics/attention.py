"""Where an encoder looks."""

import math
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.parts import DictTokenizer, TransformerEncoder


@th.no_grad()
def attention_maps(encoder: TransformerEncoder, observations: Any) -> dict[str, th.Tensor]:
    """
    The class token's attention in the last block, where the embedding is read from all tokens, averaged over the heads.

    :param encoder: The transformer
    :param observations: What its tokenizer takes
    :return: For each key of a ``Dict`` observation (``""`` if it is none) ``(batch, frames, rows, columns)`` for an
        image, ``(batch, numbers)`` for a vector, ``(batch, variables)`` for categories. Over all keys, and with what
        the class token gives to itself, they sum to one.
    """
    weights: list[th.Tensor] = []
    attention = encoder.blocks[-1].attention
    hook = attention.register_forward_pre_hook(  # type: ignore[union-attr,operator]
        lambda module, inputs: weights.append(module.class_token_weights(inputs[0]))
    )
    try:
        encoder(observations)
    finally:
        hook.remove()  # type: ignore[union-attr]
    of_tokens = weights[0].mean(dim=1)[:, 1:]
    tokenizer = encoder.tokenizer
    tokenizers: dict[str, nn.Module] = {"": tokenizer}
    if isinstance(tokenizer, DictTokenizer):
        tokenizers = dict(zip(tokenizer.keys, tokenizer.tokenizers.values(), strict=True))
    shapes = {key: _token_shape(one) for key, one in tokenizers.items()}
    parts = of_tokens.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {key: part.unflatten(1, shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}


def _token_shape(tokenizer: nn.Module) -> tuple[int, ...]:
    # What reorders and standardises the input comes before
    while isinstance(tokenizer, nn.Sequential):
        tokenizer = tokenizer[-1]
    return tokenizer.token_shape  # type: ignore[return-value]
