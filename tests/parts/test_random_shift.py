"""Images that are shifted at random are crops of a padded image."""

import pytest
import torch as th
from torch.nn.functional import pad as pad_edges

from sb3_jepa.parts import random_shift

PAD = 3


def offsets_of(image: th.Tensor, shifted: th.Tensor, pad: int = PAD) -> list[tuple[int, int]]:
    """Where the crops of ``(frames, height, width)`` begin that equal the shifted image."""
    _, height, width = image.shape
    padded = pad_edges(image.double(), (pad,) * 4, mode="replicate")
    return [
        (top, left)
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
        if th.equal(padded[:, top : top + height, left : left + width], shifted.double())
    ]


@pytest.mark.parametrize("dtype", [th.uint8, th.float32, th.int64])
@pytest.mark.parametrize("shape", [(3, 10, 14), (2, 3, 9, 8), (10, 14)])
def test_each_sample_is_a_crop_with_all_frames_moved_alike(shape, dtype):
    images = th.randint(0, 256, (300, *shape)).to(dtype)
    before = images.clone()
    shifted = random_shift(images, PAD)
    assert (shifted.shape, shifted.dtype) == (images.shape, dtype)
    assert th.equal(images, before)
    draws = []
    for image, moved in zip(images, shifted, strict=True):
        (draw,) = offsets_of(image.reshape(-1, *shape[-2:]), moved.reshape(-1, *shape[-2:]))
        draws.append(draw)
    # Each of the offsets in each direction, and hardly ever the same in both
    assert {top for top, _ in draws} == {left for _, left in draws} == set(range(2 * PAD + 1))
    assert len(set(draws)) > 4 * PAD


def test_frames_with_their_channels_last_move_as_with_their_channels_first():
    images = th.randint(0, 256, (20, 4, 3, 10, 14), dtype=th.uint8)
    th.manual_seed(1)
    expected = random_shift(images, PAD)
    th.manual_seed(1)
    assert th.equal(random_shift(images.movedim(2, -1), PAD, channels_last=True), expected.movedim(2, -1))


def test_gradients_reach_the_pixels_that_are_seen():
    images = th.rand(5, 1, 8, 8, requires_grad=True)
    random_shift(images, PAD).sum().backward()
    assert images.grad.sum() == images.numel()


def test_no_pad_takes_no_random_number():
    images = th.rand(2, 3, 8, 8)
    th.manual_seed(0)
    state = th.get_rng_state()
    assert random_shift(images, 0) is images
    assert th.equal(th.get_rng_state(), state)


def test_errors():
    with pytest.raises(ValueError, match=r"`pad` must be smaller than the sides of the images, 8 and 6, got 6"):
        random_shift(th.rand(2, 3, 8, 6), 6)
    with pytest.raises(ValueError, match=r"sides of the images, 8 and 6"):
        random_shift(th.rand(2, 8, 6, 3), 6, channels_last=True)
    with pytest.raises(ValueError, match=r"`pad` must be a whole number of at least 0, got -1"):
        random_shift(th.rand(2, 3, 8, 6), -1)
