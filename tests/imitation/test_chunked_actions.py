"""Chunks of actions of any space."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_jepa.imitation.actions import check_in_space, chunked_actions

SPACES = [
    spaces.Box(-2.0, 3.0, (2, 2), np.float32),
    spaces.Box(-np.inf, np.inf, (3,), np.float32),
    spaces.Discrete(4, start=2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_is_decoded_without_error_is_the_action(space):
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(6)])
    head = chunked_actions(space)
    head.measure(actions)
    encoded = head.encode(actions.reshape(2, 3, *actions.shape[1:]))
    # Logits that are sure of the right categories, or the standardised numbers themselves
    outputs = encoded
    if not isinstance(space, spaces.Box):
        sizes, one_hot = head.sizes, []
        for index, size in enumerate(sizes):
            one_hot.append(50.0 * th.nn.functional.one_hot(encoded[..., index], size))
        outputs = th.cat(one_hot, dim=2).float()
    assert head.errors(outputs, encoded).max() < 1e-5
    assert head.distances(outputs, encoded).max() < 1e-5
    decoded = head.decode(outputs).numpy().reshape(6, -1)
    for deterministic in (True, False):
        chosen = head.choose(decoded, deterministic)
        assert chosen.dtype == space.dtype
        assert np.allclose(chosen, actions, atol=1e-5)
        assert all(space.contains(one) for one in chosen)


def test_categories_are_drawn_as_often_as_they_are_likely():
    th.manual_seed(0)
    head = chunked_actions(spaces.Discrete(3))
    chosen = head.choose(np.tile([[0.7, 0.2, 0.1]], (5_000, 1)), deterministic=False)
    assert np.bincount(chosen) / 5_000 == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_a_column_that_does_not_move_does_not_explode():
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    head = chunked_actions(space)
    rng = np.random.default_rng(0)
    actions = np.stack([rng.uniform(-1, 1, 100), 0.5 + 1e-5 * rng.normal(size=100)], axis=1).astype(np.float32)
    head.measure(actions)
    assert head.encode(actions[None])[..., 1].abs().max() < 1e-3
    # Also where it moves at test time
    assert head.encode(np.array([[[0.0, 0.6]]]))[..., 1].abs().max() < 1


def test_actions_that_leave_their_bounds_are_clipped():
    head = chunked_actions(spaces.Box(-1.0, 1.0, (1,), np.float32))
    assert head.choose(np.array([[3.0], [-3.0]]), True).tolist() == [[1.0], [-1.0]]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_outside_of_the_space_are_named(space):
    inside = np.stack([space.sample() for _ in range(4)])
    check_in_space("demonstrations", inside, space, np.arange(4))
    outside = inside.astype(np.float64)
    outside[2] = np.nan if isinstance(space, spaces.Box) else 99
    with pytest.raises(ValueError, match=r"`demonstrations` must have actions of .* at row 12"):
        check_in_space("demonstrations", outside, space, np.arange(10, 14))
