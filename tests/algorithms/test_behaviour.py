"""What takes minutes to show: ``pytest -m expensive``."""

import numpy as np
import pytest

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.envs.pixels import make_pixel_vec_env

pytestmark = pytest.mark.expensive


def train(timesteps: int, **policy_kwargs) -> PPO:
    env = make_pixel_vec_env("CartPole-v1", n_envs=8, seed=0)
    return PPO(JepaPolicy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs).learn(timesteps)


def embedding_variance(model: PPO) -> float:
    """Over the observations of the last rollout."""
    embedding = model.policy.extract_features(model.rollout_buffer.to_torch(model.rollout_buffer.observations))
    return float(embedding.var(dim=0, correction=0).mean())


def test_ppo_learns_cartpole_from_pixels():
    model = train(25_000)
    # A random policy returns 22
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 45


@pytest.mark.filterwarnings("ignore:The encoder has collapsed")
def test_collapse_appears_without_a_regulariser_and_goes_with_it():
    # A predictor that begins stronger than the future is predictable makes the encoder shrink
    paper = dict(predictor_gain=2.0, prediction_coef=1.0, deviation_coef=0.0, covariance_coef=0.0)
    policy_kwargs = dict(rl_gradient=False, encoder_lr_factor=1.0)
    collapsed, saved = (
        train(9_000, objective_kwargs=dict(paper, variance_coef=variance_coef), **policy_kwargs)
        for variance_coef in (0.0, 64.0)
    )
    assert embedding_variance(collapsed) < 1e-3
    assert embedding_variance(saved) > 0.3
