import pytest
import torch as th
from torch import nn

from sb3_jepa.diagnostics.attention import attention_maps
from sb3_jepa.parts import ColumnTokenizer, PatchTokenizer, TransformerEncoder
from sb3_jepa.parts.transformer import MAX_TOKENS_ON_CPU


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
def test_class_token_only_last_block_is_exact(depth, final_norm, frames):
    th.manual_seed(0)
    tokenizer = PatchTokenizer(frames, 3 // frames, 16, 24, patch_size=8, embed_dim=32)
    encoder = TransformerEncoder(tokenizer, 32, depth, num_heads=4, final_norm=final_norm)
    images = th.randn(5, 3, 16, 24)

    tokens = th.cat((encoder.class_token.expand(5, -1, -1), tokenizer(images)), dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    assert th.allclose(encoder(images), encoder.norm(tokens[:, 0]), atol=1e-5)


def test_many_tokens_are_embedded_in_parts():
    th.manual_seed(0)
    encoder = TransformerEncoder(PatchTokenizer(3, 1, 16, 24, 8, 32), 32)
    images, weights = th.randn(700, 3, 16, 24), th.randn(700, 32) / 700
    n_tokens: list[int] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: n_tokens.append(inputs[0][..., 0].numel()))

    def embed(n_images: int) -> tuple[th.Tensor, ...]:
        embeddings = th.cat([encoder(batch) for batch in images.split(n_images)])
        return embeddings, *th.autograd.grad((embeddings * weights).sum(), encoder.parameters())

    of_all, maps = embed(700), attention_maps(encoder, images)[""]
    # 19 tokens for each of 700 images, twice
    assert max(n_tokens) <= MAX_TOKENS_ON_CPU < sum(n_tokens) == 2 * 19 * 700
    for one, other in zip(of_all, embed(100), strict=True):
        assert th.allclose(one, other, rtol=1e-4, atol=1e-5)
    of_few = th.cat([attention_maps(encoder, batch)[""] for batch in images.split(100)])
    assert th.allclose(maps, of_few, atol=1e-6)


def test_attention_matches_the_textbook():
    th.manual_seed(0)
    attention = TransformerEncoder(nn.Identity(), 8, 1, num_heads=2).blocks[0].attention
    tokens = th.randn(2, 5, 8)
    query, key, value = (part.view(2, 5, 2, 4).transpose(1, 2) for part in attention.qkv(tokens).split(8, dim=-1))
    weights = (query @ key.transpose(-1, -2) / 4**0.5).softmax(dim=-1)
    expected = attention.proj((weights @ value).transpose(1, 2).reshape(2, 5, 8))
    assert th.allclose(attention(tokens), expected, atol=1e-6)


def test_embedding_depends_on_every_patch():
    encoder = TransformerEncoder(PatchTokenizer(3, 1, 16, 24, 8, 32), 32)
    images = th.zeros(1, 3, 16, 24, requires_grad=True)
    (encoder(images) @ th.randn(32)).sum().backward()
    patches = images.grad.view(3, 2, 8, 3, 8).abs().amax(dim=(2, 4))
    assert (patches > 0).all()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="`num_heads` must divide `embed_dim`"):
        TransformerEncoder(nn.Identity(), embed_dim=30, num_heads=4)


@pytest.mark.parametrize("missing_as_nan", [False, True])
@pytest.mark.parametrize("class_tokens", [0, 2])
def test_visible_tokens_by_their_places_or_as_booleans(class_tokens, missing_as_nan):
    th.manual_seed(0)
    encoder = TransformerEncoder(
        ColumnTokenizer(5, 8, missing_as_nan=missing_as_nan),
        8,
        2,
        2,
        class_tokens=class_tokens,
        output="mean",
        missing_as_nan=missing_as_nan,
    )
    vectors, places = th.randn(3, 5), th.tensor([[0, 2, 3], [1, 2, 4], [0, 3, 4]])
    if missing_as_nan:
        vectors[0, 3] = th.nan
    visible = th.zeros(3, 5, dtype=th.bool).scatter(1, places, True)
    by_places, as_booleans = encoder.encode_views(vectors, [places, visible])
    assert th.allclose(by_places[:, :class_tokens], as_booleans[:, :class_tokens], atol=1e-6)
    chosen = as_booleans[:, class_tokens:][visible].view(3, 3, 8)
    is_there = ~vectors.gather(1, places).isnan()
    assert th.allclose(by_places[:, class_tokens:][is_there], chosen[is_there], atol=1e-6)
    # Where nothing is visible, nothing breaks
    assert encoder.encode_tokens(vectors, th.zeros(3, 5, dtype=th.bool)).isfinite().all()
