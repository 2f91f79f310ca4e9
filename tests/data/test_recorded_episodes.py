"""Whole episodes of a policy, and splits that keep starts together."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_jepa import Recordings
from sb3_jepa.data import read, record_episodes, save_recordings


class Always:
    """The same action in each environment."""

    def __init__(self, n_envs=1):
        self.n_envs = n_envs

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.ones(self.n_envs, np.int64), None


def test_episodes_are_whole_and_have_their_last_observation(tmp_path):
    recordings = record_episodes("CartPole-v1", Always(), 5, seed=3)
    _, lengths = np.unique(recordings.episodes, return_counts=True)
    assert len(lengths) == 5
    assert recordings.has_action.sum() == len(recordings) - 5
    assert recordings.terminated.sum() == 5
    # The environment itself, with the same start
    env = make_vec_env("CartPole-v1", seed=3)
    env.seed(3)
    observations = [env.reset()[0]]
    for _ in range(lengths[0] - 1):
        observation, _, dones, infos = env.step(np.ones(1, np.int64))
        observations.append(infos[0].get("terminal_observation", observation[0]))
    assert dones[0]
    assert np.array_equal(recordings.take(np.arange(lengths[0])), observations)
    save_recordings(recordings, tmp_path / "episodes")
    assert read(tmp_path / "episodes").id == recordings.id


def test_each_environment_gives_as_many_episodes():
    env = make_vec_env(lambda: gym.wrappers.TimeLimit(SimpleMultiObsEnv(random_start=False), 7), 2)
    recordings = record_episodes(env, Always(2), 5)
    assert len(np.unique(recordings.episodes)) == 5
    # Cut off, which is no termination
    assert recordings.terminated.sum() == 0
    assert set(recordings.observations) == {"img", "vec"}


def test_a_policy_must_be_given():
    with pytest.raises(ValueError, match="`policy` must be a model"):
        record_episodes("CartPole-v1", None, 1)


def starts(values, n_rows=4):
    rows = np.repeat(values, n_rows).astype(np.float32)
    rows[np.arange(len(rows)) % n_rows > 0] += np.arange(len(rows))[np.arange(len(rows)) % n_rows > 0]
    space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    return Recordings(space, rows[:, None], np.arange(len(rows)) // n_rows)


def test_episodes_with_one_start_stay_together():
    recordings = starts(np.tile(np.arange(10), 3))
    for seed in range(3):
        training, held_out = recordings.split(0.2, seed, by_start=True)
        first = recordings.observations[::4, 0]
        sides = [set(first[np.unique(recordings.episodes[rows])]) for rows in (training, held_out)]
        assert not sides[0] & sides[1]
        assert len(sides[1]) == 2
    mixed = recordings.split(0.2, 0)
    assert {*first[np.unique(recordings.episodes[mixed[0]])]} & {*first[np.unique(recordings.episodes[mixed[1]])]}


def test_where_all_episodes_have_one_start_they_are_split_all_the_same():
    training, held_out = starts(np.zeros(10)).split(0.2, by_start=True)
    assert len(training) == 32
    assert len(held_out) == 8
