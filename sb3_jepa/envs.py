"""Pixel versions of Gymnasium environments."""

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import AddRenderObservation, FrameStackObservation, TransformObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

# A frame's longer side is rounded to a multiple of this many pixels, so that patches of 8 or 16 pixels fit
ROUND_TO = 16
# Weights of red, green and blue in a grey picture: ITU-R 709, as in Gymnasium's GrayscaleObservation
LUMINANCE = np.array([[0.2125, 0.7154, 0.0721]])


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
        import cv2  # noqa: F401  (the first frame would fail otherwise)
    except ImportError as error:
        raise ImportError('Pixel environments need OpenCV: pip install "sb3-jepa[pixels]"') from error

    rendered = AddRenderObservation(env, render_only=True)
    assert rendered.observation_space.shape is not None
    if len(rendered.observation_space.shape) != 3 or rendered.observation_space.shape[2] != 3:
        raise ValueError(f"The picture must have three channels, got the shape {rendered.observation_space.shape}")
    height, width = rendered.observation_space.shape[:2]
    top, bottom, left, right = crop = (0, height, 0, width) if crop is None else crop
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"`crop` must be (top, bottom, left, right) within {height}x{width} pixels, got {crop}")
    size = _frame_size(frame_size, bottom - top, right - left)
    to_frame = partial(_to_frame, grayscale=grayscale)

    space = spaces.Box(0, 255, (1 if grayscale else 3, *size), dtype=np.uint8)
    shown: gym.ObservationWrapper = TransformObservation(
        rendered, lambda image: to_frame(image[top:bottom, left:right], size), space
    )
    if isinstance(env.unwrapped, CartPoleEnv):
        # Only here, for it needs pygame, which other environments do not
        from sb3_jepa.fast_cartpole import FastCartPole, renders_cartpole

        if renders_cartpole(env):
            fast = FastCartPole(env, crop, size, to_frame)
            # Another version of Gymnasium may draw another picture
            if np.allclose(fast.observation(None), shown.observation(env.render()), rtol=0, atol=1):
                shown = fast
    # One frame after the other: (frames * channels, height, width)
    stacked = spaces.Box(0, 255, (frames * space.shape[0], *size), dtype=np.uint8)
    return TransformObservation(
        FrameStackObservation(shown, frames), lambda stack: stack.reshape(stacked.shape), stacked
    )


def _to_frame(image: np.ndarray, size: tuple[int, int], grayscale: bool) -> np.ndarray:
    """Resize a picture to ``(channels, height, width)``."""
    import cv2

    image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    # Grey after the resizing: the order hardly matters to the picture, and does to the time that it takes
    return cv2.transform(image, LUMINANCE)[None] if grayscale else np.moveaxis(image, -1, 0)


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
