"""Pixel versions of Gymnasium environments."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_jepa.common import checks

# A frame's longer side is rounded to a multiple of this many pixels, so that patches of 8 or 16 pixels fit
ROUND_TO = 16
# The largest side that OpenCV resizes to
MAX_SIDE = 32766
# Weights of red, green and blue in a grey picture: ITU-R 709, as in Gymnasium's GrayscaleObservation
LUMINANCE = np.array([[0.2125, 0.7154, 0.0721]])
# What Gymnasium's environments of classic control have in their attribute `state`
STATE_NAMES = {
    "CartPoleEnv": ["x", "x_dot", "theta", "theta_dot"],
    "AcrobotEnv": ["theta1", "theta2", "theta1_dot", "theta2_dot"],
    "PendulumEnv": ["theta", "theta_dot"],
    "MountainCarEnv": ["position", "velocity"],
    "Continuous_MountainCarEnv": ["position", "velocity"],
}


class PixelObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Replace an environment's observations by its last rendered frames: render, crop, resize, grey, stack.
    After a reset the first frame is repeated, and a stack never spans two episodes. Observations are uint8,
    ``(frames * channels, height, width)``, oldest frame first.

    :param env: Environment made with ``render_mode="rgb_array"``
    :param frame_size: ``(height, width)`` of a frame in pixels. A single number is the length of the shorter side; the
        longer one then follows the picture's shape, rounded to a multiple of 16.
    :param crop: ``(top, bottom, left, right)``: the rows and columns of the rendered picture to keep
    :param grayscale: Whether to turn the picture grey; else it has three channels
    :param frames: Number of frames in an observation
    :raises ValueError: If the environment does not render to arrays, or an argument does not fit its picture
    :raises ImportError: If OpenCV is not installed
    """

    def __init__(
        self,
        env: gym.Env,
        frame_size: int | tuple[int, int] = 64,
        crop: tuple[int, int, int, int] | None = None,
        grayscale: bool = True,
        frames: int = 3,
    ):
        frames, grayscale = checks.whole_number("frames", frames), checks.flag("grayscale", grayscale)
        frame_size, crop = _check_frame_size(frame_size), _check_crop(crop)
        # Gymnasium's wrappers do this too, for `gym.make(env.spec)`
        gym.utils.RecordConstructorArgs.__init__(
            self, frame_size=frame_size, crop=crop, grayscale=grayscale, frames=frames
        )
        gym.Wrapper.__init__(self, checks.instance("env", env, gym.Env))
        if env.render_mode != "rgb_array":
            raise ValueError(f'The environment must be made with `render_mode="rgb_array"`, got {env.render_mode!r}')
        try:
            import cv2  # noqa: F401  (the first frame would fail otherwise)
        except ImportError as error:
            raise ImportError('Pixel environments need OpenCV: pip install "sb3-jepa[pixels]"') from error

        env.reset()
        picture = np.asarray(env.render())
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"The picture must have three channels, got the shape {picture.shape}")
        height, width = picture.shape[:2]
        top, bottom, left, right = self.crop = (0, height, 0, width) if crop is None else crop
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(f"`crop` must be (top, bottom, left, right) within {height}x{width} pixels, got {crop}")
        self.frame_size = _frame_size(frame_size, bottom - top, right - left)
        self.n_frames = frames
        self._to_frame = partial(_to_frame, grayscale=grayscale)
        self._draw: Callable[[], np.ndarray] = self._draw_rendered
        if isinstance(env.unwrapped, CartPoleEnv):
            # Import here: it needs pygame, which other environments do without
            from sb3_jepa.envs.fast_cartpole import FastCartPole, renders_cartpole

            if renders_cartpole(env):
                fast = FastCartPole(env.unwrapped, self.crop, self.frame_size, self._to_frame)
                # Another version of Gymnasium may draw another picture
                if np.allclose(fast.draw(), self._draw_rendered(), rtol=0, atol=1):
                    self._draw = fast.draw
        shape = (frames * (1 if grayscale else 3), *self.frame_size)
        self.observation_space = spaces.Box(0, 255, shape, dtype=np.uint8)

    def _draw_rendered(self) -> np.ndarray:
        top, bottom, left, right = self.crop
        picture: Any = self.env.render()
        return self._to_frame(picture[top:bottom, left:right], self.frame_size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode: its first frame, repeated, and the environment's information."""
        _, info = self.env.reset(seed=seed, options=options)
        self._stack = np.concatenate([self._draw()] * self.n_frames)
        return self._stack, info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        """Act: the last frames, and what else the environment returns."""
        _, reward, terminated, truncated, info = self.env.step(action)
        frame = self._draw()
        # A new array: those of earlier steps stay as they are
        self._stack = np.concatenate((self._stack[len(frame) :], frame))
        return self._stack, reward, terminated, truncated, info


def _to_frame(image: np.ndarray, size: tuple[int, int], grayscale: bool) -> np.ndarray:
    """Resize a picture to ``(channels, height, width)``."""
    import cv2

    image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    # Turn grey after the resizing: the picture is nearly the same, and it takes less time
    return cv2.transform(image, LUMINANCE)[None] if grayscale else np.moveaxis(image, -1, 0)


def _check_frame_size(frame_size: Any) -> int | tuple[int, int]:
    if not isinstance(frame_size, (tuple, list, np.ndarray)):
        return checks.whole_number("frame_size", frame_size, most=MAX_SIDE, also="a pair (height, width)")
    sides = checks.sizes("frame_size", frame_size)
    if len(sides) != 2 or max(sides) > MAX_SIDE:
        raise ValueError(f"`frame_size` must be (height, width) of at most {MAX_SIDE} pixels each, got {frame_size}")
    return sides[0], sides[1]


def _check_crop(crop: Any) -> tuple[int, int, int, int] | None:
    sides = checks.optional(checks.sizes, "crop", crop, least=0)
    if sides is None:
        return None
    if len(sides) != 4:
        raise ValueError(f"`crop` must be (top, bottom, left, right), got {crop}")
    return sides[0], sides[1], sides[2], sides[3]


def _frame_size(frame_size: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    if isinstance(frame_size, tuple):
        return frame_size
    scale = frame_size / min(height, width)
    return (
        frame_size if height <= width else max(1, round(height * scale / ROUND_TO)) * ROUND_TO,
        frame_size if width <= height else max(1, round(width * scale / ROUND_TO)) * ROUND_TO,
    )


def make_pixel_vec_env(
    env_id: str | Callable[..., gym.Env],
    n_envs: int = 1,
    seed: int | None = None,
    frame_size: int | tuple[int, int] = 64,
    crop: tuple[int, int, int, int] | None = None,
    grayscale: bool = True,
    frames: int = 3,
    vec_env_cls: type[DummyVecEnv | SubprocVecEnv] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> VecEnv:
    """
    Vectorised, monitored environments whose observations are their last rendered frames, see
    :class:`PixelObservation`.

    :param env_id: Any Gymnasium environment that renders to ``rgb_array``: its ID, class or a callable that makes it
    :param n_envs: Number of environments in parallel
    :param seed: Seed of the environments' random numbers
    :param frame_size: ``(height, width)`` of a frame in pixels, or the length of its shorter side
    :param crop: ``(top, bottom, left, right)`` in pixels of the rendered picture, or None for all of it
    :param grayscale: Whether to turn the picture grey; else it has three channels
    :param frames: Number of frames in an observation
    :param vec_env_cls: ``DummyVecEnv`` (the default) or ``SubprocVecEnv``
    :param env_kwargs: Keyword arguments to pass to the environment. An ID gets ``render_mode="rgb_array"`` by itself, a
        class or a callable has to be told.
    :param kwargs: The further parameters of Stable-Baselines3's ``make_vec_env``, but for the wrapper
    :return: Environment with uint8 observations ``(frames * channels, height, width)``, oldest frame first
    :raises ValueError: If the environment does not render to arrays, or an argument does not fit its picture
    :raises ImportError: If OpenCV is not installed
    """
    if not isinstance(env_id, str):
        checks.function("env_id", env_id, also="the ID of an environment")
    arguments: dict[str, Any] = dict(
        n_envs=checks.whole_number("n_envs", n_envs),
        seed=checks.optional(checks.seed, "seed", seed),
        wrapper_class=PixelObservation,
        # Check here: an error in another process would not be shown
        wrapper_kwargs=dict(
            frame_size=_check_frame_size(frame_size),
            crop=_check_crop(crop),
            grayscale=checks.flag("grayscale", grayscale),
            frames=checks.whole_number("frames", frames),
        ),
        env_kwargs=checks.keyword_arguments("env_kwargs", env_kwargs),
        vec_env_cls=checks.optional(checks.subclass, "vec_env_cls", vec_env_cls, cls=VecEnv),
        **kwargs,
    )
    try:
        return make_vec_env(env_id, **arguments)
    except gym.error.DependencyNotInstalled:
        raise
    except gym.error.Error as error:
        raise ValueError(f"`env_id` must be the ID of an environment, got {env_id!r}. {error}") from error


def state_names(env: VecEnv, n_variables: int) -> list[str] | None:
    """
    :param env: Of any environments
    :param n_variables: How many numbers their state has
    :return: Names of these, if they are Gymnasium's of classic control; None if they are not known
    :raises ValueError: If an argument is not among those accepted
    """
    checks.instance("env", env, VecEnv)
    n_variables = checks.whole_number("n_variables", n_variables, 0)
    try:
        # Ask for the description: a class in another process may fail to be pickled
        (description,) = env.env_method("__str__", indices=0)
    except (AttributeError, NotImplementedError):
        return None
    # Around it there may be wrappers: <TimeLimit<OrderEnforcing<CartPoleEnv<CartPole-v1>>>>
    found = re.search(rf"<({'|'.join(STATE_NAMES)})[< ]", description)
    names = STATE_NAMES[found[1]] if found else []
    return names if len(names) == n_variables else None
