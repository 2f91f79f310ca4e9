"""The examples of zero-shot learning: what is measured, and that the scripts run."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "zero_shot"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_the_best_policy_of_four_rooms_goes_the_shortest_way(load):
    rooms = load("four_rooms")
    goal = 0
    # From each cell, the action that leads nearest to the goal
    distances = np.full(rooms.N_CELLS, np.inf)
    distances[goal] = 0
    for _ in range(rooms.N_CELLS):
        distances = np.minimum(distances, 1 + distances[rooms.NEXT_CELLS].min(axis=1))
    actions = distances[rooms.NEXT_CELLS].argmin(axis=1)
    assert np.isfinite(distances).all()
    assert rooms.returns_of(actions, goal) == pytest.approx(rooms.best_returns(goal), rel=1e-6)
    assert rooms.returns_of(np.full(rooms.N_CELLS, 4), goal) < 0.1 * rooms.best_returns(goal)


def test_four_rooms_run(load, monkeypatch, tmp_path):
    rooms = load("four_rooms")
    arguments = ["--arms", "td-jepa", "behavior", "--gradient-steps", "5", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["four_rooms.py", *arguments])
    rooms.main()
    result = json.loads((tmp_path / "td-jepa" / "seed0.json").read_text())
    assert 0 <= result["score"] <= 1
    written = (tmp_path / "td-jepa" / "seed0.json").stat().st_mtime_ns
    rooms.main()
    assert (tmp_path / "td-jepa" / "seed0.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("domain", ["point_mass", "cheetah", "walker"])
def test_rewards_are_computed_from_recorded_states(load, domain):
    pytest.importorskip("dm_control", reason="needs the extra zero-shot")
    dmc = load("dmc")
    for task in dmc.TASKS[domain]:
        env = dmc.ControlEnv(domain, task, seed=0)
        env.reset(seed=0)
        states, actions, lived = [], [], []
        for _ in range(20):
            actions.append(env.action_space.sample())
            observation, reward, _, _, _ = env.step(actions[-1])
            assert observation in env.observation_space
            states.append(env.physics.get_state())
            lived.append(reward)
        computed = dmc.rewards_of(domain, np.array(states), np.array(actions))[task]
        np.testing.assert_allclose(computed, lived, atol=1e-3)


def test_nothing_passes_through_the_walls_of_the_maze(load):
    pytest.importorskip("dm_control", reason="needs the extra zero-shot")
    dmc = load("dmc")
    env = dmc.ControlEnv("point_mass", seed=0)
    env.reset(seed=0)
    with env.physics.reset_context():
        env.physics.data.qpos[:2], env.physics.data.qvel[:2] = (-0.05, 0.11), 0.0
    for _ in range(60):
        observation, *_ = env.step(np.array([1.0, 0.0]))
    assert observation[0] < 0.0
