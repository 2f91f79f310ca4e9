import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_jepa import JepaExtractor
from sb3_jepa.diagnostics import attention_maps
from sb3_jepa.parts import PatchTokenizer, TransformerEncoder

IMAGE = spaces.Box(0, 255, (3, 20, 24), np.uint8)
SMALL = dict(embed_dim=16, num_heads=2, patch_size=8, standardize_frames=0)


def make_encoder(space: spaces.Space, **kwargs) -> TransformerEncoder:
    th.manual_seed(0)
    return JepaExtractor(space, **{**SMALL, **kwargs}).encoder


def by_hand(encoder: TransformerEncoder, observations) -> th.Tensor:
    """Weights of the class token in the last block, ``(batch, 1 + tokens)``, from the formula of attention."""
    with th.no_grad():
        tokens = encoder.tokenizer(observations)
        tokens = th.cat((encoder.class_token.expand(len(tokens), -1, -1), tokens), dim=1)
        for block in encoder.blocks[:-1]:
            tokens = block(tokens)
        last = encoder.blocks[-1]
        attention = last.attention
        query, key, _ = attention.qkv(last.attention_norm(tokens)).chunk(3, dim=-1)
        width = query.shape[-1] // attention.num_heads
        weights = []
        for head in range(attention.num_heads):
            columns = slice(head * width, (head + 1) * width)
            scores = th.einsum("bd,btd->bt", query[:, 0, columns], key[:, :, columns]) / math.sqrt(width)
            weights.append(th.softmax(scores, dim=-1))
    return th.stack(weights).mean(dim=0)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(
    ("frames_as", "layout"), [("tokens", (3, 3, 3)), ("channels", (1, 3, 3)), ("changes", (1, 3, 3))]
)
def test_of_an_image(frames_as, layout, depth):
    encoder = make_encoder(IMAGE, frames_as=frames_as, depth=depth)
    images = th.rand(4, 3, 20, 24)
    (maps,) = attention_maps(encoder, images).values()
    assert maps.shape == (4, *layout)
    weights = by_hand(encoder, images)
    # In the order in which the tokenizer makes the tokens: frame, row, column
    assert th.allclose(maps.flatten(1), weights[:, 1:], atol=1e-6)
    # Together with what the class token gives to itself
    assert th.allclose(maps.sum(dim=(1, 2, 3)) + weights[:, 0], th.ones(4), atol=1e-6)
    assert (maps > 0).all()
    assert not maps.requires_grad


@pytest.mark.parametrize(
    ("space", "layout"),
    [
        (spaces.Box(-1, 1, (5,)), (5,)),
        (spaces.Box(-1, 1, (2, 3)), (6,)),
        (spaces.MultiBinary(4), (4,)),
        (spaces.Discrete(4), (1,)),
        (spaces.MultiDiscrete([3, 2]), (2,)),
        (spaces.Box(0, 255, (2, 20, 24, 3), np.uint8), (1, 3, 3)),
    ],
    ids=str,
)
def test_of_everything_else(space, layout):
    encoder = make_encoder(space)
    observations = th.rand(4, *space.shape)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        observations = th.rand(4, spaces.flatdim(space))
    maps = attention_maps(encoder, observations)
    assert list(maps) == [""]
    assert maps[""].shape == (4, *layout)
    assert th.allclose(maps[""].flatten(1), by_hand(encoder, observations)[:, 1:], atol=1e-6)


def test_of_a_dict():
    # Neither the order of the space nor names that PyTorch takes ill matter
    space = spaces.Dict({"speed.x": spaces.Box(-1, 1, (3,)), "camera": IMAGE, "pop": spaces.MultiDiscrete([3, 2, 2])})
    encoder = make_encoder(space, frames_as="tokens")
    observations = {"speed.x": th.rand(4, 3), "camera": th.rand(4, 3, 20, 24), "pop": th.rand(4, 7)}
    maps = attention_maps(encoder, observations)
    assert {key: tuple(one.shape[1:]) for key, one in maps.items()} == dict(
        zip(("camera", "pop", "speed.x"), ((3, 3, 3), (3,), (3,)), strict=True)
    )
    weights = by_hand(encoder, observations)
    # The alphabetical order of the keys
    together = th.cat([maps[key].flatten(1) for key in sorted(maps)], dim=1)
    assert th.allclose(together, weights[:, 1:], atol=1e-6)
    assert th.allclose(together.sum(dim=1) + weights[:, 0], th.ones(4), atol=1e-6)


def test_an_encoder_made_to_look_at_bright_patches_does():
    encoder = TransformerEncoder(PatchTokenizer(1, 1, 24, 32, 8, embed_dim=8), embed_dim=8, depth=1, num_heads=2)
    with th.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        block, tokenizer = encoder.blocks[0], encoder.tokenizer
        nn.init.ones_(block.attention_norm.weight)
        # Of each head, brightness in one dimension; the class token's query is a constant, and the key is brightness
        tokenizer.projection.weight[[0, 4]] = 1.0
        block.attention.qkv.bias[[0, 4]] = 10.0
        block.attention.qkv.weight[[8, 12], [0, 4]] = 10.0
    images = th.zeros(2, 1, 24, 32)
    images[0, 0, 16:24, 8:16] = 1.0
    images[1, 0, :8, 24:] = 1.0
    (maps,) = attention_maps(encoder, images).values()
    assert maps.shape == (2, 1, 3, 4)
    assert float(maps[0, 0, 2, 1]) > 0.99
    assert float(maps[1, 0, 0, 3]) > 0.99


def test_the_hook_is_taken_off_again():
    encoder = make_encoder(IMAGE)
    images = th.rand(2, 3, 20, 24)
    before = encoder(images)
    attention_maps(encoder, images)
    with pytest.raises(RuntimeError):
        attention_maps(encoder, th.rand(2, 5, 20, 24))
    assert not encoder.blocks[-1].attention._forward_pre_hooks
    assert th.equal(encoder(images), before)


def test_what_is_missing_gets_none():
    encoder = make_encoder(spaces.Box(-3, 3, (4,)), missing_as_nan=True)
    vectors = th.randn(2, 4)
    vectors[0, 1] = th.nan
    (maps,) = attention_maps(encoder, vectors).values()
    assert maps[0, 1] == 0
    assert (maps[1] > 0).all()
