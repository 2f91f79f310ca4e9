import warnings
from functools import partial

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_jepa import JepaExtractor
from tests.conftest import SMALL_EXTRACTOR


def image_space(*shape: int, dtype=np.uint8, high=255) -> spaces.Box:
    return spaces.Box(0, high, shape, dtype)


@pytest.mark.parametrize("frames_as", ["changes", "channels", "tokens"])
@pytest.mark.parametrize(("channels", "frames"), [(3, 3), (9, 3), (1, 1), (4, 4)])
def test_shapes(frames_as, channels, frames):
    extractor = JepaExtractor(image_space(channels, 32, 48), embed_dim=32, frames=frames, frames_as=frames_as)
    assert extractor.features_dim == 32
    assert extractor.encoder.tokenizer.n_tokens == (6 * frames if frames_as == "tokens" else 6)
    assert extractor(th.rand(5, channels, 32, 48)).shape == (5, 32)


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (image_space(3, 8, 8), {}, "smaller than a patch"),
        (image_space(3, 84, 84), {}, "divide"),
        (image_space(3, 32, 32, dtype=np.float32, high=1), {}, "uint8.*normalize_images"),
        (image_space(3, 32, 32, high=254), {}, "uint8"),
        (image_space(32, 48, 3), {}, "channels-first.*VecTransposeImage"),
        (image_space(4, 32, 48), {}, "frames=3.*4 channels"),
        (image_space(3, 32, 48), dict(frames=0), "frames"),
        (image_space(12, 32, 48), dict(frames=3), "frames"),
        (spaces.Box(-1, 1, (4,)), {}, "images"),
        (spaces.Dict(image=image_space(3, 32, 32)), {}, "images"),
        (image_space(3, 32, 32), dict(standardize_frames=-1), "standardize_frames"),
        (image_space(3, 32, 32), dict(num_heads=3), "num_heads"),
        (image_space(3, 32, 32), dict(frames_as="batch"), "frames_as.*changes.*channels.*tokens.*batch"),
    ],
)
def test_bad_input(space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        JepaExtractor(space, **kwargs)


def test_initialisation_survives_ortho_init(pixel_cartpole, monkeypatch):
    # In a stock policy, which knows nothing of our extractor
    born = {}

    def make_and_remember(self):
        extractor = JepaExtractor(self.observation_space, **self.features_extractor_kwargs)
        born.update({name: value.clone() for name, value in extractor.state_dict().items()})
        return extractor

    monkeypatch.setattr(ActorCriticPolicy, "make_features_extractor", make_and_remember)
    model = stable_baselines3.PPO(
        "CnnPolicy",
        pixel_cartpole,
        policy_kwargs=dict(
            features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16]
        ),
    )
    assert model.policy.ortho_init
    for name, value in model.policy.features_extractor.state_dict().items():
        assert th.equal(value, born[name]), name
    # ... while the heads did get theirs
    assert model.policy.action_net.weight.abs().max() < 0.05


def test_other_functions_are_applied():
    extractor = JepaExtractor(image_space(3, 32, 32))

    def fill(module: nn.Module, value: float) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, value)

    assert extractor.apply(partial(fill, value=0.5)) is extractor
    assert (extractor.encoder.tokenizer.projection.weight == 0.5).all()


def test_learning_from_inputs_that_are_not_standardised_is_told():
    extractor = JepaExtractor(image_space(3, 32, 32), standardize_frames=4)
    with pytest.warns(UserWarning, match="not standardised"):
        extractor.train()
    extractor = JepaExtractor(image_space(3, 32, 32), standardize_frames=4).eval()
    extractor.standardization.update(th.rand(4, 3, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor.train()


@pytest.mark.filterwarnings("ignore:JepaExtractor is about to learn")
@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "DQN"])
def test_features_extractor_of_stock_algorithms(pixel_cartpole, algorithm):
    kwargs = dict(learning_starts=20, buffer_size=100) if algorithm == "DQN" else dict(n_steps=16)
    model = getattr(stable_baselines3, algorithm)(
        "CnnPolicy",
        pixel_cartpole,
        policy_kwargs=dict(
            features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16]
        ),
        **kwargs,
    )
    before = {name: value.clone() for name, value in model.policy.named_parameters() if "encoder.blocks" in name}
    model.learn(64)
    trained = dict(model.policy.named_parameters())
    assert any(not th.equal(value, trained[name]) for name, value in before.items())


def test_changes_are_the_same_information_in_another_form():
    # The newest frame is what all channels hold where nothing moves; then a change in the oldest one is seen alone
    extractor = JepaExtractor(image_space(9, 32, 48), embed_dim=32, num_heads=2)
    extractor.standardization.update(th.rand(50, 9, 32, 48))
    still = th.rand(1, 3, 32, 48).repeat(1, 3, 1, 1)
    moved = still.clone()
    moved[:, :3] += 0.1
    difference = extractor.standardization(moved) - extractor.standardization(still)
    assert th.allclose(difference[:, [0, 1, 2, 6, 7, 8]], th.zeros(()), atol=1e-5)
    assert (difference[:, 3:6] < -0.1).all()
