"""An extractor of a history, of which only the encoder of single observations gives targets."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_jepa import PPO, JepaCallback, JepaExtractor, NextLatentPrediction, load_encoder, save_encoder
from sb3_jepa.callbacks.followed_inputs import follow_inputs
from tests.conftest import SMALL_EXTRACTOR, SMALL_PPO, FakeEnv


class HistoryExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 16)
        self.views = JepaExtractor(spaces.Box(-np.inf, np.inf, observation_space.shape[1:]), **SMALL_EXTRACTOR)
        self.aggregator = th.nn.Linear(16 * observation_space.shape[0], 16)

    @property
    def target_module(self) -> JepaExtractor:
        return self.views

    def forward(self, history):
        views = self.views(history.flatten(0, 1)).unflatten(0, history.shape[:2])
        return self.aggregator(views.flatten(1))


class NextViewPrediction(NextLatentPrediction):
    def prediction_output(self, batch):
        return super().prediction_output(batch._replace(next_observations=batch.next_observations[:, -1]))


@pytest.fixture
def model() -> PPO:
    env = make_vec_env(lambda: FakeEnv(spaces.Box(-1, 1, (3, 4))), n_envs=2, seed=0)
    kwargs = dict(features_extractor_class=HistoryExtractor, objective_class=NextViewPrediction, net_arch=[16])
    return PPO("JepaPolicy", env, policy_kwargs=kwargs, **SMALL_PPO).learn(64, callback=JepaCallback())


def test_the_target_follows_the_inputs_of_single_observations(model):
    encoder, target = model.policy.features_extractor, model.policy.objective.target_encoder.encoder
    probe = th.rand(5, 4) - 0.5
    before = [views(probe) for views in (encoder.views, target)]
    weight = target.encoder.tokenizer[1].direction.clone()
    for _ in range(20):
        follow_inputs(model.policy, 4 * np.random.randn(64, 3, 4).astype(np.float32), model.policy.objectives)
    for views, embedding in zip((encoder.views, target), before, strict=True):
        assert th.allclose(views(probe), embedding, atol=1e-4)
    assert not th.allclose(target.encoder.tokenizer[1].direction, weight, rtol=0.2)
    assert th.equal(target.standardizations[0].deviation, encoder.views.standardizations[0].deviation)


def test_a_loaded_encoder_begins_with_its_target(model, tmp_path):
    path = save_encoder(model, tmp_path / "encoder.pth")
    other = PPO("JepaPolicy", model.env, policy_kwargs=model.policy_kwargs, **dict(SMALL_PPO, seed=1))
    load_encoder(other, path)
    states = (
        other.policy.features_extractor.views.state_dict(),
        other.policy.objective.target_encoder.encoder.state_dict(),
    )
    for name, value in model.policy.features_extractor.views.state_dict().items():
        assert all(th.equal(state[name], value) for state in states)
