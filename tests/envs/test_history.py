"""Histories: what they hold, that they never reach over the begin of an episode, and where they go with SB3."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import sb3_jepa
from sb3_jepa import SequenceExtractor, SequencePrediction
from sb3_jepa.common.actions import encode_actions
from sb3_jepa.envs import HistoryObservation, VecHistory

ACTION_SPACES = [
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
]


class Counting(gym.Env):
    """Counts its steps, and its episodes in hundreds; they are truncated after ``episode_steps``."""

    def __init__(self, action_space=ACTION_SPACES[0], episode_steps=5, observation_space=None):
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space, self.episode_steps = action_space, episode_steps
        self.count, self.episode = 0, 0

    def _observation(self):
        number = 100 * self.episode + self.count
        if isinstance(self.observation_space, spaces.Dict):
            return {"number": np.full(2, number, np.float32), "kind": number % 3}
        return np.full(2, number, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.episode = 0, self.episode + 1
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        return self._observation(), 1.0, False, self.count >= self.episode_steps, {}


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=lambda space: type(space).__name__)
def test_views_actions_and_mask_are_those_of_the_episode(action_space):
    env = VecHistory(DummyVecEnv([lambda: Counting(action_space), lambda: Counting(action_space, 3)]), length=3)
    histories = env.reset()
    action_space.seed(0)
    expected = [[100.0], [100.0]]
    taken = [[], []]
    for _ in range(12):
        assert histories in spaces.Dict({key: _batched(space) for key, space in env.observation_space.items()})
        for index in range(2):
            views = expected[index][-3:]
            np.testing.assert_array_equal(histories["views"][index, :, 0], [0.0] * (3 - len(views)) + views)
            np.testing.assert_array_equal(histories["is_real"][index], [0] * (3 - len(views)) + [1] * len(views))
            actions = taken[index][-2:]
            padded = [np.zeros(histories["actions"].shape[2])] * (2 - len(actions)) + actions
            np.testing.assert_allclose(histories["actions"][index], padded, atol=1e-6)
        chosen = np.stack([action_space.sample() for _ in range(2)])
        histories, _, dones, infos = env.step(chosen)
        for index in range(2):
            # As buffers encode what they store
            stored = th.as_tensor(chosen[index : index + 1]).float().reshape(1, -1)
            encoded = encode_actions(stored, action_space)[0].numpy()
            taken[index].append(encoded)
            expected[index].append(expected[index][-1] + 1)
            if dones[index]:
                last = infos[index]["terminal_observation"]
                np.testing.assert_array_equal(last["views"][:, 0], expected[index][-3:])
                np.testing.assert_allclose(last["actions"], taken[index][-2:], atol=1e-6)
                assert last["is_real"].all()
                expected[index] = [100.0 * (expected[index][-1] // 100 + 1)]
                taken[index] = []


def _batched(space):
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary((2, *space.shape))
    return spaces.Box(np.stack([space.low] * 2), np.stack([space.high] * 2), dtype=space.dtype)


def test_what_was_returned_does_not_change_later():
    env = VecHistory(DummyVecEnv([Counting]), length=3)
    first = env.reset()
    before = {key: array.copy() for key, array in first.items()}
    env.step(np.zeros(1, int))
    assert all(np.array_equal(before[key], first[key]) for key in first)


def test_each_key_of_a_dict_has_its_views_and_categories_are_one_hot():
    space = spaces.Dict(number=spaces.Box(-np.inf, np.inf, (2,), np.float32), kind=spaces.Discrete(3))
    env = VecHistory(DummyVecEnv([lambda: Counting(observation_space=space)]), length=2)
    env.reset()
    histories, *_ = env.step(np.zeros(1, int))
    np.testing.assert_array_equal(histories["views_number"][0, :, 0], [100, 101])
    np.testing.assert_array_equal(histories["views_kind"][0], [[0, 1, 0], [0, 0, 1]])


def test_keys_that_are_not_named_stay_as_they_are():
    space = spaces.Dict(number=spaces.Box(-np.inf, np.inf, (2,), np.float32), kind=spaces.Discrete(3))
    env = VecHistory(DummyVecEnv([lambda: Counting(observation_space=space)]), length=2, keys=["number"])
    assert set(env.observation_space) == {"views_number", "kind", "actions", "is_real"}
    env.reset()
    histories, *_ = env.step(np.zeros(1, int))
    np.testing.assert_array_equal(histories["kind"], [101 % 3])


def test_the_gymnasium_wrapper_gives_the_same():
    vec = VecHistory(DummyVecEnv([Counting]), length=3)
    single = HistoryObservation(Counting(), length=3)
    check_env(HistoryObservation(gym.make("CartPole-v1"), length=3))
    histories, (history, _) = vec.reset(), single.reset()
    for step in range(4):
        assert all(np.array_equal(histories[key][0], history[key]) for key in history)
        assert history in single.observation_space
        histories, *_ = vec.step(np.array([step % 3]))
        history, *_ = single.step(step % 3)


@pytest.mark.parametrize("length", [0, 1, 2.5, "4", None])
def test_a_length_is_a_whole_number_from_two_on(length):
    with pytest.raises(ValueError, match="`length`"):
        VecHistory(DummyVecEnv([Counting]), length=length)


def test_a_history_is_not_longer_than_the_episode():
    with pytest.raises(ValueError, match="`length` must be at most 6"):
        VecHistory(DummyVecEnv([lambda: gym.make("CartPole-v1", max_episode_steps=5)]), length=7)
    with pytest.raises(ValueError, match="`length` must be at most 6"):
        HistoryObservation(gym.make("CartPole-v1", max_episode_steps=5), length=7)


def test_actions_that_are_no_arrays_are_refused():
    env = Counting(spaces.Tuple([spaces.Discrete(2)]))
    with pytest.raises(ValueError, match="needs observations and actions"):
        HistoryObservation(env)


POLICY_KWARGS = dict(
    features_extractor_class=SequenceExtractor,
    features_extractor_kwargs=dict(embed_dim=16, action_embed_dim=8, num_heads=2),
    objective_class=SequencePrediction,
)


def test_normalised_inside_and_evaluated(tmp_path):
    def make():
        return VecHistory(VecNormalize(make_vec_env("CartPole-v1", n_envs=2)), length=4)

    model = sb3_jepa.PPO("JepaPolicy", make(), n_steps=32, batch_size=32, n_epochs=1, policy_kwargs=POLICY_KWARGS)
    model.learn(128, callback=EvalCallback(make(), eval_freq=32, n_eval_episodes=2, log_path=str(tmp_path)))
    assert (tmp_path / "evaluations.npz").is_file()
    mean, _ = evaluate_policy(model.policy, VecMonitor(make()), 2)
    assert mean > 0


def test_normalised_outside_by_the_keys_of_the_views():
    env = VecNormalize(VecHistory(make_vec_env("Pendulum-v1", n_envs=2), length=4), norm_obs_keys=["views"])
    model = sb3_jepa.PPO("JepaPolicy", env, n_steps=32, batch_size=32, n_epochs=1, policy_kwargs=POLICY_KWARGS)
    model.learn(64)


def test_goals_stay_for_a_hindsight_buffer():
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=4, continuous=True)])
    histories = VecHistory(env, length=3, keys=["observation"])
    assert {"desired_goal", "achieved_goal", "views_observation"} <= set(histories.observation_space)
    model = sb3_jepa.SAC(
        "JepaPolicy", histories, replay_buffer_class=HerReplayBuffer, learning_starts=20, policy_kwargs=POLICY_KWARGS
    )
    model.learn(60)


def test_images_of_a_history_are_stored_once():
    class Noise(Counting):
        def _observation(self):
            return self.observation_space.sample()

    image = spaces.Box(0, 255, (1, 48, 48), np.uint8)
    histories = VecHistory(DummyVecEnv([lambda: Noise(episode_steps=200, observation_space=image)] * 2), length=8)
    model = sb3_jepa.PPO(
        "JepaPolicy", histories, n_steps=64, batch_size=64, n_epochs=1, policy_kwargs=POLICY_KWARGS, seed=0
    )
    model.learn(128)
    stored = model.rollout_buffer.observations["views"]
    copies = 64 * 2 * 8 * 48 * 48
    assert stored.nbytes <= 1.3 / 8 * copies
