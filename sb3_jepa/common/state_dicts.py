"""Parameters and buffers by name: whether they fit, and whether they are finite."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch as th

# Buffers that files of older versions lack: InputStandardization computes them from its other buffers
FILLED_IN = ("n_present", "first_deviation", "first_mean")
HOW_TO_FIT = (
    "Build the model with the `policy_kwargs` that they are of. Files of an earlier sb3_jepa have patches of 16 pixels "
    "and a token for each number: `PPO.load(path, custom_objects=dict(policy_kwargs=dict("
    "features_extractor_kwargs=dict(patch_size=16, numbers_per_token=1))))`, with all other `policy_kwargs` that the "
    "model had"
)


def is_filled_in(name: str) -> bool:
    """
    :param name: Of a parameter or buffer
    :return: Whether files of older versions may lack it
    """
    return name.rpartition(".")[2] in FILLED_IN


def find_misfits(state: Mapping[str, th.Tensor], own: Mapping[str, th.Tensor], there: str, here: str) -> list[str]:
    """
    :param state: Parameters and buffers to be loaded
    :param own: Those of the module that they are for
    :param there: Where the former are, such as ``"in the file"``
    :param here: Where the latter are
    :return: The differences, in words: shapes, then types, then missing names
    """
    both = [name for name in own if name in state]
    misfits = [
        f"{name} is {tuple(state[name].shape)} {there} and {tuple(own[name].shape)} {here}"
        for name in both
        if state[name].shape != own[name].shape
    ]
    misfits += [
        f"{name} is of type {state[name].dtype} {there} and {own[name].dtype} {here}"
        for name in both
        # Loading converts between floating-point types
        if state[name].is_floating_point() != own[name].is_floating_point()
    ]
    misfits += [f"{name} is missing {there}" for name in own if name not in state and not is_filled_in(name)]
    misfits += [f"{name} is missing {here}" for name in state if name not in own]
    return misfits


def find_not_finite(state: Mapping[str, Any]) -> str | None:
    """
    :param state: Parameters and buffers by name
    :return: The first name whose numbers are not all finite; None if all are
    """
    for name, value in state.items():
        if isinstance(value, th.Tensor) and value.is_floating_point() and not value.isfinite().all():
            return name
    return None


def warn_if_not_finite(state: Mapping[str, Any], what: str) -> None:
    """
    Warn if a state that is about to be saved holds NaN or infinite values.

    :param state: Parameters and buffers by name
    :param what: Its name in the message
    """
    name = find_not_finite(state)
    if name is not None:
        warnings.warn(
            f"{what} that is saved holds NaN or infinite values, first in {name}: the training has diverged",
            UserWarning,
            stacklevel=3,
        )
