"""Replay buffers that shift the images of their samples."""

import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import FrameDictReplayBuffer, FrameReplayBuffer
from sb3_jepa.buffers.shifted_images import shift_images
from sb3_jepa.common.observations import by_key
from sb3_jepa.envs.pixels import make_pixel_vec_env
from tests.conftest import FakeEnv
from tests.parts.test_random_shift import PAD, offsets_of

N_ENVS = 2
STACK = spaces.Box(0, 255, (3, 16, 20), np.uint8)
GYMNASIUM = spaces.Box(0, 255, (4, 16, 20, 3), np.uint8)
LARGE = spaces.Box(0, 255, (2, 36, 40), np.uint8)
VECTOR = spaces.Box(-1.0, 1.0, (4,), np.float32)
BOTH = spaces.Dict(camera=STACK, stack=GYMNASIUM, vector=VECTOR, mode=spaces.Discrete(3))
SPACES = {"stack": STACK, "Gymnasium": GYMNASIUM, "large": LARGE, "Dict": BOTH}


def filled(space: spaces.Space, random_shift: int = PAD, env=None) -> FrameReplayBuffer | FrameDictReplayBuffer:
    buffer_class = FrameDictReplayBuffer if isinstance(space, spaces.Dict) else FrameReplayBuffer
    env = env or make_vec_env(lambda: FakeEnv(space), n_envs=N_ENVS, seed=0)
    buffer = buffer_class(60, env.observation_space, env.action_space, "cpu", n_envs=N_ENVS, random_shift=random_shift)
    originals = env.get_original_obs if isinstance(env, VecNormalize) else lambda: new
    new = env.reset()
    before = originals()
    for _ in range(20):
        new, rewards, dones, infos = env.step(np.array([env.action_space.sample() for _ in range(N_ENVS)]))
        buffer.add(before, originals(), np.zeros((N_ENVS, 1)), rewards, dones, infos)
        before = originals()
    return buffer


def sample_both(buffer, env=None, size: int = 40):
    """The same rows without a shift, and with it."""
    pad, samples = buffer.random_shift, []
    for random_shift in (0, pad):
        buffer.random_shift = random_shift
        np.random.seed(0)
        samples.append(buffer.sample(size, env=env))
    return samples


def draws_of(originals: th.Tensor, shifted: th.Tensor) -> list[tuple[int, int]]:
    """By which draw each image moved, with all its frames and channels alike."""
    draws = []
    for pair in zip(originals, shifted, strict=True):
        planes = [one.movedim(-1, 1).flatten(0, 1) if one.ndim == 4 else one for one in pair]
        (draw,) = offsets_of(*planes)
        draws.append(draw)
    return draws


@pytest.mark.parametrize("name", SPACES)
def test_images_of_samples_are_shifted_and_nothing_else(name):
    buffer = filled(SPACES[name])
    plain, shifted = sample_both(buffer)
    assert all(map(th.equal, plain[1:2] + plain[3:5], shifted[1:2] + shifted[3:5]))
    all_draws = []
    for one, other in (
        (plain.observations, shifted.observations),
        (plain.next_observations, shifted.next_observations),
    ):
        for key, original in by_key(one).items():
            moved = by_key(other)[key]
            assert moved.dtype == original.dtype
            if original.ndim < 4:
                assert th.equal(moved, original)
            else:
                all_draws.append(draws_of(original, moved))
    # Other draws for each sample, each image of a Dict, and for next observations
    assert all(len(set(draws)) > 15 for draws in all_draws)
    assert len(set(map(tuple, all_draws))) == len(all_draws) == (4 if name == "Dict" else 2)


@pytest.mark.parametrize("name", SPACES)
def test_without_a_shift_no_random_number_is_taken(name):
    """That samples are those of Stable-Baselines3 then is held in test_frames.py."""
    buffer = filled(SPACES[name], 0)
    state = th.get_rng_state()
    observations = buffer.sample(30).observations
    assert buffer.shift(observations) is observations
    assert th.equal(th.get_rng_state(), state)


def test_windows_are_shifted_step_by_step():
    """As those of several steps that a buffer's rows are gathered to."""
    buffer = filled(BOTH)
    rows, envs = np.arange(12).reshape(4, 3), np.zeros((4, 1), int)
    windows = {key: th.as_tensor(array[rows, envs]) for key, array in buffer.next_observations.items()}
    shifted = buffer.shift(windows)
    for key in ("camera", "stack"):
        assert shifted[key].shape == windows[key].shape
        draws = draws_of(windows[key].flatten(0, 1), shifted[key].flatten(0, 1))
        assert len(set(draws)) > 6
    assert th.equal(shifted["vector"], windows["vector"])


def test_preprocessed_observations_are_shifted_as_bytes_are():
    observations = {key: th.as_tensor(np.array([BOTH[key].sample() for _ in range(9)])) for key in BOTH.spaces}
    th.manual_seed(0)
    of_bytes = preprocess_obs(shift_images(observations, BOTH, PAD), BOTH)
    th.manual_seed(0)
    of_numbers = shift_images(preprocess_obs(observations, BOTH), BOTH, PAD)
    assert of_numbers["camera"].is_floating_point()
    assert not th.equal(of_numbers["camera"], preprocess_obs(observations, BOTH)["camera"])
    assert all(th.equal(one, of_bytes[key]) for key, one in of_numbers.items())


def test_channels_of_images_that_have_them_last_stay_together():
    space = spaces.Box(-1.0, 1.0, (16, 20, 3), np.float32)
    images = th.as_tensor(np.array([space.sample() for _ in range(9)]))
    shifted = shift_images(images, space, PAD)
    draws = [offsets_of(*pair)[0] for pair in zip(images.movedim(-1, 1), shifted.movedim(-1, 1), strict=True)]
    assert len(set(draws)) > 4


def test_normalized_samples_are_shifted():
    """VecNormalize leaves images as they are, and normalizes the rest."""
    env = VecNormalize(make_vec_env(lambda: FakeEnv(BOTH), n_envs=N_ENVS, seed=0), norm_obs_keys=["vector"])
    plain, shifted = sample_both(filled(BOTH, env=env), env)
    assert len(set(draws_of(plain.observations["camera"], shifted.observations["camera"]))) > 15
    assert th.equal(plain.observations["vector"], shifted.observations["vector"])
    assert not th.equal(plain.observations["vector"], sample_both(filled(BOTH))[0].observations["vector"])


def test_a_buffer_that_was_pickled_without_a_shift_has_none():
    buffer = filled(STACK, 0)
    del buffer.random_shift
    loaded = pickle.loads(pickle.dumps(buffer))
    np.random.seed(0)
    expected = buffer.sample(9).observations
    np.random.seed(0)
    assert th.equal(loaded.sample(9).observations, expected)


def test_dqn_learns_from_shifted_images_and_repeats_itself(tmp_path):
    def train(random_shift: int) -> DQN:
        env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=36)
        kwargs = dict(buffer_size=60, learning_starts=20, batch_size=8, seed=0, device="cpu")
        buffer = dict(replay_buffer_class=FrameReplayBuffer, replay_buffer_kwargs=dict(random_shift=random_shift))
        return DQN("CnnPolicy", env, **kwargs, **buffer).learn(60)

    model, again, without = train(4), train(4), train(0)
    weights = [dict(one.policy.named_parameters())["q_net.q_net.0.weight"] for one in (model, again, without)]
    assert th.equal(weights[0], weights[1])
    assert not th.equal(weights[0], weights[2])
    # A file of the buffer keeps its shift
    model.save_replay_buffer(tmp_path / "buffer")
    without.load_replay_buffer(tmp_path / "buffer")
    assert without.replay_buffer.random_shift == 4


def test_errors():
    discrete = spaces.Discrete(2)
    for space in (VECTOR, spaces.Box(0, 255, (16, 16), np.uint8)):
        with pytest.raises(ValueError, match=r"`random_shift` must be 0 for observations without an image, .* got 4"):
            FrameReplayBuffer(4, space, discrete, random_shift=4)
    with pytest.raises(ValueError, match=r"without an image, and Dict"):
        FrameDictReplayBuffer(4, spaces.Dict(vector=VECTOR), discrete, random_shift=4)
    with pytest.raises(ValueError, match=r"`random_shift` must be a whole number of at least 0, got -1"):
        FrameReplayBuffer(4, STACK, discrete, random_shift=-1)
    for space in (STACK, GYMNASIUM):
        with pytest.raises(ValueError, match=r"smaller than the sides of the images, 16 and 20, got 16"):
            FrameReplayBuffer(4, space, discrete, random_shift=16)
        assert FrameReplayBuffer(4, space, discrete, random_shift=15).random_shift == 15
