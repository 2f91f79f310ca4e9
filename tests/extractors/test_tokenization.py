"""What an observation looks like decides what becomes a token, without an argument."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs

from sb3_jepa import PPO, JepaCallback, JepaExtractor
from sb3_jepa.buffers.frames import has_frames
from sb3_jepa.inspection.episodes import frames_of
from sb3_jepa.parts import ColumnTokenizer, InputStandardization, StandardizedGridTokenizer, StandardizedPatchTokenizer
from tests.conftest import FakeEnv


def box(*shape: int, dtype=np.float32, low=-1, high=1) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def picture(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("space", "token_shape"),
    [
        # Flat views, as rl-baselines3-zoo has of MiniGrid
        (picture(2835), (32,)),
        (box(400), (31,)),
        (box(33), (17,)),
        (box(32), (32,)),
        (box(6, 40), (30,)),
        (spaces.MultiBinary(200), (29,)),
        (spaces.MultiDiscrete([5] * 100), (25,)),
        # All keys together
        (spaces.Dict(a=box(60), b=box(60), mode=spaces.Discrete(3)), (31,)),
        (spaces.Dict(a=box(3), b=spaces.MultiBinary(4)), (7,)),
        # Grey, without an axis for channels
        (picture(40, 40), (1, 5, 5)),
        # MiniGrid's views, highway-env's occupancy grid, connect four
        (picture(7, 7, 3), (1, 4, 4)),
        (picture(5, 5, 3), (1, 5, 5)),
        (picture(19, 19, 3), (1, 5, 5)),
        (box(5, 11, 11), (1, 6, 6)),
        (box(6, 7, 2, dtype=np.int8, low=0), (1, 6, 7)),
        (box(4, 5, 11, 11), (1, 6, 6)),
        # Stacks of Gymnasium's, of images with their channels first and last
        (picture(2, 3, 64, 64), (1, 4, 4)),
        (picture(4, 84, 84, 1), (1, 6, 6)),
    ],
)
def test_no_argument_is_needed(space, token_shape):
    env = make_vec_env(lambda: FakeEnv(space), n_envs=2, seed=0)
    model = PPO("JepaPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)
    assert model.policy.features_extractor.encoder.token_shape == token_shape
    assert np.array(model.predict(env.reset())[0]).shape == (2,)


def test_long_vectors_do_not_crawl():
    extractor = JepaExtractor(picture(2835))
    assert extractor.encoder.n_tokens <= 32
    # 894,664 with a token for each number
    assert sum(parameter.numel() for parameter in extractor.parameters()) < 260_000
    assert JepaExtractor(box(64), numbers_per_token=1).encoder.n_tokens == 64
    assert JepaExtractor(box(64), numbers_per_token=64).encoder.n_tokens == 1
    # A failed sensor is left out alone
    assert JepaExtractor(box(64), missing_as_nan=True).encoder.n_tokens == 64


@pytest.mark.parametrize(
    ("shape", "change", "n_frames"),
    [
        # As Gymnasium stacks frames, and as Stable-Baselines3 does
        ((2, 4, 32, 48, 3), lambda stacks: stacks.transpose(0, 1, 4, 2, 3).reshape(2, 12, 32, 48), 4),
        # Channels first and last: the smallest axis decides
        ((5, 2, 3, 64, 48), lambda stacks: stacks.transpose(0, 1, 3, 4, 2), 2),
        # A grey picture without a channel, and with one
        ((5, 40, 40), lambda pictures: pictures[:, None], 1),
    ],
)
def test_one_observation_in_two_layouts_has_one_embedding(shape, change, n_frames):
    observations = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    embeddings = []
    for images in (observations, change(observations)):
        th.manual_seed(0)
        extractor = JepaExtractor(picture(*images.shape[1:]))
        embeddings.append(extractor(preprocess_obs(th.as_tensor(images), picture(*images.shape[1:]))))
        # The frames are frames, and not channels of one picture
        assert [one.changes_of for one in extractor.standardizations] == [n_frames]
    assert th.allclose(*embeddings, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "message"), [(spaces.MultiDiscrete([3] * 40), "code"), (box(40), "numbers_per_token=1")]
)
def test_an_old_file_is_not_taken_for_a_new_one(space, message):
    old, new = (JepaExtractor(space, numbers_per_token=n_per_token) for n_per_token in (1, None))
    with pytest.raises(RuntimeError, match=message):
        new.load_state_dict(old.state_dict())


def test_what_stable_baselines3_has_transposed_is_not_transposed_again():
    # channels_first is for the grid, where the smallest axis does not tell
    space = spaces.Dict(camera=picture(84, 84, 3), board=box(8, 8, 8))
    policy_kwargs = dict(features_extractor_kwargs=dict(channels_first=False))
    model = PPO("JepaPolicy", make_vec_env(lambda: FakeEnv(space)), policy_kwargs=policy_kwargs, device="cpu")
    camera = model.policy.features_extractor.encoder.tokenizer.by_key["camera"]
    assert camera.tokenizer.token_shape == (1, 6, 6)


@pytest.mark.parametrize("space", [picture(3, 3, 3), picture(32, 40, 32), box(8, 8, 8), box(8, 8, 12), box(4, 3, 3, 3)])
def test_where_the_channels_are_in_doubt_it_asks(space):
    with pytest.raises(ValueError, match=r"(?s)Which axis.*channels_first=True.*channels_first=False"):
        JepaExtractor(space)
    for channels_first in (True, False):
        extractor = JepaExtractor(space, channels_first=channels_first)
        assert extractor(th.zeros(2, *space.shape)).shape == (2, 64)


def test_the_channels_of_a_grid_have_units_of_their_own():
    class Metres(FakeEnv):
        def step(self, action):
            observation, *others = super().step(action)
            observation[1] *= 1000
            return observation, *others

    model = PPO("JepaPolicy", Metres(box(5, 11, 11)), n_steps=64, batch_size=64, n_epochs=1, device="cpu").learn(64)
    (standardization,) = model.policy.features_extractor.standardizations
    deviations = standardization.deviation.flatten()
    assert deviations[1] / deviations[0] > 300
    assert isinstance(model.policy.features_extractor.encoder.tokenizer, StandardizedGridTokenizer)


def test_images_go_on_to_be_images():
    tokenizer = JepaExtractor(picture(3, 64, 96)).encoder.tokenizer
    assert isinstance(tokenizer, StandardizedPatchTokenizer)
    # Floats that are said to be images, wherever their channels are
    for shape in ((3, 32, 32), (32, 32, 3)):
        extractor = JepaExtractor(box(*shape, low=0), normalized_image=True)
        assert any(isinstance(module, StandardizedPatchTokenizer) for module in extractor.modules())


def test_frame_stacks_of_gymnasium_share_their_frames():
    assert has_frames(picture(4, 3, 64, 64))
    assert has_frames(picture(2, 64, 64, 3))
    assert not has_frames(picture(64, 64, 3))


@pytest.mark.skipif(not hasattr(gym.wrappers, "FrameStackObservation"), reason="Gymnasium has it since 1.0")
def test_gymnasium_stacks_channels_first_images():
    def make():
        return gym.wrappers.FrameStackObservation(FakeEnv(picture(3, 32, 32)), 2)

    model = PPO("JepaPolicy", make_vec_env(make), n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(16)
    assert model.observation_space.shape == (2, 3, 32, 32)
    frames = frames_of(np.zeros((5, 2, 3, 32, 40), dtype=np.uint8))
    assert frames.shape == (5, 2, 32, 40, 3)


def test_alternating_training_needs_no_argument_either():
    env = make_vec_env(lambda: FakeEnv(picture(7, 7, 3)), n_envs=2, seed=0)
    policy_kwargs = dict(features_extractor_class=JepaExtractor)
    model = stable_baselines3.DQN(
        "CnnPolicy", env, learning_starts=20, batch_size=16, policy_kwargs=policy_kwargs, device="cpu"
    )
    model.learn(64, callback=JepaCallback())
    assert model.policy.q_net.features_extractor.encoder.token_shape == (1, 4, 4)


def test_columns_that_are_not_standardised_are_none_to_follow():
    extractor = JepaExtractor(spaces.MultiBinary(10))
    assert not any(isinstance(module, InputStandardization) for module in extractor.modules())
    assert isinstance(extractor.encoder.tokenizer, ColumnTokenizer)
    assert not extractor.follows_inputs
