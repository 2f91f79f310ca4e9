"""A training that goes wrong says so, and why, before its parameters are lost."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces

from sb3_jepa import A2C, PPO, JepaCallback, JepaExtractor
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO


class RewardingEnv(gym.Env):
    """All rewards are one, but for that of one step."""

    def __init__(self, odd_reward: float, odd_step: int = 20, action_space: spaces.Space | None = None):
        self.observation_space = spaces.Box(-1, 1, (3,))
        self.action_space = action_space or spaces.Discrete(2)
        self.odd_reward, self.odd_step, self.n_steps = odd_reward, odd_step, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.n_steps += 1
        reward = self.odd_reward if self.n_steps == self.odd_step else 1.0
        return self.observation_space.sample(), reward, self.n_steps % 7 == 0, False, {}


ALTERNATING = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16])


def make_model(name: str, env: gym.Env, **kwargs):
    if name == "PPO":
        return PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, **kwargs})
    if name == "A2C":
        return A2C("JepaPolicy", env, policy_kwargs=dict(SMALL_POLICY), seed=0, device="cpu", **kwargs)
    if name == "alternating PPO":
        return stable_baselines3.PPO("MlpPolicy", env, policy_kwargs=dict(ALTERNATING), **{**SMALL_PPO, **kwargs})
    return stable_baselines3.SAC(
        "MlpPolicy",
        env,
        learning_starts=16,
        batch_size=8,
        policy_kwargs=dict(ALTERNATING),
        seed=0,
        device="cpu",
        **kwargs,
    )


ALGORITHMS = ["PPO", "A2C", "alternating PPO", "SAC"]


@pytest.mark.parametrize("reward", [np.nan, np.inf])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_rewards_that_are_not_finite_are_told_where_they_come(name, reward):
    action_space = spaces.Box(-1, 1, (1,)) if name == "SAC" else None
    model = make_model(name, RewardingEnv(reward, action_space=action_space))
    with pytest.raises(ValueError, match=r"diverge.*rewards \[(nan|inf)\] at time step 20"):
        model.learn(64, callback=JepaCallback())
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_learning_rate_of_1e4_has_diverged(name, recwarn):
    action_space = spaces.Box(-1, 1, (1,)) if name == "SAC" else None
    model = make_model(name, RewardingEnv(1.0, action_space=action_space), learning_rate=1e4)
    told = []
    try:
        model.learn(256, callback=JepaCallback())
    except ValueError as error:
        # Too late to go on
        told.append(str(error))
    told += [str(warning.message) for warning in recwarn]
    told = [text for text in told if "has diverged" in text]
    assert told
    assert all("1.0e+04" in text and "learning rate" in text for text in told)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_a_step_that_would_lose_the_parameters_is_not_taken():
    model = make_model("PPO", RewardingEnv(1.0))
    # Finite, but not its square
    model.env.envs[0].env.odd_reward = 3e38
    with pytest.raises(
        ValueError, match=r"diverged: a gradient is NaN or infinite, at the learning rate .*VecNormalize"
    ):
        model.learn(64)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_a_healthy_training_is_not_said_to_diverge(recwarn):
    make_model("PPO", RewardingEnv(1.0)).learn(128)
    assert not [warning for warning in recwarn if "diverged" in str(warning.message)]


def test_the_parameters_of_a_policy_that_is_well_are_far_from_the_limit():
    model = make_model("PPO", RewardingEnv(1.0)).learn(256)
    assert max(float(parameter.detach().abs().max()) for parameter in model.policy.parameters()) < 10


def test_a_watch_that_was_interrupted_leaves_no_hooks_behind():
    model = make_model("alternating PPO", RewardingEnv(np.nan))
    for _ in range(3):
        model.env.envs[0].env.n_steps = 0
        with pytest.raises(ValueError, match="diverge"):
            model.learn(64, callback=JepaCallback())
        assert len(model.policy.optimizer._optimizer_step_pre_hooks) == 1
    model.env.envs[0].env.odd_reward = 1.0
    model.learn(64, callback=JepaCallback())
    assert not model.policy.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("train_freq", [64, (1, "episode")])
def test_long_rollouts_off_policy_are_watched_too(train_freq):
    env = RewardingEnv(1.0, action_space=spaces.Box(-1, 1, (1,)))
    model = make_model("SAC", env, train_freq=train_freq)
    model.learn(150, callback=JepaCallback())
    with th.no_grad():
        model.actor.mu.bias.fill_(1e5)
    with pytest.warns(UserWarning, match="as large as 1.0e"):
        model.learn(300, callback=JepaCallback(), reset_num_timesteps=False)
