"""Recordings of robomimic's HDF5 files of demonstrations."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading
from sb3_jepa.data.channels import channels_first, transpose
from sb3_jepa.data.from_files import guess_space
from sb3_jepa.data.recordings import Recordings

SUFFIXES = (".hdf5", ".h5")


def read_robomimic(
    path: str | os.PathLike,
    keys: Sequence[str] | None = None,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
) -> Recordings:
    """
    Recordings of an HDF5 file as *robomimic* (Mandlekar et al. 2021, arXiv 2108.03298) has them: a group for each
    demonstration, ``data/demo_0`` and so on, with ``actions``, ``rewards``, ``dones``, and ``obs/<key>`` for each
    observation. The last observation of a demonstration is taken from ``next_obs``, if that is there.

    :param path: Of the file
    :param keys: Which observations to take; all by default
    :param observation_space: Of the environment that they are from. By default it is guessed.
    :param action_space: The same for actions
    :return: The recordings, whose observations are a ``Dict``; demonstrations in the order of their numbers
    :raises ValueError: If there is no such file, it is broken or holds no demonstrations, or one lacks an array
    :raises ImportError: If h5py is not installed
    """
    path, keys = checks.path("path", path), checks.optional(checks.texts, "keys", keys)
    observation_space, action_space = (
        checks.optional(checks.instance, name, space, cls=spaces.Space)
        for name, space in (("observation_space", observation_space), ("action_space", action_space))
    )
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need a package: pip install "sb3-jepa[offline]"') from error
    if not path.is_file():
        raise ValueError(f"`path` must be an HDF5 file of robomimic, got {path}")
    with reading(path, "an HDF5 file of robomimic"), h5py.File(path, "r") as file:
        demonstrations = [_read(path, name, file["data"][name], keys) for name in _names(path, file)]
    n_rows = [len(one["has_action"]) for one in demonstrations]
    joined: dict[str, Any] = {
        name: np.concatenate([one[name] for one in demonstrations]) for name in demonstrations[0] if name != "obs"
    }
    observations = {
        key: np.concatenate([one["obs"][key] for one in demonstrations]) for key in demonstrations[0]["obs"]
    }
    if observation_space is None:
        guessed = {key: guess_space(key, array, "observation_space") for key, array in observations.items()}
        observation_space = spaces.Dict(guessed)
    observation_space = channels_first(observation_space)
    actions = joined.pop("actions")
    return Recordings(
        observation_space,
        transpose(observations, observation_space),
        np.repeat(np.arange(len(demonstrations)), n_rows),
        guess_space("actions", actions, "action_space") if action_space is None else action_space,
        actions,
        **joined,
    )


def _names(path: pathlib.Path, file: Any) -> list[str]:
    names = [name for name in file.get("data", ()) if name.startswith("demo_")]
    if not names:
        raise ValueError(f"{path} must hold demonstrations, 'data/demo_0' and so on, got {sorted(file)}")
    return sorted(names, key=lambda name: (len(name), name))


def _read(path: pathlib.Path, name: str, demonstration: Any, keys: list[str] | None) -> dict[str, Any]:
    there = sorted(demonstration.get("obs", ()))
    wanted = there if keys is None else keys
    if "actions" not in demonstration or not wanted or set(wanted) - set(there):
        raise ValueError(
            f"'{name}' of {path} must hold 'actions' and 'obs' with {wanted or 'observations'}, got "
            f"{sorted(demonstration)} and the observations {there}"
        )
    observations = {key: demonstration["obs"][key][()] for key in wanted}
    n_steps = len(demonstration["actions"])
    has_last = set(wanted) <= set(demonstration.get("next_obs", ()))
    if has_last:
        last = {key: demonstration["next_obs"][key][-1:] for key in wanted}
        observations = {key: np.concatenate([array, last[key]]) for key, array in observations.items()}
    n_rows = n_steps + has_last
    lengths = {key: len(array) for key, array in observations.items()}
    if n_steps == 0 or set(lengths.values()) != {n_rows}:
        raise ValueError(f"'{name}' of {path} must have an observation for each of {n_steps} actions, got {lengths}")

    def padded(array: Any, dtype: type | None = None) -> np.ndarray:
        array = np.asarray(array, dtype)
        return np.concatenate([array, np.zeros_like(array[:1])]) if has_last else array

    zeros = np.zeros(n_steps)
    return dict(
        obs=observations,
        actions=padded(demonstration["actions"][()]),
        rewards=padded(demonstration.get("rewards", zeros), np.float32),
        terminated=padded(demonstration.get("dones", zeros), bool),
        has_action=np.arange(n_rows) < n_steps,
    )
