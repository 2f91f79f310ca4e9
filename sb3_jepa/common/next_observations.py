"""What a step led to: where an episode ended, its last observation and not the first of the next episode."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_jepa.common.observations import as_observations, by_key

# The key of a step's info under which Stable-Baselines3's vectorised environments keep it
TERMINAL_OBSERVATION = "terminal_observation"


def terminal_observation(done: bool, info: Mapping[str, Any]) -> Any:
    """
    :param done: Whether the step ended an episode
    :param info: Of the step
    :return: The last observation of the episode; None if none has ended, or the environment does not tell it
    """
    return info.get(TERMINAL_OBSERVATION) if done else None


def has_terminated(dones: np.ndarray, infos: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """
    :param dones: Whether the step ended an episode, ``(environments,)``
    :param infos: Of the step
    :return: Whether it did, and not for want of time
    """
    terminated = np.array(dones, dtype=bool)
    for index in np.flatnonzero(terminated).tolist():
        terminated[index] = not infos[index].get("TimeLimit.truncated", False)
    return terminated


def true_next_observations(
    new_observations: Any, dones: np.ndarray, infos: Sequence[Mapping[str, Any]]
) -> tuple[Any, np.ndarray]:
    """
    :param new_observations: After a step of all environments, ``(environments, *observation shape)`` or a dictionary of
        such; where an episode ended, the first of the next one
    :param dones: Whether the step ended an episode, ``(environments,)``
    :param infos: Of the step
    :return: What the step led to, shaped likewise (the same arrays if no episode ended), and where that is known,
        ``(environments,)``
    """
    is_known = np.ones(len(dones), dtype=bool)
    if not np.any(dones):
        return new_observations, is_known
    led_to: dict[str, Any] = {key: np.array(array) for key, array in by_key(new_observations).items()}
    for index in np.flatnonzero(dones).tolist():
        last = terminal_observation(True, infos[index])
        is_known[index] = last is not None
        if last is not None:
            for key, array in by_key(last).items():
                led_to[key][index] = array
    return as_observations(led_to), is_known
