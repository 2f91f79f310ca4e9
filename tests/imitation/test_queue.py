"""The queue of a chunk, and temporal ensembling."""

import numpy as np
import pytest

from sb3_jepa.imitation.queue import from_ensemble, from_queue

SHAPE = (3, 1)


def counting():
    """Decides on chunks 0, 1, 2; 10, 11, 12; 20, 21, 22; ... and keeps for whom it did."""
    asked: list[list[int]] = []

    def decide(numbers):
        asked.append(numbers.tolist())
        return np.tile(10.0 * (len(asked) - 1) + np.arange(3.0), (len(numbers), 1))[..., None].astype(np.float32)

    return decide, asked


def test_all_actions_of_a_chunk_are_executed_before_the_next_is_decided_on():
    decide, asked = counting()
    state, executed = None, []
    for _ in range(5):
        action, state = from_queue(state, np.zeros(1, bool), 3, SHAPE, decide)
        executed.append(float(action[0, 0]))
    assert executed == [0, 1, 2, 10, 11]
    assert len(asked) == 2


def test_fewer_actions_are_executed_if_asked_for():
    decide, _ = counting()
    state, executed = None, []
    for _ in range(4):
        action, state = from_queue(state, np.zeros(1, bool), 2, SHAPE, decide)
        executed.append(float(action[0, 0]))
    assert executed == [0, 1, 10, 11]


def test_queues_of_several_environments_run_at_different_places():
    decide, asked = counting()
    _, state = from_queue(None, np.zeros(2, bool), 3, SHAPE, decide)
    # An episode begins in the second environment alone
    actions, state = from_queue(state, np.array([False, True]), 3, SHAPE, decide)
    assert actions[:, 0].tolist() == [1, 10]
    actions, state = from_queue(state, np.zeros(2, bool), 3, SHAPE, decide)
    actions, state = from_queue(state, np.zeros(2, bool), 3, SHAPE, decide)
    assert asked == [[0, 1], [1], [0]]
    assert actions[:, 0].tolist() == [20, 12]


def test_the_state_that_was_given_stays_as_it_is():
    for step, argument in ((from_queue, 1), (from_ensemble, 0.01)):
        decide, _ = counting()
        _, state = step(None, np.zeros(2, bool), argument, SHAPE, decide)
        before = [array.copy() for array in state]
        step(state, np.array([True, False]), argument, SHAPE, decide)
        assert all((one == other).all() for one, other in zip(before, state, strict=True))


def test_an_ensemble_is_the_weighted_mean_of_all_decisions_the_oldest_first():
    decide, _ = counting()
    coefficient, state, executed = 0.5, None, []
    for _ in range(4):
        action, state = from_ensemble(state, np.zeros(1, bool), coefficient, SHAPE, decide)
        executed.append(float(action[0, 0]))
    weights = np.exp(-coefficient * np.arange(3))
    # The third step: said by the chunks 0, 1 and 2, of which it is the third, second and first action
    third = np.dot(weights, [2, 11, 20]) / weights.sum()
    fourth = np.dot(weights, [12, 21, 30]) / weights.sum()
    second = np.dot(weights[:2], [1, 10]) / weights[:2].sum()
    assert executed == pytest.approx([0, second, third, fourth])


def test_an_ensemble_forgets_at_the_begin_of_an_episode():
    decide, _ = counting()
    _, state = from_ensemble(None, np.zeros(1, bool), 0.01, SHAPE, decide)
    action, _ = from_ensemble(state, np.ones(1, bool), 0.01, SHAPE, decide)
    assert action[0, 0] == 10


def test_a_state_of_another_number_of_environments_is_refused():
    decide, _ = counting()
    _, state = from_queue(None, np.zeros(2, bool), 3, SHAPE, decide)
    with pytest.raises(ValueError, match="`state` must be"):
        from_queue(state, np.zeros(3, bool), 3, SHAPE, decide)
    with pytest.raises(ValueError, match="`state` must be"):
        from_ensemble(state, np.zeros(2, bool), 0.0, SHAPE, decide)
