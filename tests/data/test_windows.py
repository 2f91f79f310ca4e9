"""Windows of consecutive steps, of whatever recordings are read from."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, HerReplayBuffer
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa import RecurrentPPO
from sb3_jepa.data import Recordings, Windows, read_buffer, read_file, record_env, save_recordings
from tests.conftest import SMALL_PPO

LENGTHS = ((3, 5, 4), (7, 2, 6))
DISCRETE, BOX = spaces.Discrete(3), spaces.Box(np.float32([-2, 0]), np.float32([3, 0.5]))
NUMBERS = spaces.Box(-np.inf, np.inf, (1,))


class EchoEnv(gym.Env):
    """
    Observations tell environment, episode, time and the action that led to them; rewards depend on both. Every other
    episode is cut by a time limit.
    """

    def __init__(self, number: int, action_space: spaces.Space):
        self.action_space, self.number, self.episode = action_space, number, -1
        self.observation_space = spaces.Box(-np.inf, np.inf, (3 + int(np.prod(action_space.shape)),))

    def _observe(self, action) -> np.ndarray:
        return np.array([self.number, self.episode, self.time, *np.ravel(action)], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observe(np.zeros(self.action_space.shape)), {}

    def step(self, action):
        self.time += 1
        ends = self.time == length_of(self.number, self.episode)
        is_cut = is_cut_by_time(self.episode)
        return self._observe(action), float(self.time + np.sum(action)), ends and not is_cut, ends and is_cut, {}


def length_of(number: int, episode: int) -> int:
    return LENGTHS[number][episode % 3]


def is_cut_by_time(episode: int) -> bool:
    return episode % 2 == 1


def make_echo_env(action_space: spaces.Space = DISCRETE) -> VecEnv:
    numbers = iter(range(len(LENGTHS)))
    return make_vec_env(lambda: EchoEnv(next(numbers), action_space), n_envs=len(LENGTHS), seed=0)


def record(folder, action_space) -> Recordings:
    return record_env(make_echo_env(action_space), 61, folder, progress_bar=False)


def record_model(folder, action_space) -> Recordings:
    env = make_echo_env(action_space)
    return record_env(env, 61, folder, StockPPO("MlpPolicy", env, device="cpu"), progress_bar=False)


def saved(folder, action_space) -> Recordings:
    return save_recordings(record(None, action_space), folder)


def from_npz(folder, action_space) -> Recordings:
    """As data sets are laid out: a row for each step, with what it ended."""
    recordings = record(None, action_space)
    # One environment after the other
    rows = np.lexsort((recordings.episodes, recordings.observations[:, 0]))
    rows = rows[recordings.has_action[rows] & (recordings.observations[rows, 0] == 1)]
    numbers = recordings.observations[rows].astype(int)
    ends = np.array([time + 1 == length_of(number, episode) for number, episode, time in numbers[:, :3]])
    np.savez(
        folder / "data.npz",
        observations=recordings.observations[rows],
        actions=recordings.actions[rows],
        rewards=recordings.rewards[rows][:, None],
        terminals=recordings.terminated[rows],
        timeouts=ends & ~recordings.terminated[rows],
    )
    return read_file(folder / "data.npz", action_space=action_space)


def replay(n_steps: int, **kwargs):
    def make(folder, action_space) -> Recordings:
        algorithm = SAC if isinstance(action_space, spaces.Box) else DQN
        env = make_echo_env(action_space)
        model = algorithm("MlpPolicy", env, buffer_size=40, learning_starts=n_steps - 8, device="cpu", seed=0, **kwargs)
        return read_buffer(model.learn(n_steps).replay_buffer)

    return make


def rollout(algorithm, reads_at: int | None = None):
    """Of a buffer that was learned from and so is flattened; or of one that holds so many steps yet."""

    def make(folder, action_space) -> Recordings:
        env, partial = make_echo_env(action_space), []

        def read_early(variables, _):
            if variables["rollout_buffer"].pos == reads_at:
                partial.append(read_buffer(variables["rollout_buffer"]))
            return True

        policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
        model = algorithm(policy, env, **SMALL_PPO).learn(3 * 16 * env.num_envs, callback=read_early)
        return partial[-1] if partial else read_buffer(model.rollout_buffer)

    return make


SAVING_MEMORY = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
SOURCES = {
    "record_env": record,
    "a model": record_model,
    "save_recordings": saved,
    "npz": from_npz,
    "replay buffer": replay(30),
    "full replay buffer": replay(70),
    "full replay buffer that saves memory": replay(70, **SAVING_MEMORY),
    "rollout buffer": rollout(StockPPO),
    "rollout buffer that is not full": rollout(StockPPO, reads_at=13),
    "rollout buffer of a recurrent policy": rollout(RecurrentPPO),
}


def check_windows(recordings: Recordings, windows: Windows, rows: np.ndarray, n_before: int) -> int:
    """Compare with what the rows show, and return the number of actions that were compared."""
    where = {tuple(shown) for shown in recordings.take(np.arange(len(recordings)))[:, :3].astype(int)}
    n_actions = 0
    for row, observations, valid, has_action, actions, *_ in zip(rows, *windows[:4], strict=True):
        number, episode, time = recordings.observations[row, :3].astype(int)
        for step, observation in enumerate(observations):
            expected = (number, episode, time + step - n_before)
            assert valid[step] == (expected in where)
            assert has_action[step] <= valid[step]
            if not valid[step]:
                # Padding stays in the episode
                assert tuple(observation[:2]) == (number, episode)
                continue
            assert tuple(observation[:3]) == expected
            if step + 1 < len(observations) and valid[step + 1]:
                assert has_action[step] == 1
                np.testing.assert_allclose(observations[step + 1, 3:], np.ravel(actions[step]), atol=1e-6)
                n_actions += 1
    return n_actions


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "continuous"])
@pytest.mark.parametrize("source", SOURCES)
def test_windows_hold_what_the_environment_was_told_and_told(source, action_space, tmp_path):
    if source == "full replay buffer that saves memory" and action_space is BOX:
        action_space = spaces.Box(-2.0, 3.0, (1, 2))
    recordings = SOURCES[source](tmp_path, action_space)
    assert recordings.action_space == action_space
    rows = np.random.default_rng(0).permutation(len(recordings))
    for n_steps, n_before in ((1, 0), (4, 0), (4, 3), (5, 2)):
        windows = recordings.windows(rows, n_steps, n_before)
        assert check_windows(recordings, windows, rows, n_before) > 0 or n_steps == 1
        assert windows.actions.shape == (len(rows), n_steps, *action_space.shape)
        assert windows.actions.dtype == action_space.dtype
        told = windows.has_action > 0
        times, actions = windows.observations[told][:, 2], windows.actions[told]
        summed = actions.reshape(len(actions), -1).sum(axis=1)
        if "rollout" not in source:
            np.testing.assert_allclose(windows.rewards[told], times + 1 + summed, atol=1e-5)
        if windows.terminated is not None:
            shown = windows.observations[told].astype(int)[:, :3]
            ended = [time + 1 == length_of(*at) and not is_cut_by_time(at[1]) for *at, time in shown]
            assert windows.terminated[told].tolist() == ended
    knows_terminations = "rollout" not in source and "saves memory" not in source
    assert (windows.terminated is not None) == knows_terminations


def test_the_last_observation_of_an_episode_has_no_action(tmp_path):
    recordings = record(tmp_path, DISCRETE)
    shown = recordings.observations[:, :3].astype(int)
    is_last = np.array([time == length_of(number, episode) for number, episode, time in shown])
    # And neither have the last rows of the recording
    assert is_last.sum() > 5
    assert not recordings.has_action[is_last].any()
    assert recordings.has_action[~is_last][:-2].all()
    assert not recordings.has_action[-1]


def test_rewards_of_a_rollout_include_no_others_where_no_time_limit_was():
    recordings = rollout(StockPPO)(None, DISCRETE)
    shown = recordings.observations[:, :3].astype(int)
    is_cut = [time + 1 == length_of(number, episode) and is_cut_by_time(episode) for number, episode, time in shown]
    expected = shown[:, 2] + 1 + recordings.actions
    assert np.array_equal(np.isclose(recordings.rewards, expected), ~np.array(is_cut))


def test_a_buffer_with_hindsight_has_what_was_done():
    model = DQN(
        "MultiInputPolicy", BitFlippingEnv(4), replay_buffer_class=HerReplayBuffer, buffer_size=30, device="cpu", seed=0
    )
    recordings = read_buffer(model.learn(50).replay_buffer)
    windows = recordings.windows(np.arange(30), 2)
    follows = windows.valid[:, 1] > 0
    flipped = np.abs(np.diff(windows.observations["observation"].astype(int), axis=1))[follows, 0]
    assert follows.sum() > 15
    assert np.array_equal(flipped, np.eye(4)[windows.actions[follows, 0]])


def test_windows_of_observations_alone():
    recordings = Recordings(NUMBERS, np.arange(6, dtype=np.float32)[:, None], np.array([0, 0, 0, 1, 0, 1]))
    windows = recordings.windows([1, 5], 3, with_actions=False)
    assert windows.observations[..., 0].tolist() == [[1, 2, 4], [5, 5, 5]]
    assert windows.valid.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert windows[2:] == (None,) * 4
    with pytest.raises(ValueError, match=r"`with_actions` must be False for recordings without actions.*`record_env`"):
        recordings.windows([1], 3)


def test_some_keys_of_the_observations():
    space = spaces.Dict(state=NUMBERS, image=spaces.Box(0, 255, (3, 4, 4), np.uint8))
    observations = dict(state=np.arange(4, dtype=np.float32)[:, None], image=np.zeros((4, 3, 4, 4), np.uint8))
    recordings = Recordings(space, observations, np.zeros(4, int))
    windows = recordings.windows([0, 2], 3, with_actions=False, keys=["state"])
    assert windows.observations.keys() == {"state"}
    assert windows.observations["state"][..., 0].tolist() == [[0, 1, 2], [2, 3, 3]]
    assert recordings.take([1], ["image"]).keys() == {"image"}
    with pytest.raises(ValueError, match=r"`keys` must be None or some of the keys of Dict.*got \['images'\]"):
        recordings.take([0], ["images"])
    with pytest.raises(ValueError, match="`keys` must be None"):
        Recordings(NUMBERS, observations["state"], np.zeros(4, int)).take([0], [""])


def test_times_order_the_rows_of_an_episode():
    numbers = np.array([3, 4, 0, 1, 2])
    recordings = Recordings(NUMBERS, numbers[:, None].astype(np.float32), np.zeros(5, int), times=numbers)
    assert recordings.windows([2], 5, with_actions=False).observations[0, :, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rows=[8]), r"`rows` must be whole numbers from 0 to 7, \(batch,\), got array\(\[8\]\)"),
        (dict(rows=[-1]), "`rows` must be whole numbers"),
        (dict(rows=[0.0]), "`rows` must be whole numbers"),
        (dict(rows=3), "`rows` must be whole numbers"),
        (dict(n_steps=0), "`n_steps` must be a positive whole number, got 0"),
        (dict(n_steps=5), "`n_steps` must be at most 4, the rows of the longest episode, got 5"),
        (dict(n_before=2), "`n_before` must be a whole number from 0 to 1, got 2"),
        (dict(with_actions=1), "`with_actions` must be True or False, got 1"),
    ],
)
def test_windows_that_do_not_exist_are_refused(arguments, message):
    recordings = Recordings(NUMBERS, np.zeros((8, 1)), np.arange(8) // 4, DISCRETE, np.zeros(8, int))
    with pytest.raises(ValueError, match=message):
        recordings.windows(**{**dict(rows=[0], n_steps=2), **arguments})
