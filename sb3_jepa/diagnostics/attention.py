"""Where an encoder looks."""

import math
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.parts import DictTokenizer, StandardizedPatchTokenizer, TransformerEncoder


@th.no_grad()
def attention_maps(encoder: TransformerEncoder, observations: Any) -> dict[str, th.Tensor]:
    """
    The class token's attention in the last block, where the embedding is read from all tokens, averaged over the heads.

    :param encoder: The transformer
    :param observations: What its tokenizer takes
    :return: For each key of a ``Dict`` observation (``""`` if it is none) ``(batch, frames, rows, columns)`` for an
        image, ``(batch, numbers)`` for a vector, ``(batch, variables)`` for categories. Over all keys, and with what
        the class token gives to itself, they sum to one. Places without a token have no attention: zero.
    :raises ValueError: If the encoder has no class token
    """
    if checks.instance("encoder", encoder, TransformerEncoder).class_tokens == 0:
        raise ValueError("The attention of the class token was asked for, and the encoder has none: `class_tokens=0`")
    weights: list[th.Tensor] = []
    attention = encoder.blocks[-1].attention
    hook = attention.register_forward_pre_hook(  # type: ignore[union-attr,operator]
        lambda module, inputs: weights.append(module.class_token_weights(inputs[0], inputs[2]))
    )
    try:
        # Not encoder(): a compiled encoder would not call the hook
        encoder.forward(observations)
    finally:
        hook.remove()  # type: ignore[union-attr]
    of_tokens = th.cat(weights).mean(dim=1)[:, encoder.class_tokens :]
    inputs: dict[str, tuple[nn.Module, Any]] = {"": (encoder.tokenizer, observations)}
    if isinstance(encoder.tokenizer, DictTokenizer):
        tokenizers = zip(encoder.tokenizer.keys, encoder.tokenizer.tokenizers.values(), strict=True)
        inputs = {key: (tokenizer, observations[key]) for key, tokenizer in tokenizers}
    maps = {}
    for key, (tokenizer, observed) in inputs.items():
        shape, places = _layout(tokenizer, observed)
        n_tokens = math.prod(shape) if places is None else places.shape[-1]
        part, of_tokens = of_tokens[:, :n_tokens], of_tokens[:, n_tokens:]
        if places is not None:
            part = part.new_zeros(len(part), math.prod(shape)).scatter(1, places.expand_as(part), part)
        maps[key] = part.unflatten(1, shape)
    return maps


def _layout(tokenizer: nn.Module, observations: Any) -> tuple[tuple[int, ...], th.Tensor | None]:
    """How the tokens of observations are laid out, and the places of those that there are, if some are left out."""
    places = None
    # The modules before the last one reorder and standardise the input
    while isinstance(tokenizer, nn.Sequential):
        if isinstance(tokenizer, StandardizedPatchTokenizer):
            places = tokenizer.places(observations)
        else:
            # A slice of a Sequential would make another module of its class
            for part in list(tokenizer)[:-1]:
                observations = part(observations)
        tokenizer = tokenizer[-1]
    return tokenizer.token_shape, places  # type: ignore[return-value]
