import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa import PPO, SAC, JepaExtractor, MlpExtractor, TJepa, load_encoder, save_encoder
from tests.conftest import SMALL_PPO

VECTOR = spaces.Box(-1, 1, (3,))
SPACES = [
    VECTOR,
    spaces.Discrete(4),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
    spaces.Dict(speed=VECTOR, mode=spaces.Discrete(3), load=spaces.Box(-1, 1, (2,))),
]


def batch_of(space: spaces.Space, n: int):
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        samples = {key: np.stack([one[key] for one in samples]) for key in space}
    return preprocess_obs(obs_as_tensor(np.stack(samples) if isinstance(samples, list) else samples, "cpu"), space)


@pytest.mark.parametrize("hidden_layers", [1, 3])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_embeddings_of_all_that_is_no_picture(space, hidden_layers):
    space.seed(0)
    extractor = MlpExtractor(space, 8, hidden_dim=16, hidden_layers=hidden_layers)
    observations = batch_of(space, 5)
    embeddings = extractor(observations)
    assert embeddings.shape == (5, 8)
    embeddings[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())


def test_the_scale_of_an_observation_hardly_matters():
    extractor = MlpExtractor(VECTOR)
    observations = th.randn(64, 3)
    with th.no_grad():
        deviations = [float(extractor(scale * observations).std(dim=0).mean()) for scale in (1.0, 1000.0)]
    assert max(deviations) < 2 * min(deviations)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 255, (3, 16, 16), np.uint8), spaces.Box(-1, 1, (2, 3)), spaces.Dict(grid=spaces.Box(0, 1, (4, 4)))],
)
def test_images_and_grids_are_refused(space):
    with pytest.raises(ValueError, match="`observation_space` must be vectors"):
        MlpExtractor(space)


def test_it_serves_a_jepa_policy_and_is_carried_to_another_model(tmp_path):
    policy_kwargs = dict(features_extractor_class=MlpExtractor, net_arch=[16])
    ppo = PPO("JepaPolicy", gym.make("Pendulum-v1"), policy_kwargs=policy_kwargs, **SMALL_PPO).learn(64)
    save_encoder(ppo, tmp_path / "encoder.pth")
    sac = SAC("JepaPolicy", "Pendulum-v1", seed=0)
    load_encoder(sac, tmp_path / "encoder.pth")
    encoders = (ppo.policy.features_extractor, sac.policy.critic.features_extractor)
    for one, other in zip(*(encoder.parameters() for encoder in encoders), strict=True):
        assert th.equal(one, other)


def test_an_objective_that_hides_tokens_gets_an_encoder_that_has_some():
    model = SAC(
        "JepaPolicy", "Pendulum-v1", policy_kwargs=dict(objective_class=TJepa), learning_starts=10, batch_size=8
    )
    assert isinstance(model.policy.critic.features_extractor, JepaExtractor)
    model.learn(20)
