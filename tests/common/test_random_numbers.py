import random

import numpy as np
import pytest
import torch as th

from sb3_jepa.common.random_numbers import isolated_random_numbers


def draw() -> list:
    gpu = [th.rand(2, device=f"cuda:{index}").tolist() for index in range(th.cuda.device_count())]
    return [random.random(), np.random.rand(2).tolist(), th.rand(2).tolist(), *gpu]


def test_what_is_drawn_within_is_not_missed_afterwards():
    with isolated_random_numbers():
        within = draw()
    # Without a seed they begin where they are
    assert draw() == within
    with isolated_random_numbers():
        expected = draw()
    with isolated_random_numbers(3):
        draw()
    assert draw() == expected


@pytest.mark.parametrize("seed", [0, 3, -1, 2**40])
def test_a_seed_decides_about_all_of_them(seed):
    drawn = []
    for _ in range(2):
        with isolated_random_numbers(seed):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    with isolated_random_numbers(5):
        assert all(one != other for one, other in zip(draw(), drawn[0], strict=True))


def test_an_error_leaves_the_generators_as_they_were():
    with isolated_random_numbers():
        expected = draw()
    with pytest.raises(ZeroDivisionError), isolated_random_numbers(0):
        draw()[0] / 0
    assert draw() == expected


def test_cuda_is_not_started():
    was_started = th.cuda.is_initialized()
    with isolated_random_numbers(0):
        pass
    assert th.cuda.is_initialized() == was_started


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_its_random_numbers():
    th.cuda.manual_seed_all(7)
    expected = th.rand(3, device="cuda")
    th.cuda.manual_seed_all(7)
    with isolated_random_numbers(0):
        seeded = th.rand(3, device="cuda")
    assert th.equal(th.rand(3, device="cuda"), expected)
    with isolated_random_numbers(0):
        assert th.equal(th.rand(3, device="cuda"), seeded)
