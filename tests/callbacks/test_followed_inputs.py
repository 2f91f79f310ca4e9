"""Statistics that follow the data for the whole training, and what is told of inputs that are odd."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_jepa import A2C, PPO, JepaCallback, JepaExtractor, load_encoder, save_encoder
from sb3_jepa.callbacks.followed_inputs import follow_inputs
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO, CountingImageEnv, FakeEnv

ALTERNATING = dict(SMALL_POLICY, features_extractor_class=JepaExtractor)


class DriftingEnv(gym.Env):
    """The reward is for an action that has the sign of a column, which is wider the longer the training lasts."""

    def __init__(self, growth: float = 1.0, outlier_at: int = -1, episode_length: int = 16):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Discrete(2)
        self.growth, self.outlier_at, self.episode_length = growth, outlier_at, episode_length
        self.n_steps = 0

    def _observe(self) -> np.ndarray:
        self.sign = self.np_random.choice([-1.0, 1.0])
        value = 1e3 if self.n_steps == self.outlier_at else self.sign * self.growth ** (self.n_steps / 1024)
        return np.array([value, self.np_random.normal()], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        reward = float((action == 1) == (self.sign > 0))
        self.n_steps, self.time = self.n_steps + 1, self.time + 1
        return self._observe(), reward, self.time == self.episode_length, False, {}


class ContinuousDriftingEnv(DriftingEnv):
    """The same with a continuous action."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.action_space = spaces.Box(-1, 1, (1,))

    def step(self, action):
        return super().step(int(action[0] > 0))


def statistics_of(module: th.nn.Module) -> dict[str, th.Tensor]:
    names = ("mean", "variance", "deviation", "n_seen", "n_present", "first_deviation", "first_mean")
    return {name: value for name, value in module.state_dict().items() if name.rpartition(".")[2] in names}


def test_what_the_policy_computes_stays_the_same():
    model = PPO("JepaPolicy", DriftingEnv(), policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(64)
    probe = th.tensor([[1.0, 0.5], [-1.0, -0.5], [0.3, 1.0]])
    encoders = [model.policy.features_extractor, model.policy.objective.target_encoder.encoder]
    before = [encoder(probe) for encoder in encoders]
    weights = [encoder.encoder.tokenizer[1].direction.clone() for encoder in encoders]
    for _ in range(50):
        follow_inputs(model.policy, 0.8 + 4 * np.random.randn(64, 2).astype(np.float32), model.policy.objectives)
    for encoder, embedding, weight in zip(encoders, before, weights, strict=True):
        assert th.allclose(encoder(probe), embedding, atol=1e-4)
        assert not th.allclose(encoder.encoder.tokenizer[1].direction, weight, rtol=0.2)
    own, theirs = (statistics_of(encoder) for encoder in encoders)
    assert all(th.equal(value, theirs[name]) for name, value in own.items())
    assert th.allclose(encoders[0].standardizations[0].mean, th.tensor(0.8), atol=0.7)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "alternating PPO", "DQN"])
def test_statistics_follow_a_column_that_grows(algorithm):
    env = make_vec_env(lambda: DriftingEnv(growth=81.0), n_envs=8, seed=0)
    ppo = dict(SMALL_PPO, batch_size=128, n_epochs=1)
    if algorithm == "PPO":
        model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **ppo).learn(8192)
    elif algorithm == "A2C":
        model = A2C("JepaPolicy", env, n_steps=16, policy_kwargs=dict(SMALL_POLICY), device="cpu").learn(8192)
    elif algorithm == "DQN":
        model = stable_baselines3.DQN(
            "MlpPolicy", env, learning_starts=64, batch_size=16, train_freq=16, policy_kwargs=ALTERNATING, device="cpu"
        ).learn(8192, callback=JepaCallback())
    else:
        model = stable_baselines3.PPO("MlpPolicy", env, policy_kwargs=ALTERNATING, **ppo)
        model.learn(8192, callback=JepaCallback())
    extractors = [one for one in model.policy.modules() if isinstance(one, JepaExtractor)]
    # 81 at the end, and 27 in the middle of the 8,192 steps of which the deviation tells
    for extractor in extractors:
        (standardization,) = extractor.standardizations
        assert 10 < standardization.deviation[0] < 80
        assert 0.7 < standardization.deviation[1] < 1.4
        assert standardization.n_seen > 2000
    # Target networks and target encoders see what the others see
    states = [statistics_of(extractor) for extractor in extractors]
    for state in states[1:]:
        assert all(th.equal(value, states[0][name]) for name, value in state.items())


def test_what_is_frozen_does_not_follow(tmp_path):
    model = PPO("JepaPolicy", DriftingEnv(), policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(64)
    path = save_encoder(model, tmp_path / "encoder.pth")
    dqn = stable_baselines3.DQN(
        "MlpPolicy", DriftingEnv(growth=9.0), learning_starts=64, train_freq=16, policy_kwargs=ALTERNATING, device="cpu"
    )
    load_encoder(dqn, path, freeze=True)
    before = {name: value.clone() for name, value in dqn.policy.state_dict().items() if "extractor" in name}
    dqn.learn(1100, callback=JepaCallback())
    after = dqn.policy.state_dict()
    assert all(th.equal(value, after[name]) for name, value in before.items())


def test_the_target_network_of_a_frozen_encoder_that_is_shared_does_not_follow(tmp_path):
    policy_kwargs = dict(ALTERNATING, share_features_extractor=True)

    def make():
        env = make_vec_env(lambda: ContinuousDriftingEnv(growth=9.0), n_envs=8, seed=0)
        return stable_baselines3.SAC(
            "MlpPolicy", env, learning_starts=64, train_freq=16, policy_kwargs=dict(policy_kwargs), device="cpu"
        )

    path = save_encoder(make().learn(128, callback=JepaCallback()), tmp_path / "encoder.pth")
    model = make()
    load_encoder(model, path, freeze=True)
    model.learn(2500, callback=JepaCallback())
    own, target = model.critic.features_extractor, model.critic_target.features_extractor
    theirs = statistics_of(target)
    assert all(th.equal(value, theirs[name]) for name, value in statistics_of(own).items())


@pytest.mark.parametrize("by_keyword", [True, False])
def test_an_encoder_within_another_extractor_follows(by_keyword):
    class Twice(BaseFeaturesExtractor):
        """What the encoder sees is known only inside."""

        def __init__(self, observation_space):
            super().__init__(observation_space, features_dim=16)
            self.inner = JepaExtractor(observation_space, **SMALL_EXTRACTOR)

        def forward(self, observations):
            return self.inner(observations=2 * observations) if by_keyword else self.inner(2 * observations)

    kwargs = dict(features_extractor_class=Twice, net_arch=[16])
    model = stable_baselines3.PPO("MlpPolicy", DriftingEnv(), policy_kwargs=kwargs, **SMALL_PPO)
    model.learn(64, callback=JepaCallback())
    probe = th.tensor([[1.0, 0.5], [-1.0, -0.5]])
    before = model.policy.features_extractor(probe)
    for _ in range(100):
        follow_inputs(model.policy, 3 * np.random.randn(200, 2).astype(np.float32), {})
    (standardization,) = model.policy.features_extractor.inner.standardizations
    assert th.allclose(standardization.deviation, th.tensor(6.0), rtol=0.1)
    assert th.allclose(model.policy.features_extractor(probe), before, atol=1e-4)


def test_a_column_at_thirty_deviations_is_told_once():
    model = PPO("JepaPolicy", DriftingEnv(outlier_at=20), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    with pytest.warns(UserWarning, match=r"number 0 of the observation \(\d+\).*clipped") as told:
        model.learn(256)
    assert len([warning for warning in told if "deviations away" in str(warning.message)]) == 1


def test_the_key_of_an_odd_number_is_told():
    class Spike(FakeEnv):
        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed)
            return self._spike(observation), info

        def step(self, action):
            observation, *others = super().step(action)
            return self._spike(observation), *others

        def _spike(self, observation):
            observation["joints"][2] += 1e4 * (self.np_random.random() < 0.01)
            return observation

    space = spaces.Dict(joints=spaces.Box(-1, 1, (3,)), mode=spaces.Discrete(2))
    env = make_vec_env(lambda: Spike(space), n_envs=2, seed=0)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **dict(SMALL_PPO, n_steps=128))
    with pytest.warns(UserWarning, match="number 2 of joints"):
        model.learn(2048)


class BlackEnv(CountingImageEnv):
    """A renderer that is not there."""

    def _observation(self) -> np.ndarray:
        return np.zeros((3, 16, 16), dtype=np.uint8)


def test_constant_observations_are_told_before_training():
    class Note(BaseCallback):
        def _on_step(self) -> bool:
            if self.model._n_updates == 0:
                self.n_told = len(told)
            return True

    env = make_vec_env(lambda: BlackEnv(0, (5,)), n_envs=2)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.learn(96, callback=Note())
    texts = [str(warning.message) for warning in told]
    (constant,) = (number for number, text in enumerate(texts) if "All 32 observations" in text)
    assert "renderer" in texts[constant]
    # A collapse is a consequence, for which there is no other cure
    assert all("deviation_coef" not in text for text in texts)


def test_categories_that_vary_are_no_constant_observations():
    class Still(FakeEnv):
        def step(self, action):
            observation, *others = super().step(action)
            observation["vector"][:] = 0.0
            return observation, *others

        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed)
            observation["vector"][:] = 0.0
            return observation, info

    space = spaces.Dict(vector=spaces.Box(-1, 1, (3,)), mode=spaces.Discrete(2))
    model = PPO("JepaPolicy", Still(space), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="All .* observations")
        model.learn(32)


@pytest.mark.expensive
@pytest.mark.parametrize("kwargs", [dict(outlier_at=300), dict(growth=3.0)])
def test_what_decides_the_reward_is_learned_in_spite_of_odd_inputs(kwargs):
    """16 for always right, 8 for chance. With a deviation that one outlier decides about, nothing is learned."""
    env = make_vec_env(lambda: DriftingEnv(**kwargs), n_envs=8, seed=0)
    model = PPO("JepaPolicy", env, seed=0, device="cpu").learn(20_000)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert np.mean(returns) > 14


def test_short_rollouts_are_gathered_until_they_tell_enough():
    env = make_vec_env(lambda: DriftingEnv(growth=9.0), n_envs=2, seed=0)
    policy_kwargs = dict(features_extractor_kwargs=dict(SMALL_EXTRACTOR, standardize_frames=10), net_arch=[16])
    model = A2C("JepaPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    (standardization,) = model.policy.features_extractor.standardizations
    # In parts, as a training that goes on
    for n_steps, n_seen in ((600, 10), (500, 1030), (1000, 2050)):
        model.learn(n_steps, reset_num_timesteps=False)
        assert int(standardization.n_seen) == pytest.approx(n_seen, abs=10)
