import copy
import pickle

import pytest
import torch as th

from sb3_jepa.parts import InputStandardization, MomentumEncoder, PatchTokenizer, StandardizedPatchTokenizer, measuring
from sb3_jepa.parts.standardized_patches import MIN_IMAGES_TO_FOLD

HEIGHT, WIDTH, PATCH = 8, 14, 4  # 4 does not divide the width
N_PLACES = 2 * 4
# Patches of each frame are tokens; of one place in all frames; the same of the changes
LAYOUTS = {"tokens": (3, 1, 1), "channels": (1, 3, 1), "changes": (1, 3, 3)}


def make_tokenizer(layout: str = "tokens", **kwargs) -> StandardizedPatchTokenizer:
    th.manual_seed(0)
    frames, channels, changes_of = LAYOUTS[layout]
    standardization = InputStandardization((3, HEIGHT, WIDTH), changes_of=changes_of)
    tokenizer = PatchTokenizer(frames, channels, HEIGHT, WIDTH, patch_size=PATCH, embed_dim=16)
    return StandardizedPatchTokenizer(standardization, tokenizer, **kwargs)


def measure(tokenizer: StandardizedPatchTokenizer, images: th.Tensor) -> None:
    with measuring([tokenizer.standardization]):
        tokenizer(images / 255.0)


def patch_of(images: th.Tensor, place: int) -> th.Tensor:
    """A view of all frames at a place, counted by row and column."""
    row, column = divmod(place, 4)
    return images[..., row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]


def make_images(n: int, changing: list[int], seed: int = 0) -> th.Tensor:
    """White, except for patches that change from frame to frame and from image to image."""
    generator = th.Generator().manual_seed(seed)
    images = th.full((n, 3, HEIGHT, WIDTH), 250, dtype=th.uint8)
    for place in changing:
        patch = patch_of(images, place)
        patch.copy_(th.randint(0, 256, patch.shape, generator=generator))
    return images


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_that_never_changed_are_left_out(layout):
    tokenizer, plain = make_tokenizer(layout, drop_constant_tokens=True), make_tokenizer(layout)
    images = make_images(MIN_IMAGES_TO_FOLD, changing=[1, 6])
    # Before anything was measured, nothing is left out
    assert th.equal(tokenizer(images), plain(images))
    # A patch that is constant in one batch may change in the next one
    for tokenizer_ in (tokenizer, plain):
        measure(tokenizer_, images[:8])
        measure(tokenizer_, make_images(8, changing=[7]))
    kept = [1, 6, 7] if layout != "tokens" else [1, 6, 7, 9, 14, 15, 17, 22, 23]
    for n in (3, len(images)):
        assert tokenizer.places(images[:n]).tolist() == kept
        assert th.allclose(tokenizer(images[:n]), plain(images[:n])[:, kept], atol=1e-6)


def test_where_everything_changes_nothing_is_left_out():
    tokenizer, plain = make_tokenizer(drop_constant_tokens=True), make_tokenizer()
    images = make_images(MIN_IMAGES_TO_FOLD, changing=list(range(N_PLACES)))
    for one in (tokenizer, plain):
        measure(one, images)
    for n in (3, len(images)):
        assert th.equal(tokenizer(images[:n]), plain(images[:n]))


def test_where_nothing_changes_one_token_is_left():
    tokenizer = make_tokenizer(drop_constant_tokens=True)
    images = make_images(4, changing=[])
    measure(tokenizer, images)
    assert tokenizer(images).shape == (4, 1, 16)


def test_whatever_changes_the_statistics_is_noticed():
    images = make_images(4, changing=list(range(N_PLACES)))
    tokenizer, other = make_tokenizer(drop_constant_tokens=True), make_tokenizer(drop_constant_tokens=True)
    target = MomentumEncoder(tokenizer)
    measure(tokenizer, make_images(4, changing=[2]))
    measure(other, make_images(4, changing=[0, 1]))

    def n_tokens(*tokenizers) -> list[int]:
        return [one(images).shape[1] for one in tokenizers]

    assert n_tokens(tokenizer, other, target) == [3, 6, 24]
    target.copy_buffers(tokenizer)
    assert n_tokens(target) == [3]
    tokenizer.load_state_dict(other.state_dict())
    assert n_tokens(tokenizer, target) == [6, 3]
    target.update(tokenizer, momentum=0.9)
    assert n_tokens(target) == [6]
    for duplicate in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert n_tokens(duplicate) == [6]
        # ... which goes its own way
        duplicate.copy_buffers(make_tokenizer())
        assert n_tokens(duplicate, target) == [24, 6]
    tokenizer.load_state_dict(make_tokenizer().state_dict(), assign=True)
    assert n_tokens(tokenizer) == [24]


def test_constant_places_are_computed_once():
    tokenizer = make_tokenizer(drop_constant_tokens=True)
    target = MomentumEncoder(tokenizer)
    images = make_images(4, changing=[2])
    measure(tokenizer, images)
    target.copy_buffers(tokenizer)
    places = [one.places(images) for one in (tokenizer, target.encoder)]
    for _ in range(3):
        target.update(tokenizer, momentum=0.9)
        assert all(
            one.places(images) is before for one, before in zip((tokenizer, target.encoder), places, strict=True)
        )


def test_of_frames_those_that_differ_from_the_one_before():
    tokenizer, plain = make_tokenizer(token_budget=3), make_tokenizer()
    for one in (tokenizer, plain):
        measure(one, make_images(4, changing=[]))
    images = make_images(MIN_IMAGES_TO_FOLD, changing=[])
    # In all frames of the first image the same: only the first frame tells of it
    patch_of(images[0], 5).fill_(100)
    # A little in the last frame, and more in the middle one, which differs from both others
    patch_of(images[0, 2], 0)[0, 0] -= 1
    patch_of(images[0, 1], 3).fill_(240)
    # Nothing at all in the second image: the first places
    kept = tokenizer.places(images)
    assert kept[0].tolist() == [5, N_PLACES + 3, 2 * N_PLACES + 3]
    assert kept[1].tolist() == [0, 1, 2]
    assert th.allclose(tokenizer(images)[0], plain(images)[0, kept[0]], atol=1e-6)
    tokenizer.selection.token_budget = 4
    assert tokenizer.places(images)[0].tolist() == [5, N_PLACES + 3, 2 * N_PLACES, 2 * N_PLACES + 3]


@pytest.mark.parametrize("layout", ["channels", "changes"])
def test_of_tubelets_those_that_differ_from_the_mean(layout):
    tokenizer = make_tokenizer(layout, token_budget=2)
    # Everything has the same mean but place 7, which is dark
    usual = make_images(4, changing=[])
    patch_of(usual, 7).fill_(20)
    measure(tokenizer, usual)
    images = usual.clone()
    patch_of(images[0, 0], 2).fill_(240)
    patch_of(images[0, 2], 4).fill_(245)
    patch_of(images[1], 7).fill_(10)
    assert tokenizer.places(images)[0].tolist() == [2, 4]
    assert tokenizer.places(images)[1].tolist() == [0, 7]


@pytest.mark.parametrize("drop_constant", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_and_floats_and_few_and_many_images_keep_the_same_tokens(layout, drop_constant):
    tokenizer, plain = (
        make_tokenizer(layout, drop_constant_tokens=drop_constant, token_budget=4),
        make_tokenizer(layout),
    )
    # Many are equal: what does not change, and noise of two values
    images = make_images(64, changing=[0, 3, 4, 6, 7])
    for place in (4, 7):
        patch_of(images, place).bitwise_and_(1)
    patch_of(images, 5)[:, :, 0, 0] = th.arange(64, dtype=th.uint8)[:, None]
    for one in (tokenizer, plain):
        measure(one, images)
    kept = tokenizer.places(images)
    assert kept.shape == (64, 4)
    assert (kept.diff(dim=1) > 0).all()
    assert len(kept.unique(dim=0)) > 1
    expected = plain(images).gather(1, kept[..., None].expand(-1, -1, 16))
    for one in (images, images / 255.0):
        assert th.equal(tokenizer.places(one), kept)
        assert th.allclose(tokenizer(one), expected, atol=1e-5)
        few = th.cat([tokenizer(part) for part in one.split(3)])
        assert th.allclose(few, expected, atol=1e-5)
    gradient = th.randn_like(expected)
    expected.backward(gradient)
    for n in (64, 3):
        tokenizer.zero_grad()
        for part, weights in zip(images.split(n), gradient.split(n), strict=True):
            tokenizer(part).backward(weights)
        for one, other in zip(tokenizer.parameters(), plain.parameters(), strict=True):
            assert th.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_budget_for_all_tokens_changes_nothing(layout):
    plain = make_tokenizer(layout)
    images = make_images(MIN_IMAGES_TO_FOLD, changing=[0, 3, 6])
    measure(plain, images)
    expected = plain(images)
    for budget in (expected.shape[1], 1000):
        tokenizer = make_tokenizer(layout, token_budget=budget)
        tokenizer.load_state_dict(plain.state_dict())
        assert th.equal(tokenizer(images), expected)
