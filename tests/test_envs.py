import sys

import cv2
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_jepa.envs import make_pixel_vec_env, pixel_observations


@pytest.mark.parametrize(
    ("env_id", "kwargs", "shape"),
    [
        ("CartPole-v1", {}, (3, 64, 96)),
        ("Pendulum-v1", {}, (3, 64, 64)),
        ("CartPole-v1", dict(frame_size=[40, 48], frames=2), (2, 40, 48)),
        ("CartPole-v1", dict(grayscale=False, frames=2, frame_size=32), (6, 32, 48)),
        ("CartPole-v1", dict(crop=(140, 340, 0, 600), frame_size=48), (3, 48, 144)),
    ],
)
def test_shape_and_type(env_id, kwargs, shape):
    env = make_pixel_vec_env(env_id, n_envs=2, seed=0, **kwargs)
    observations = env.reset()
    assert env.observation_space.shape == shape
    assert observations.shape == (2, *shape)
    assert observations.dtype == np.uint8
    assert is_image_space(env.observation_space)
    assert is_image_space_channels_first(env.observation_space)
    assert env.observation_space.contains(observations[0])
    env.close()


@pytest.mark.parametrize("grayscale", [True, False])
def test_frames_are_the_rendered_pictures_in_order(grayscale):
    env = pixel_observations(gym.make("CartPole-v1", render_mode="rgb_array"), 32, (100, 400, 0, 600), grayscale)

    def frame() -> np.ndarray:
        picture = cv2.resize(env.render()[100:400], (64, 32), interpolation=cv2.INTER_AREA).astype(float)
        # ITU-R 709 luminance
        return (picture @ [0.2125, 0.7154, 0.0721])[None] if grayscale else np.moveaxis(picture, -1, 0)

    observation, _ = env.reset(seed=0)
    frames = [frame()] * 3
    assert np.abs(observation - np.concatenate(frames)).max() <= 1
    for _ in range(5):
        observation, *_ = env.step(1)
        frames = [*frames[1:], frame()]
        assert np.abs(observation - np.concatenate(frames)).max() <= 1
    assert not np.array_equal(frames[0], frames[2])


def test_a_stack_never_spans_two_episodes():
    env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32)
    observations = env.reset()
    assert all((stack == stack[-1]).all() for stack in observations)
    n_ends = 0
    for _ in range(60):
        previous = observations
        observations, _, dones, infos = env.step([env.action_space.sample() for _ in range(2)])
        for index in np.flatnonzero(dones):
            n_ends += 1
            assert (observations[index] == observations[index][-1]).all()
            # ... while the terminal observation still belongs to the episode that ended
            assert (infos[index]["terminal_observation"][:2] == previous[index][1:]).all()
    assert n_ends >= 2


def test_seed_and_vec_env_class():
    first = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=3, frame_size=32, vec_env_cls=SubprocVecEnv)
    second = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=3, frame_size=32)
    assert isinstance(first, SubprocVecEnv)
    assert np.array_equal(first.reset(), second.reset())
    for _ in range(5):
        assert np.array_equal(first.step([0, 1])[0], second.step([0, 1])[0])
    first.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(env_kwargs=dict(render_mode=None)), "render_mode"),
        (dict(crop=(0, 500, 0, 600)), "crop.*400x600.*500"),
        (dict(crop=(10, 10, 0, 600)), "crop"),
        (dict(frames=0), "frames"),
        (dict(frame_size=0), "frame_size"),
        (dict(frame_size=32.5), "frame_size"),
        (dict(frame_size=(32, -1)), "frame_size"),
        (dict(frame_size=(32, 32, 3)), "frame_size"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_pixel_vec_env("CartPole-v1", **kwargs)


def test_from_a_callable_and_numpy_numbers():
    env = make_pixel_vec_env(
        lambda: gym.make("CartPole-v1", render_mode="rgb_array"), frame_size=np.int64(32), n_envs=1
    )
    assert env.reset().shape == (1, 3, 32, 48)


def test_missing_opencv_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"sb3-jepa\[pixels\]"):
        make_pixel_vec_env("CartPole-v1")
