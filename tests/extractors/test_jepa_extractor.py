import inspect
import json
import warnings
from functools import partial

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_jepa import JepaExtractor
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, FakeEnv


def image_space(*shape: int, dtype=np.uint8, high=255) -> spaces.Box:
    return spaces.Box(0, high, shape, dtype)


@pytest.mark.parametrize("frames_as", ["changes", "channels", "tokens"])
@pytest.mark.parametrize(("channels", "frames"), [(3, 3), (9, 3), (1, 1), (4, 4)])
def test_shapes(frames_as, channels, frames):
    kwargs = dict(embed_dim=32, patch_size=16, frames=frames, frames_as=frames_as)
    extractor = JepaExtractor(image_space(channels, 32, 48), **kwargs)
    assert extractor.features_dim == 32
    images = th.rand(5, channels, 32, 48)
    assert extractor.encoder.tokenizer(images).shape == (5, 6 * frames if frames_as == "tokens" else 6, 32)
    assert extractor(images).shape == (5, 32)


def test_frames_are_guessed():
    n_tokens = {
        channels: JepaExtractor(image_space(channels, 32, 48), frames_as="tokens", patch_size=16)
        .encoder.tokenizer(th.rand(1, channels, 32, 48))
        .shape[1]
        for channels in (1, 2, 3, 4, 6, 9, 12)
    }
    # Grey frames, and from 6 on RGB frames where they can be
    assert n_tokens == {1: 6, 2: 12, 3: 18, 4: 24, 6: 12, 9: 18, 12: 24}


VECTOR = spaces.Box(-1, 1, (4,))


@pytest.mark.parametrize(
    ("space", "n_tokens"),
    [
        (VECTOR, 4),
        (spaces.Box(-np.inf, np.inf, (2, 3)), 6),
        (spaces.Box(0, 9, (), np.int64), 1),
        (spaces.Discrete(5), 1),
        (spaces.MultiDiscrete([3, 2, 4]), 3),
        (spaces.MultiBinary(4), 4),
        (spaces.MultiBinary([2, 3]), 6),
        # Patches that do not fill the image
        (image_space(3, 84, 84), 36),
        # As Gymnasium stacks RGB frames
        (image_space(4, 32, 48, 3), 24),
        (spaces.Dict({"a.b": VECTOR, "camera": image_space(3, 32, 32), "mode": spaces.Discrete(3)}), 4 + 16 + 1),
    ],
)
def test_every_space_becomes_tokens(space, n_tokens):
    extractor = JepaExtractor(space, embed_dim=16, num_heads=2, standardize_frames=8)
    env = DummyVecEnv([lambda: FakeEnv(space)] * 8)
    observations = preprocess_obs(obs_as_tensor(env.reset(), "cpu"), space)
    assert extractor.encoder.tokenizer(observations).shape == (8, n_tokens, 16)
    embedding = extractor(observations)
    assert embedding.shape == (8, 16)
    # Other observations have other embeddings, and all that is learned takes part in that
    assert embedding.std(dim=0).min() > 0
    embedding.square().mean().backward()
    for name, parameter in extractor.named_parameters():
        assert parameter.grad is not None, name
    extractor.measure_inputs(observations)
    assert extractor.n_inputs_to_measure == 0


def test_keys_are_told_apart():
    extractor = JepaExtractor(spaces.Dict(left=VECTOR, right=VECTOR), embed_dim=16, num_heads=2)
    left, right = extractor.encoder.tokenizer.tokenizers.values()
    right.load_state_dict(left.state_dict())
    here, there = th.rand(2, 5, 4)
    difference = extractor(dict(left=here, right=there)) - extractor(dict(left=there, right=here))
    assert difference.abs().max() > 1e-4


def test_columns_are_standardised_one_by_one_and_clipped():
    extractor = JepaExtractor(VECTOR, standardize_frames=4)
    vectors = th.tensor([[0.0, 100.0, 5.0, 1e-3], [2.0, 300.0, 5.0, -1e-3]]).repeat(2, 1)
    extractor.measure_inputs(vectors)
    (standardization,) = extractor.standardizations
    assert th.allclose(standardization(vectors[:2]), th.tensor([[-1.0, -1.0, 0.0, 1.0], [1.0, 1.0, 0.0, -1.0]]))
    assert th.allclose(standardization(th.tensor([[1.0, 200.0, 6.0, 1.0]])), th.tensor([[0.0, 0.0, 1.0, 10.0]]))


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (image_space(3, 8, 8), dict(patch_size=16), "smaller than a patch.*at most 8, got 16.*None"),
        (image_space(4, 32, 48), dict(frames=3), "frames=3.*4 channels"),
        (image_space(7, 7, 12), {}, "in doubt.*channels_first=True.*7 in front.*channels_first=False.*12 at the end"),
        (spaces.Box(-1, 1, (9000,)), dict(numbers_per_token=2), "numbers_per_token=2.*4500 tokens.*at most 4096"),
        (spaces.Box(-1, 1, (9000,)), dict(missing_as_nan=True), "numbers_per_token=1.*9000 tokens"),
        (spaces.Tuple([VECTOR, VECTOR]), {}, "Box, Discrete, MultiDiscrete.*Tuple"),
        (image_space(3, 32, 32), dict(num_heads=3), "num_heads"),
    ],
)
def test_bad_input(space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        JepaExtractor(space, **kwargs)


def test_initialisation_survives_ortho_init(pixel_cartpole):
    # In a stock policy, which does not exempt our extractor from it
    model = stable_baselines3.PPO(
        "CnnPolicy",
        pixel_cartpole,
        policy_kwargs=dict(features_extractor_class=JepaExtractor, **SMALL_POLICY),
        seed=0,
        device="cpu",
    )
    assert model.policy.ortho_init
    set_random_seed(0)
    born = JepaExtractor(model.observation_space, **SMALL_EXTRACTOR).state_dict()
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
    assert all((block.mlp[0].weight == 0.5).all() for block in extractor.encoder.blocks)


def test_learning_from_inputs_that_are_not_standardised_is_told():
    extractor = JepaExtractor(image_space(3, 32, 32), standardize_frames=4)
    with pytest.warns(UserWarning, match="not standardised"):
        extractor.train()
    extractor = JepaExtractor(image_space(3, 32, 32), standardize_frames=4).eval()
    extractor.measure_inputs(th.rand(4, 3, 32, 32))
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
        policy_kwargs=dict(features_extractor_class=JepaExtractor, **SMALL_POLICY),
        **kwargs,
    )
    before = {name: value.clone() for name, value in model.policy.named_parameters() if "encoder.blocks" in name}
    model.learn(64)
    trained = dict(model.policy.named_parameters())
    assert any(not th.equal(value, trained[name]) for name, value in before.items())


def test_changes_are_the_same_information_in_another_form():
    # The newest frame is what all channels hold where nothing moves; then a change in the oldest one is seen alone
    extractor = JepaExtractor(image_space(9, 32, 48), embed_dim=32, num_heads=2)
    extractor.measure_inputs(th.rand(50, 9, 32, 48))
    (standardization,) = extractor.standardizations
    still = th.rand(1, 3, 32, 48).repeat(1, 3, 1, 1)
    moved = still.clone()
    moved[:, :3] += 0.1
    difference = standardization(moved) - standardization(still)
    assert th.allclose(difference[:, [0, 1, 2, 6, 7, 8]], th.zeros(()), atol=1e-5)
    assert (difference[:, 3:6] < -0.1).all()


@pytest.mark.parametrize(
    ("space", "kwargs", "resolved"),
    [
        (image_space(9, 64, 96), {}, dict(patch_size=16, frames=3, numbers_per_token=1)),
        (spaces.Box(-1, 1, (60,)), dict(depth=np.int64(1)), dict(patch_size=None, numbers_per_token=2, depth=1)),
        (spaces.MultiDiscrete([3] * 40), dict(frozen=True), dict(numbers_per_token=2, frozen=True)),
        (spaces.Box(-1, 1, (60,)), dict(missing_as_nan=True, autocast=True), dict(numbers_per_token=1, autocast=True)),
        (spaces.Box(-1, 1, (8, 8, 8)), dict(channels_first=False), dict(patch_size=2, frames=None)),
        (image_space(4, 32, 48, 3), dict(output="flat", class_tokens=2), dict(patch_size=8, frames=None)),
        # One number for both is not what was chosen
        (
            spaces.Dict(a=image_space(3, 64, 64), b=image_space(1, 16, 16), c=VECTOR),
            dict(frames_as="tokens"),
            dict(patch_size=None, frames=None),
        ),
    ],
)
def test_an_extractor_is_made_again_from_what_its_defaults_came_out_as(space, kwargs, resolved):
    extractor = JepaExtractor(space, embed_dim=16, **kwargs)
    again = JepaExtractor(space, **json.loads(json.dumps(extractor.resolved_kwargs)))
    assert resolved.items() <= extractor.resolved_kwargs.items()
    assert again.resolved_kwargs == extractor.resolved_kwargs
    assert str(again) == str(extractor)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in extractor.state_dict().items()
    }
    # All that an extractor is made from, but what may hold functions
    arguments = set(inspect.signature(JepaExtractor).parameters) - {"observation_space", "compile_kwargs"}
    assert set(extractor.resolved_kwargs) == arguments
