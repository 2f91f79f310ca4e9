import sys

import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from sb3_jepa.envs.pixels import PixelObservation, make_pixel_vec_env, state_names


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


def test_a_picture_without_three_channels_is_refused():
    class Grey(gym.Wrapper):
        def render(self):
            return super().render()[..., 0]

    with pytest.raises(ValueError, match="three channels"):
        PixelObservation(Grey(gym.make("Pendulum-v1", render_mode="rgb_array")))


def cartpole() -> gym.Env:
    return gym.make("CartPole-v1", render_mode="rgb_array")


def rendered(env: gym.Env, size: tuple[int, int], crop=(0, 400, 0, 600), grayscale: bool = True) -> np.ndarray:
    """A frame ``(channels, height, width)``, by nothing but the environment's own ``render()`` and OpenCV."""
    top, bottom, left, right = crop
    picture = cv2.resize(env.render()[top:bottom, left:right], size[::-1], interpolation=cv2.INTER_AREA).astype(float)
    # ITU-R 709 luminance
    return (picture @ [0.2125, 0.7154, 0.0721])[None] if grayscale else np.moveaxis(picture, -1, 0)


class GymnasiumPixels(gym.ObservationWrapper):
    """Single frames, as :func:`rendered` makes them."""

    def __init__(self, env: gym.Env, size: tuple[int, int], **kwargs):
        super().__init__(env)
        self.kwargs = dict(kwargs, size=size)

    def observation(self, observation):
        return rendered(self, **self.kwargs)


@pytest.mark.parametrize("grayscale", [True, False])
def test_frames_are_the_rendered_pictures_in_order(grayscale):
    crop = (100, 400, 0, 600)
    env = PixelObservation(cartpole(), 32, crop, grayscale)
    observation, _ = env.reset(seed=0)
    frames = [rendered(env, (32, 64), crop, grayscale)] * 3
    for _ in range(6):
        assert np.abs(observation - np.concatenate(frames)).max() <= 1
        observation, *_ = env.step(1)
        frames = [*frames[1:], rendered(env, (32, 64), crop, grayscale)]
    assert not np.array_equal(frames[0], frames[2])


def difference(env: gym.Env, gymnasium: gym.Env, state) -> float:
    """Largest difference between two pictures of the same state, in grey levels."""
    pictures = []
    for one in (env, gymnasium):
        one.unwrapped.state, one.unwrapped.steps_beyond_terminated = np.array(state, dtype=float), None
        pictures.append(one.step(0)[0].astype(float))
    ours, theirs = pictures
    return np.abs(ours - theirs).max()


def draws_itself(env: PixelObservation) -> bool:
    return env._draw != env._draw_rendered


@pytest.mark.parametrize(
    ("frame_size", "kwargs"),
    [
        ((64, 96), {}),
        ((64, 96), dict(grayscale=False)),
        ((84, 84), {}),
        ((84, 84), dict(grayscale=False)),
        ((48, 96), dict(crop=(140, 340, 0, 600))),
        # The pole leaves this picture
        ((50, 60), dict(crop=(190, 290, 150, 430), grayscale=False)),
        (40, {}),
        ((400, 600), {}),
        ((400, 600), dict(grayscale=False)),
        # No rows or columns that can be resized by themselves: no common factor, or enlarged
        ((67, 91), {}),
        ((500, 300), {}),
    ],
)
def test_cartpole_looks_as_with_gymnasium(frame_size, kwargs):
    size = (40, 64) if frame_size == 40 else frame_size
    env = PixelObservation(cartpole(), frame_size, frames=1, **kwargs)
    gymnasium = GymnasiumPixels(cartpole(), size, **kwargs)
    assert draws_itself(env)
    env.reset(seed=0)
    gymnasium.reset(seed=0)

    angle = 12 * np.pi / 180
    rng = np.random.default_rng(0)
    # In an episode, and far beyond the end of one
    states = list(rng.uniform(-1, 1, (40, 4)) * (2.4, 1, angle, 1))
    states += list(rng.uniform(-1, 1, (20, 4)) * (3, 1, np.pi, 1))
    states += [(x, 0, theta, 0) for x in (-10, -2.4, 0, 2.4, 10) for theta in (-angle, 0, angle, np.pi / 2, np.pi)]
    assert max(difference(env, gymnasium, state) for state in states) <= 1


def test_cartpole_looks_as_with_gymnasium_over_episodes():
    env = PixelObservation(cartpole(), (64, 96), frames=1)
    gymnasium = GymnasiumPixels(cartpole(), (64, 96))
    actions = np.random.default_rng(0)
    n_ends, ended = 0, True
    for step in range(200):
        if ended:
            pictures = [one.reset(seed=step)[0] for one in (env, gymnasium)]
            ended = False
        else:
            action = actions.integers(2)
            pictures, _, (ended, _), _, _ = zip(*(one.step(action) for one in (env, gymnasium)), strict=True)
            n_ends += ended
        assert np.abs(pictures[0].astype(float) - pictures[1]).max() <= 1
    assert n_ends >= 5


def test_cartpole_of_other_dimensions_looks_as_with_gymnasium():
    env, gymnasium = PixelObservation(cartpole(), (64, 96), frames=1), GymnasiumPixels(cartpole(), (64, 96))
    for one in (env, gymnasium):
        one.reset(seed=0)
        one.unwrapped.length, one.unwrapped.x_threshold = 0.8, 1.5
    assert max(difference(env, gymnasium, (x, 0, 0.1, 0)) for x in (-1.5, 0.0, 0.7)) <= 1


def test_cartpole_still_renders():
    env, gymnasium = PixelObservation(cartpole()), cartpole()
    for one in (env, gymnasium):
        one.reset(seed=0)
        one.step(1)
    assert env.render().shape == (400, 600, 3)
    assert np.array_equal(env.render(), gymnasium.render())


def test_cartpole_can_be_made_again_from_its_spec():
    env = PixelObservation(cartpole(), 32)
    assert np.array_equal(gym.make(env.spec).reset(seed=0)[0], env.reset(seed=0)[0])


class Inverted(gym.Wrapper):
    def render(self):
        return 255 - super().render()


@pytest.mark.parametrize(
    ("env_id", "names"),
    [
        ("CartPole-v1", ["x", "x_dot", "theta", "theta_dot"]),
        ("Acrobot-v1", ["theta1", "theta2", "theta1_dot", "theta2_dot"]),
        ("Pendulum-v1", ["theta", "theta_dot"]),
        ("MountainCar-v0", ["position", "velocity"]),
        ("MountainCarContinuous-v0", ["position", "velocity"]),
    ],
)
def test_the_state_of_classic_control_has_names(env_id, names):
    env = make_vec_env(env_id, n_envs=2, seed=0)
    env.reset()
    assert len(env.get_attr("state")[0]) == len(names)
    assert state_names(env, len(names)) == names
    # An environment of another state, with the same name
    assert state_names(env, len(names) + 1) is None


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_the_state_has_names_behind_wrappers_and_in_other_processes(vec_env_class):
    env = VecFrameStack(make_pixel_vec_env("CartPole-v1", n_envs=2, frame_size=32, vec_env_cls=vec_env_class), 2)
    assert state_names(env, 4) == ["x", "x_dot", "theta", "theta_dot"]
    env.close()


def test_the_state_of_what_is_not_known_has_no_names():
    assert state_names(DummyVecEnv([FakeCartPole]), 4) is None


class FakeCartPole(CartPoleEnv):
    """Its state may be anything."""


class InvertedCartPole(CartPoleEnv):
    def render(self):
        return 255 - super().render()


def instance_inverted() -> gym.Env:
    env = cartpole()
    render = env.unwrapped.render
    env.unwrapped.render = lambda: 255 - render()
    return env


@pytest.mark.parametrize(
    "make",
    [
        lambda: Inverted(cartpole()),
        lambda: TimeLimit(Inverted(cartpole()), 10),
        lambda: InvertedCartPole(render_mode="rgb_array"),
        instance_inverted,
    ],
    ids=["wrapper", "wrapped wrapper", "subclass", "instance"],
)
def test_a_picture_that_a_wrapper_or_subclass_draws_is_not_drawn_over(make):
    env, gymnasium = PixelObservation(make(), (64, 96), frames=1), GymnasiumPixels(make(), (64, 96))
    assert not draws_itself(env)
    for one in (env, gymnasium):
        one.reset(seed=0)
    assert difference(env, gymnasium, (0.5, 0, 0.1, 0)) <= 1


def test_another_drawing_of_cartpole_is_not_drawn_over(monkeypatch):
    # As if another version of Gymnasium drew the pole in another colour
    monkeypatch.setattr("sb3_jepa.envs.fast_cartpole.BROWN", (0, 0, 255))
    assert not draws_itself(PixelObservation(cartpole()))


def test_missing_opencv_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"sb3-jepa\[pixels\]"):
        make_pixel_vec_env("CartPole-v1")
