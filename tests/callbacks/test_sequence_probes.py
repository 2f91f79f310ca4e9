"""The callback that asks what an encoder of histories knows of actions."""

import csv

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_jepa import DQN, PPO, SequenceExtractor, SequencePrediction, SequenceProbeCallback
from sb3_jepa.envs import VecHistory
from tests.conftest import SMALL_PPO
from tests.envs.test_history import Counting

POLICY_KWARGS = dict(
    features_extractor_class=SequenceExtractor,
    features_extractor_kwargs=dict(embed_dim=16, action_embed_dim=8, num_heads=2),
    objective_class=SequencePrediction,
)


class Walk(Counting):
    """Each action moves the number that is seen by -1, 0 or 1."""

    def __init__(self):
        super().__init__(spaces.Discrete(3), episode_steps=20)
        self.place = 0.0

    def reset(self, *, seed=None, options=None):
        self.place = 0.0
        return super().reset(seed=seed)

    def step(self, action):
        self.place += action - 1.0
        return super().step(action)

    def _observation(self):
        return np.full(2, self.place / 5, np.float32)


def test_a_walk_shows_its_actions(tmp_path):
    env = VecHistory(DummyVecEnv([Walk] * 4), 4)
    model = PPO("JepaPolicy", env, policy_kwargs=POLICY_KWARGS, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(2_000, callback=SequenceProbeCallback(every_n_steps=1, with_mlp=True))
    with (tmp_path / "progress.csv").open() as file:
        *_, last = csv.DictReader(file)
    probes = {name.removeprefix("jepa_probe/"): float(value) for name, value in last.items() if "probe" in name}
    assert set(probes) == {"relative_action", "relative_action_mlp", "path_integration"}
    assert min(probes.values()) > 0.3


def test_it_goes_with_an_off_policy_algorithm():
    model = DQN("JepaPolicy", VecHistory(DummyVecEnv([Walk]), 3), policy_kwargs=POLICY_KWARGS, learning_starts=50)
    callback = SequenceProbeCallback(every_n_steps=1)
    model.learn(200, callback=callback)
    assert set(callback.measure()) == {"relative_action", "path_integration"}


def test_an_encoder_without_histories_is_refused():
    model = PPO("JepaPolicy", "CartPole-v1", **SMALL_PPO)
    with pytest.raises(ValueError, match="SequenceExtractor"):
        model.learn(64, callback=SequenceProbeCallback())
