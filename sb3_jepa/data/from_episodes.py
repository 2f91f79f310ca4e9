"""Recordings of folders that have a file for each episode, as *ExoRL* has them."""

import os
import pathlib

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading
from sb3_jepa.data.channels import channels_first, transpose
from sb3_jepa.data.from_files import guess_space
from sb3_jepa.data.recordings import Recordings

# What a file has for each step; the first row is that of the reset
ARRAYS = ("observation", "action", "reward", "discount")


def holds_episodes(path: str | os.PathLike) -> bool:
    """
    :param path: Of a folder, or of anything else
    :return: Whether it is a folder with an ``.npz`` file for each episode
    """
    folder = pathlib.Path(path)
    return (
        folder.is_dir() and next(folder.glob("*.npy"), None) is None and next(folder.rglob("*.npz"), None) is not None
    )


def read_episodes(
    folder: str | os.PathLike,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
) -> Recordings:
    """
    Recordings of a folder with an ``.npz`` file for each episode, in it or below, as *ExoRL* (Yarats et al. 2022, arXiv
    2201.13425) has them: ``observation``, ``action``, ``reward`` and ``discount``, each with a row for the reset, and
    then one for each step: what was done, what it was rewarded with, and what was seen then. A ``discount`` of 0 says
    that the episode has ended for good. Episodes are in the order of their names.

    :param folder: With at least one such file
    :param observation_space: Of the environment that they are from. By default it is guessed.
    :param action_space: The same for actions
    :return: The recordings, whose rewards are 0 if the files have none
    :raises ValueError: If there is no such file, or one is broken, lacks an array, or does not fit the others
    """
    observation_space, action_space = (
        checks.optional(checks.instance, name, space, cls=spaces.Space)
        for name, space in (("observation_space", observation_space), ("action_space", action_space))
    )
    files = sorted(checks.path("folder", folder).rglob("*.npz"))
    if not files:
        raise ValueError(f"`folder` must hold an .npz file for each episode, got {folder}")
    episodes = [_read_episode(file) for file in files]
    shapes = {name: episodes[0][name].shape[1:] for name in ("observation", "action")}
    for file, episode in zip(files, episodes, strict=True):
        for name, shape in shapes.items():
            if episode[name].shape[1:] != shape:
                raise ValueError(
                    f"'{name}' of {file} must have rows of {shape}, as {files[0]} has, got {episode[name].shape[1:]}"
                )
    joined = {name: np.concatenate([episode[name] for episode in episodes]) for name in ARRAYS}
    lengths = [len(episode["observation"]) for episode in episodes]
    is_last = np.zeros(sum(lengths), dtype=bool)
    is_last[np.cumsum(lengths) - 1] = True
    # The row of a step has the action that led to its observation: ours have the one that follows
    following = np.roll(np.arange(len(is_last)), -1)
    if observation_space is None:
        observation_space = guess_space("observation", joined["observation"], "observation_space")
    observation_space = channels_first(observation_space)
    if action_space is None:
        action_space = guess_space("action", joined["action"], "action_space")
    return Recordings(
        observation_space,
        transpose(joined["observation"], observation_space),
        np.repeat(np.arange(len(files)), lengths),
        action_space,
        joined["action"][following],
        rewards=joined["reward"].astype(np.float32)[following] * ~is_last,
        terminated=(joined["discount"][following] == 0) & ~is_last,
        has_action=~is_last,
    )


def _read_episode(file: pathlib.Path) -> dict[str, np.ndarray]:
    with reading(file, "an .npz file of an episode"), np.load(file) as loaded:
        arrays = {name: loaded[name] for name in ARRAYS if name in loaded.files}
    missing = {"observation", "action"} - set(arrays)
    if missing:
        raise ValueError(f"{file} must hold 'observation' and 'action', got neither {' nor '.join(sorted(missing))}")
    n = len(arrays["observation"])
    arrays = {"reward": np.zeros(n), "discount": np.ones(n), **arrays}
    for name in ("reward", "discount"):
        arrays[name] = arrays[name].reshape(-1)
    lengths = {name: len(array) for name, array in arrays.items()}
    if set(lengths.values()) != {n} or n < 2:
        raise ValueError(f"{file} must have a row for the reset and for each step in every array, got {lengths}")
    return arrays
