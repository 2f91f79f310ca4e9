"""Preprocessed observations, as the encoders of a policy take them."""

from collections.abc import Iterable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from torch import nn

from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.tokenization import is_bytes


def preprocess(observations: Any, space: spaces.Space, normalize_images: bool, encoders: Iterable[nn.Module]) -> Any:
    """
    Stable-Baselines3's preprocessing, but that images, and stacks of them, stay bytes if all encoders say by
    ``takes_bytes`` that they take these: a :class:`JepaExtractor` scales them where it makes tokens of them, and with
    less effort.

    :param observations: Tensors ``(batch, *observation shape)``, or a dictionary of such
    :param space: Observation space of the policy
    :param normalize_images: Whether the policy normalizes images
    :param encoders: Of the policy
    :return: What the encoders take
    """
    if not (normalize_images and all(getattr(encoder, "takes_bytes", False) for encoder in encoders)):
        return preprocess_obs(observations, space, normalize_images=normalize_images)
    if isinstance(space, spaces.Dict):
        return {key: preprocess(observations[key], one, normalize_images, ()) for key, one in space.items()}
    if observations.dtype == th.uint8 and (is_image_space(space) or _is_stack_of_images(space)):
        return observations
    return preprocess_obs(observations, space, normalize_images=normalize_images)


def _is_stack_of_images(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 4 and is_bytes(space)


def jepa_extractors(module: nn.Module) -> list[JepaExtractor]:
    """The extractors in a module, such as a policy or an extractor that is made of others; itself if it is one."""
    return [one for one in module.modules() if isinstance(one, JepaExtractor)]


def takes_nan(policy: nn.Module) -> bool:
    """Whether NaN in an observation tells the policy that a number is missing."""
    if any(getattr(module, "takes_nan", False) is True for module in policy.modules()):
        return True
    extractors = jepa_extractors(policy)
    return bool(extractors) and all(extractor.encoder.missing_as_nan for extractor in extractors)
