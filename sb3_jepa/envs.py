"""Pixel versions of Gymnasium environments."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import (
    AddRenderObservation,
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
    TransformObservation,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

# A frame's longer side is rounded to a multiple of this many pixels, so that patches of 8 or 16 pixels fit
ROUND_TO = 16


def pixel_observations(
    env: gym.Env,
    frame_size: int | tuple[int, int] = 64,
    crop: tuple[int, int, int, int] | None = None,
    grayscale: bool = True,
    frames: int = 3,
) -> gym.Env:
    """
    Replace an environment's observations by its last rendered frames: render, crop, resize, grey, stack.
    After a reset the first frame is repeated, and a stack never spans two episodes.

    :param env: Environment made with ``render_mode="rgb_array"``
    :param frame_size: ``(height, width)`` of a frame in pixels. A single number is the length of the shorter side; the
        longer one then follows the picture's shape, rounded to a multiple of 16.
    :param crop: ``(top, bottom, left, right)``: the rows and columns of the rendered picture to keep
    :param grayscale: Whether to turn the picture grey; else it has three channels
    :param frames: Number of frames in an observation
    :return: Environment with uint8 observations ``(frames * channels, height, width)``, oldest frame first
    :raises ValueError: If the environment does not render to arrays, or an argument does not fit its picture
    :raises ImportError: If OpenCV is not installed
    """
    if env.render_mode != "rgb_array":
        raise ValueError(f'The environment must be made with `render_mode="rgb_array"`, got {env.render_mode!r}')
    if frames <= 0:
        raise ValueError(f"`frames` must be positive, got {frames}")
    try:
        import cv2  # noqa: F401  (Gymnasium's ResizeObservation needs it)
    except ImportError as error:
        raise ImportError('Pixel environments need OpenCV: pip install "sb3-jepa[pixels]"') from error

    env = AddRenderObservation(env, render_only=True)
    if crop is not None:
        env = _crop(env, crop)
    assert env.observation_space.shape is not None
    env = ResizeObservation(env, _frame_size(frame_size, *env.observation_space.shape[:2]))
    # Grey after the resizing: the order hardly matters to the picture, and does to the time that it takes
    if grayscale:
        env = GrayscaleObservation(env)
    # Channels first, then one frame after the other: (frames, channels, height, width)
    env = _transform(env, lambda image: image[None] if grayscale else np.moveaxis(image, -1, 0))
    env = FrameStackObservation(env, frames)
    return _transform(env, lambda stack: stack.reshape(-1, *stack.shape[2:]))


def _transform(env: gym.Env, fn: Callable[[np.ndarray], np.ndarray]) -> gym.Env:
    """Apply a function that moves pixels about but does not change them."""
    assert isinstance(env.observation_space, spaces.Box)
    low, high = fn(env.observation_space.low), fn(env.observation_space.high)
    return TransformObservation(env, fn, spaces.Box(low, high, dtype=np.uint8))


def _crop(env: gym.Env, crop: tuple[int, int, int, int]) -> gym.Env:
    assert env.observation_space.shape is not None
    height, width = env.observation_space.shape[:2]
    top, bottom, left, right = crop
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"`crop` must be (top, bottom, left, right) within {height}x{width} pixels, got {crop}")
    return _transform(env, lambda image: image[top:bottom, left:right])


def _frame_size(frame_size: int | Sequence[int], height: int, width: int) -> tuple[int, int]:
    if isinstance(frame_size, Integral):
        frame_size = int(frame_size)
        scale = frame_size / min(height, width)
        frame_size = (
            frame_size if height <= width else max(1, round(height * scale / ROUND_TO)) * ROUND_TO,
            frame_size if width <= height else max(1, round(width * scale / ROUND_TO)) * ROUND_TO,
        )
    if not isinstance(frame_size, Sequence) or len(frame_size) != 2 or min(frame_size) <= 0:
        raise ValueError(f"`frame_size` must be a positive number or (height, width), got {frame_size}")
    return frame_size[0], frame_size[1]


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
    :func:`pixel_observations`.

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
    :param kwargs: The further parameters of Stable-Baselines3's ``make_vec_env``
    :return: Environment with uint8 observations ``(frames * channels, height, width)``, oldest frame first
    :raises ValueError: If the environment does not render to arrays, or an argument does not fit its picture
    :raises ImportError: If OpenCV is not installed
    """
    return make_vec_env(
        env_id,
        n_envs=n_envs,
        seed=seed,
        wrapper_class=pixel_observations,
        wrapper_kwargs=dict(frame_size=frame_size, crop=crop, grayscale=grayscale, frames=frames),
        env_kwargs=env_kwargs,
        vec_env_cls=vec_env_cls,
        **kwargs,
    )
