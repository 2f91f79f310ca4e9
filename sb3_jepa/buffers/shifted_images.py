"""Random shift of observations, of which the space tells what is an image."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.spaces import spaces_by_key
from sb3_jepa.parts.random_shift import random_shift


def shift_images(observations: Any, observation_space: spaces.Space, pad: int) -> Any:
    """
    Shift the images of observations at random, see :func:`~sb3_jepa.parts.random_shift`. Each observation has a draw of
    its own, and so has each image of a ``Dict``; all frames of a stack move alike.

    :param observations: As they are stored or preprocessed: a tensor ``(batch, *observation shape)``, also with further
        axes before the observation's own, or a dictionary of such
    :param observation_space: Their space
    :param pad: By how many pixels they move at most; 0 for not at all
    :return: The shifted ones; what is no image stays the same tensor
    """
    if pad == 0:
        return observations
    shifted = dict(by_key(observations))
    for key, space in spaces_by_key(observation_space).items():
        axis = _channel_axis(space)
        if axis is not None:
            images = shifted[key]
            flat = images.reshape(-1, *images.shape[images.ndim - len(space.shape or ()) :])
            shifted[key] = random_shift(flat, pad, channels_last=axis == -1).view(images.shape)
    return as_observations(shifted)


def check_random_shift(value: Any, observation_space: spaces.Space) -> int:
    """
    :param value: Argument ``random_shift``
    :param observation_space: Whose images are to be shifted
    :return: By how many pixels
    :raises ValueError: If it is no whole number of at least 0, if there is no image to shift, or if an image is not
        larger
    """
    pad = checks.whole_number("random_shift", value, 0)
    if pad == 0:
        return 0
    axes = {key: _channel_axis(space) for key, space in spaces_by_key(observation_space).items()}
    if all(axis is None for axis in axes.values()):
        checks.refuse("random_shift", f"0 for observations without an image, and {observation_space} has none", value)
    for key, space in spaces_by_key(observation_space).items():
        if axes[key] is not None:
            height, width = np.delete(space.shape[-3:], axes[key])  # type: ignore[index,arg-type]
            if pad >= min(height, width):
                checks.refuse("random_shift", f"smaller than the sides of the images, {height} and {width}", value)
    return pad


def _channel_axis(space: spaces.Space) -> int | None:
    """Where an image has its channels, -3 or -1; None if it is no image."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (3, 4):
        return None
    first, middle, last = space.shape[-3:]
    if first <= min(middle, last):
        return -3
    return -1 if last <= middle else None
