import pytest
import torch as th

from sb3_jepa.parts import (
    CategoryTokenizer,
    ColumnTokenizer,
    InputStandardization,
    PatchTokenizer,
    StandardizedPatchTokenizer,
    default_patch_size,
    measuring,
)
from sb3_jepa.parts.standardized_patches import MIN_IMAGES_TO_FOLD


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


def test_an_image_is_no_smaller_than_a_patch():
    with pytest.raises(ValueError, match="8x12 pixels is smaller than a patch"):
        PatchTokenizer(3, 1, height=8, width=12, patch_size=16)


@pytest.mark.parametrize(
    ("frames", "channels", "changes_of"), [(1, 1, 1), (1, 3, 3), (1, 6, 3), (1, 2, 2), (1, 3, 1), (3, 1, 1), (2, 3, 1)]
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_standardised_patches_in_one_product_are_those_of_two_steps(frames, channels, changes_of, as_bytes):
    th.manual_seed(0)
    # 4 does not divide the width
    height, width = 8, 14
    standardization = InputStandardization((frames * channels, height, width), changes_of=changes_of)
    tokenizer = PatchTokenizer(frames, channels, height, width, patch_size=4, embed_dim=16)
    both = StandardizedPatchTokenizer(standardization, tokenizer)
    # Nearly white, as rendered frames are, and hardly changing
    images = th.randint(245, 256, (MIN_IMAGES_TO_FOLD, frames * channels, height, width), dtype=th.uint8)
    scaled = images / 255.0
    for is_measured in (False, True):
        if is_measured:
            with measuring([standardization]):
                both(scaled)
            assert standardization.n_seen == len(images)
        expected = tokenizer(standardization(scaled))
        tokens = both(images if as_bytes else scaled)
        assert th.allclose(tokens, expected, atol=2e-5)
        # A few are made step by step
        assert th.allclose(both((images if as_bytes else scaled)[:3]), expected[:3], atol=2e-5)
    gradient = th.randn_like(tokens)
    found = th.autograd.grad(tokens, list(tokenizer.parameters()), gradient)
    wanted = th.autograd.grad(expected, list(tokenizer.parameters()), gradient)
    for one, other in zip(found, wanted, strict=True):
        assert th.allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("changes_of", [1, 3])
@pytest.mark.parametrize("patch_size", [8, 6, 5])  # of which 8, 4 and 1 bytes are compared at once
@pytest.mark.parametrize("background", ["most", "all", "none"])
def test_patches_that_are_background_are_projected_once(changes_of, patch_size, background):
    """A rendered frame: a rectangle somewhere on grey, which the mean is equal to where the rectangle has not been."""
    th.manual_seed(0)
    images = th.full((40, 3, 24, 32), 200, dtype=th.uint8)
    if background == "none":
        images = th.randint(0, 256, images.shape, dtype=th.uint8)
    if background == "most":
        for image, column in zip(images, th.randint(0, 24, (40,)).tolist(), strict=True):
            image[:, 10:13, column : column + 4] = 30
    standardization = InputStandardization((3, 24, 32), changes_of)
    frames = 1 if changes_of == 3 else 3
    tokenizer = StandardizedPatchTokenizer(standardization, PatchTokenizer(frames, 3 // frames, 24, 32, patch_size, 16))
    standardization.update(images[:20] / 255.0)

    weights = th.randn_like(tokenizer(images))
    results = []
    # Of floats, all patches are multiplied
    for given in (images, images / 255.0):
        tokens = tokenizer(given)
        results.append((tokens, *th.autograd.grad((tokens * weights).sum(), tokenizer.parameters())))
    for one, other in zip(*results, strict=True):
        assert th.allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("sides", "patch_size", "n_patches"),
    [
        ((64, 96), 16, 24),
        ((84, 84), 16, 36),
        ((64, 64), 16, 16),
        ((32, 48), 8, 24),
        ((40, 40), 8, 25),
        ((7, 7), 2, 16),
        ((5, 5), 1, 25),
        ((5, 11), 2, 18),
        ((6, 7), 1, 42),
        ((3, 3), 1, 9),
        ((210, 160), 32, 35),
        ((480, 640), 128, 20),
        ((1, 1), 1, 1),
        # Far longer than high
        ((1, 1000), 16, 63),
        ((4, 600), 16, 38),
    ],
)
def test_the_default_patch_leaves_16_to_64(sides, patch_size, n_patches):
    for height, width in (sides, sides[::-1]):
        tokenizer = PatchTokenizer(1, 3, height, width, embed_dim=8)
        assert (tokenizer.patch_size, default_patch_size(height, width)) == (patch_size, patch_size)
        assert tokenizer(th.rand(2, 3, height, width)).shape == (2, n_patches, 8)


def test_a_token_holds_neighbouring_numbers():
    tokenizer = ColumnTokenizer(7, 8, numbers_per_token=3)
    assert tokenizer.token_shape == (3,)
    assert tokenizer.n_inputs == [3, 3, 1]
    vectors = th.randn(5, 7)
    tokens = tokenizer(vectors)
    for token, (start, end) in enumerate([(0, 3), (3, 6), (6, 7)]):
        expected = vectors[:, start:end] @ tokenizer.direction[start:end] + tokenizer.code[token]
        assert th.allclose(tokens[:, token], expected, atol=1e-6)
    assert th.equal(tokenizer.token_inputs(vectors)[:, 2], th.stack((vectors[:, 6], *[th.zeros(5)] * 2), dim=1))


def test_a_token_is_missing_if_all_its_numbers_are():
    tokenizer = ColumnTokenizer(7, 8, numbers_per_token=3, missing_as_nan=True)
    vectors = th.randn(1, 7)
    vectors[0, [0, 1, 2, 4, 6]] = th.nan
    tokens = tokenizer(vectors)
    assert tokens.isnan().all(dim=2).tolist() == [[True, False, True]]
    assert th.allclose(tokens[0, 1], tokenizer(vectors.nan_to_num(0.0))[0, 1])
    (gradient,) = th.autograd.grad(tokens[:, 1].sum(), tokenizer.direction)
    assert gradient.isfinite().all()


def test_what_is_not_announced_as_missing_stays_nan():
    vectors = th.randn(1, 7)
    vectors[0, 4] = th.nan
    assert ColumnTokenizer(7, 8, numbers_per_token=3)(vectors).isnan().all(dim=2).tolist() == [[False, True, False]]


def test_a_token_holds_neighbouring_categories():
    tokenizer = CategoryTokenizer([2, 3, 4], 8, variables_per_token=2)
    assert tokenizer.token_shape == (2,)
    one_hot = th.tensor([[0.0, 1, 1, 0, 0, 0, 0, 1, 0]])
    tokens = tokenizer(one_hot)
    assert th.allclose(tokens[0, 0], tokenizer.embedding[1] + tokenizer.embedding[2])
    assert th.allclose(tokens[0, 1], tokenizer.embedding[7])
