import pytest
import torch as th

from sb3_jepa.parts import PatchTokenizer


def test_every_token_is_one_patch_with_the_code_of_its_place():
    tokenizer = PatchTokenizer(2, 3, 8, 12, patch_size=4, embed_dim=16)
    images = th.randn(5, 6, 8, 12)
    tokens = tokenizer(images)
    assert tokens.shape == (5, 12, 16)
    assert tokenizer.token_shape == (2, 2, 3)
    frame, row, column = 1, 0, 2
    patch = images[:, 3:6, 0:4, 8:12].flatten(1)
    code = tokenizer.frame_code[frame, 0, 0] + tokenizer.row_code[row, 0] + tokenizer.column_code[column]
    assert th.allclose(tokens[:, frame * 6 + row * 3 + column], tokenizer.projection(patch) + code, atol=1e-5)


def test_a_tubelet_is_one_place_in_all_channels():
    tokenizer = PatchTokenizer(1, 3, 8, 12, patch_size=4, embed_dim=16)
    images = th.randn(5, 3, 8, 12)
    tokens = tokenizer(images)
    assert tokens.shape == (5, 6, 16)
    code = tokenizer.row_code[1, 0] + tokenizer.column_code[0]
    assert th.allclose(tokens[:, 3], tokenizer.projection(images[:, :, 4:8, 0:4].flatten(1)) + code, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(height=8, width=12, patch_size=16), "8x12 pixels is smaller than a patch"),
        (dict(height=16, width=16, patch_size=0), "positive"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PatchTokenizer(3, 1, **kwargs)
