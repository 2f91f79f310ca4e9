"""Recordings of buffers."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, FrameDictReplayBuffer, FrameReplayBuffer, RecurrentPPO
from sb3_jepa.buffers.frames import FrameStacks
from sb3_jepa.common.next_observations import true_next_observations
from sb3_jepa.data import Recordings, read_buffer
from tests.conftest import SMALL_POLICY, SMALL_PPO, CountingImageEnv, FakeEnv, make_counting_env

DICT_SPACE = spaces.Dict(
    image=spaces.Box(0, 255, (3, 36, 40), np.uint8), vector=spaces.Box(-1, 1, (2,)), mode=spaces.Discrete(3)
)


class LargeCountingEnv(CountingImageEnv):
    """Its images are large enough to be stored frame by frame."""

    def __init__(self, number, lengths):
        super().__init__(number, lengths)
        self.observation_space = spaces.Box(0, 255, (3, 32, 32), np.uint8)

    def _observation(self):
        return super()._observation().repeat(2, axis=1).repeat(2, axis=2)


def large_counting_env():
    numbers = iter(range(2))
    return make_vec_env(lambda: LargeCountingEnv(next(numbers), (3, 5, 4)), n_envs=2)


def check_counts(recordings: Recordings, n_rows: int) -> np.ndarray:
    """That each number stands for one episode of one environment, and each of these has one number."""
    assert len(recordings) == n_rows
    shown = recordings.take(np.arange(n_rows))[:, :, 0, 0]
    pairs = {(*where, number) for where, number in zip(map(tuple, shown[:, :2]), recordings.episodes, strict=True)}
    assert len(pairs) == len({pair[:2] for pair in pairs}) == len({pair[2] for pair in pairs})
    return shown


def fill(buffer: ReplayBuffer, env, n_steps: int) -> None:
    """As ``OffPolicyAlgorithm`` does."""
    observations = env.reset()
    for _ in range(n_steps):
        new_observations, rewards, dones, infos = env.step(np.zeros(env.num_envs, dtype=np.int64))
        next_observations, _ = true_next_observations(new_observations, dones, infos)
        buffer.add(observations, next_observations, np.zeros(env.num_envs), rewards, dones, infos)
        observations = new_observations


@pytest.mark.parametrize("n_steps", [5, 20, 24, 47])
@pytest.mark.parametrize("optimize_memory_usage", [False, True])
def test_replay_buffers(n_steps, optimize_memory_usage):
    env = make_counting_env(((3, 5, 4), (7, 2, 6)))
    buffer = ReplayBuffer(
        40,
        env.observation_space,
        env.action_space,
        n_envs=2,
        optimize_memory_usage=optimize_memory_usage,
        handle_timeout_termination=False,
    )
    fill(buffer, env, n_steps)
    recordings = read_buffer(buffer)
    shown = check_counts(recordings, 2 * min(n_steps, 20))
    assert np.shares_memory(recordings.observations, buffer.observations)
    # One row for each step, and none twice
    assert len(np.unique(shown, axis=0)) == len(recordings)


def test_frames_of_a_replay_buffer_are_not_copied():
    env = large_counting_env()
    buffer = FrameReplayBuffer(40, env.observation_space, env.action_space, n_envs=2)
    for n_steps in (7, 20):
        fill(buffer, env, n_steps)
        recordings = read_buffer(buffer)
        n_rows = 2 * buffer.size()
        assert isinstance(recordings.observations, FrameStacks)
        expected = np.asarray(buffer.observations)[: buffer.size()].reshape(n_rows, 3, 32, 32)
        assert np.array_equal(recordings.take(np.arange(n_rows)), expected)
    check_counts(recordings, 40)
    # What the buffer overwrites is overwritten in the recordings
    buffer.observations[3] = 0
    assert not recordings.take([6, 7]).any()
    assert recordings.take([8, 9]).any()


@pytest.mark.parametrize("buffer_class", [None, FrameDictReplayBuffer])
def test_replay_buffers_that_dqn_filled(buffer_class):
    env = make_vec_env(lambda: FakeEnv(DICT_SPACE), n_envs=2)
    model = DQN(
        "MultiInputPolicy", env, buffer_size=64, learning_starts=1_000, replay_buffer_class=buffer_class, device="cpu"
    )
    model.learn(40)
    recordings = read_buffer(model.replay_buffer)
    assert len(recordings) == 40
    assert len(np.unique(recordings.episodes)) == 8
    taken = recordings.take(np.arange(40))
    assert taken["mode"].shape == (40,)
    for key, array in model.replay_buffer.observations.items():
        expected = array[:20].reshape(40, *DICT_SPACE[key].shape)
        assert np.array_equal(taken[key], expected)


class ReadBuffer(BaseCallback):
    """Reads the rollout buffer when it holds nine steps, and when it is full."""

    def _on_step(self) -> bool:
        if self.model.rollout_buffer.pos == 9:
            self.partial = check_counts(read_buffer(self.model.rollout_buffer), 9 * self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        # It is not yet, if the input statistics are measured
        n_rows = self.model.rollout_buffer.pos * self.training_env.num_envs
        self.full = check_counts(read_buffer(self.model.rollout_buffer), n_rows)


@pytest.mark.parametrize("algorithm", [StockPPO, PPO, RecurrentPPO])
@pytest.mark.parametrize("make_env", [make_counting_env, large_counting_env])
def test_rollout_buffers_before_and_after_they_are_flattened(algorithm, make_env):
    env = make_env()
    policy = (
        dict(policy="MlpPolicy") if algorithm is StockPPO else dict(policy="JepaPolicy", policy_kwargs=SMALL_POLICY)
    )
    model = algorithm(env=env, **policy, **SMALL_PPO)
    reader = ReadBuffer()
    model.learn(3 * 16 * env.num_envs, callback=reader)
    flattened = check_counts(read_buffer(model.rollout_buffer), 16 * env.num_envs)
    # Environment by environment
    assert np.array_equal(flattened, reader.full.reshape(16, env.num_envs, 3).swapaxes(0, 1).reshape(-1, 3))
    assert np.array_equal(reader.partial, reader.full[: 9 * env.num_envs])


def test_an_empty_buffer_is_refused():
    env = make_counting_env()
    with pytest.raises(ValueError, match="is empty"):
        read_buffer(ReplayBuffer(40, env.observation_space, env.action_space))
    with pytest.raises(ValueError, match="`buffer` must be a ReplayBuffer or a RolloutBuffer, got list"):
        read_buffer([])
