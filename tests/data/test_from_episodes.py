"""Folders with a file for each episode, as ExoRL has them, and files as OGBench has them."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_jepa.data import read
from sb3_jepa.data.to_buffers import replay_buffer_of


def write_episode(path, n_steps: int, number: int, terminates: bool = False) -> None:
    steps = np.arange(n_steps + 1, dtype=np.float32)
    discount = np.ones((n_steps + 1, 1), np.float32)
    discount[-1] = 0.0 if terminates else 1.0
    np.savez(
        path,
        observation=np.stack([np.full_like(steps, number), steps], axis=1),
        # The action of the reset has no meaning
        action=np.where(steps[:, None] == 0, 9.0, steps[:, None] / 10).astype(np.float32),
        reward=steps[:, None],
        discount=discount,
        physics=np.zeros((n_steps + 1, 4)),
    )


def test_episodes_of_exorl(tmp_path):
    write_episode(tmp_path / "episode_000000_3.npz", 3, 0)
    write_episode(tmp_path / "episode_000001_2.npz", 2, 1, terminates=True)
    recordings = read(tmp_path)
    assert recordings.episodes.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert recordings.has_action.tolist() == [True, True, True, False, True, True, False]
    np.testing.assert_allclose(recordings.actions[[0, 1, 2, 4, 5], 0], [0.1, 0.2, 0.3, 0.1, 0.2])
    assert recordings.rewards.tolist() == [1, 2, 3, 0, 1, 2, 0]
    assert recordings.terminated.tolist() == [False, False, False, False, False, True, False]
    buffer = replay_buffer_of(recordings, ReplayBuffer, recordings.observation_space, spaces.Box(-1, 1, (1,)))
    assert buffer.size() == 5
    np.testing.assert_array_equal(buffer.next_observations[:, 0, 1], [1, 2, 3, 1, 2])
    assert buffer.dones[:, 0].tolist() == [0, 0, 1, 0, 1]
    assert buffer.timeouts[:, 0].tolist() == [0, 0, 1, 0, 0]


def test_a_file_of_ogbench_ends_trajectories_and_terminates_none(tmp_path):
    terminals = np.zeros(8, np.float32)
    terminals[[3, 7]] = 1.0
    observations = np.arange(8, dtype=np.float32)[:, None]
    np.savez(
        tmp_path / "pointmaze.npz",
        observations=observations,
        actions=observations / 10,
        terminals=terminals,
        qpos=observations,
        qvel=observations,
    )
    recordings = read(tmp_path / "pointmaze.npz")
    buffer = replay_buffer_of(recordings, ReplayBuffer, recordings.observation_space, spaces.Box(-1, 1, (1,)))
    np.testing.assert_array_equal(buffer.next_observations[:, 0, 0], [1, 2, 3, 5, 6, 7])
    assert (buffer.dones * (1 - buffer.timeouts)).sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(action=None), "must hold 'observation' and 'action'"),
        (dict(reward=np.zeros(2)), "a row for the reset and for each step"),
        (dict(observation=np.zeros((4, 3), np.float32)), "must have rows of"),
    ],
)
def test_a_broken_episode_is_named(tmp_path, change, message):
    write_episode(tmp_path / "a.npz", 3, 0)
    write_episode(tmp_path / "b.npz", 3, 1)
    arrays = {**np.load(tmp_path / "b.npz"), **change}
    np.savez(tmp_path / "b.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path)
    assert "b.npz" in str(error.value)
    (tmp_path / "b.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"b\.npz must be an .npz file of an episode"):
        read(tmp_path)
