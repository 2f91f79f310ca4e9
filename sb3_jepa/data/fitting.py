"""Recordings that an algorithm is to learn from: whether they fit it."""

import os
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.data.readers import read
from sb3_jepa.data.recordings import Recordings


def read_for(
    data: Any,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    longest_episode: int | None = None,
    name: str = "data",
    **kwargs: Any,
) -> Recordings:
    """
    :param data: What :func:`~sb3_jepa.data.read` takes: recordings, a file, a folder, a buffer or a Minari data set
    :param observation_space: Of the algorithm, and of a file, which does not tell its own
    :param action_space: The same for actions
    :param longest_episode: Steps that an episode of the environment may have; None if that is not known
    :param name: Of the argument that was given
    :param kwargs: The further parameters of :func:`~sb3_jepa.data.read`
    :return: The recordings
    :raises ValueError: If they are of other spaces, have no actions, or do not say where episodes end
    """
    if isinstance(data, (str, os.PathLike)) and os.path.isfile(data):
        kwargs = dict(observation_space=observation_space, action_space=action_space) | kwargs
    recordings = read(data, **kwargs)
    check_recordings(recordings, observation_space, action_space, longest_episode, name)
    return recordings


def check_finite(name: str, arrays: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """
    :param name: Of the argument that the arrays are from
    :param arrays: ``(len(rows), ...)`` by name
    :param rows: The numbers of their rows
    :raises ValueError: If one is NaN or infinite
    """
    for array_name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            bad = rows[np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0]]
            raise ValueError(
                f"`{name}` must be finite, and row {bad} or the next has NaN or infinite {array_name or 'observations'}"
            )


def check_recordings(
    recordings: Recordings,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    longest_episode: int | None,
    name: str = "data",
) -> None:
    """
    :param recordings: To learn from
    :param observation_space: Of the algorithm
    :param action_space: Of the algorithm
    :param longest_episode: Steps that an episode of its environment may have; None if that is not known
    :param name: Of the argument that was given
    :raises ValueError: If they are of other spaces, have no actions, or do not say where episodes end
    """
    named = dict(observation=observation_space, action=action_space)
    if recordings.actions is None:
        raise ValueError(
            f"`{name}` must have actions, got recordings without: what an action leads to is to be learned"
        )
    for kind, own in named.items():
        given = getattr(recordings, f"{kind}_space")
        if not _has_same_form(given, own):
            raise ValueError(
                f"`{name}` must have the {kind} space of the environment, {own}, got {given}. Where a file does not "
                f"tell its space, say `read(path, {kind}_space=env.{kind}_space)`"
            )
    lengths = np.bincount(np.unique(recordings.episodes, return_inverse=True)[1])
    if longest_episode is not None and lengths.max() > longest_episode + 1:
        raise ValueError(
            f"`{name}` must say where episodes end: one has {lengths.max():,} observations, and an episode of the "
            f"environment has at most {longest_episode:,} steps. Give the file 'terminals' and 'timeouts', or "
            "'episodes', the number of each row's episode"
        )


def _has_same_form(given: spaces.Space | None, own: spaces.Space) -> bool:
    """A file does not tell the bounds of a box, nor always its type."""
    if isinstance(own, spaces.Dict):
        return isinstance(given, spaces.Dict) and all(
            key in given.spaces and _has_same_form(given[key], one) for key, one in own.items()
        )
    if isinstance(own, spaces.Box):
        kinds = [np.issubdtype(space.dtype, np.floating) for space in (given, own) if space is not None]
        return isinstance(given, spaces.Box) and given.shape == own.shape and len(set(kinds)) == 1
    if isinstance(own, spaces.Discrete):
        # The largest number may not occur
        return isinstance(given, spaces.Discrete) and given.start == own.start and given.n <= own.n
    return given == own
