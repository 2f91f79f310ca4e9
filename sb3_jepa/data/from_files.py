"""Recordings of NumPy's files and of folders."""

import os
import pathlib

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading
from sb3_jepa.common.observations import NO_KEY, as_observations
from sb3_jepa.data.channels import channels_first, transpose
from sb3_jepa.data.folders import array_name, map_array, read_folder
from sb3_jepa.data.from_buffers import count_episodes
from sb3_jepa.data.recordings import Recordings

# What ends with a row, under the names that data sets have for it
END_ARRAYS = ("dones", "terminals", "timeouts")
STEP_ARRAYS = ("episodes", "actions", "rewards", *END_ARRAYS)


def read_file(
    path: str | os.PathLike,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
) -> Recordings:
    """
    Recordings of a file, or of a folder that :func:`~sb3_jepa.pretrain.record_env` or
    :func:`~sb3_jepa.data.save_recordings` has written. The arrays of a folder and an ``.npy`` file are mapped into
    memory; an ``.npz`` file is loaded, such as those of D4RL and OGBench, and
    ``save_recordings(read_file(path), folder)`` turns it into a folder.

    :param path: Of an ``.npy`` file of observations, ``(rows, *observation shape)``; or of an ``.npz`` file with the
        array ``observations``, or ``observations.<key>`` for each key of a ``Dict``. That one may hold ``actions`` and
        ``rewards``, and say which rows are of which episode: by their numbers in ``episodes``, or by what ended with a
        row, ``dones``, or ``terminals`` and ``timeouts``. Images may have their channels first or last.
    :param observation_space: Of the environment that they are from; a folder knows it. By default it is guessed:
        ``uint8`` in three or more dimensions are images, other whole numbers are categories, and floats are numbers.
    :param action_space: The same for ``actions``, if there are any
    :return: The recordings. If nothing is known of episodes, all rows count as one.
    :raises ValueError: If it is no such file, or its observations or actions are none of the space
    """
    path = checks.path("path", path)
    observation_space, action_space = (
        checks.optional(checks.instance, name, space, cls=spaces.Space)
        for name, space in (("observation_space", observation_space), ("action_space", action_space))
    )
    if path.is_dir():
        recordings = read_folder(path)
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if space not in (None, getattr(recordings, name)):
                raise ValueError(f"`{name}` must be that of {path}, {getattr(recordings, name)}, got {space}")
        return recordings
    if not path.is_file() or path.suffix not in (".npy", ".npz"):
        raise ValueError(f"`path` must be an .npy or .npz file, or a folder of `record_env`, got {path}")
    arrays = {array_name(NO_KEY): map_array(path)} if path.suffix == ".npy" else _load_npz(path)
    keyed = {name.partition(".")[2]: array for name, array in arrays.items() if name not in STEP_ARRAYS}
    if NO_KEY in keyed and len(keyed) > 1:
        raise ValueError(f"{path} must hold either 'observations' or 'observations.<key>', got both: {sorted(arrays)}")
    if any(array.ndim == 0 or len(array) == 0 for array in keyed.values()):
        raise ValueError(f"{path} holds no observations")
    if observation_space is None:
        guessed = {key: guess_space(array_name(key), array, "observation_space") for key, array in keyed.items()}
        observation_space = guessed[NO_KEY] if NO_KEY in guessed else spaces.Dict(guessed)
    observation_space = channels_first(observation_space)
    steps = _find_steps(path, arrays, len(next(iter(keyed.values()))))
    if "actions" in steps and action_space is None:
        action_space = guess_space("actions", steps["actions"], "action_space")
    elif "actions" not in steps and action_space is not None:
        raise ValueError(f"`action_space` must be None for a file without 'actions', {path}, got {action_space}")
    observations = transpose(as_observations(keyed), observation_space)
    return Recordings(observation_space, observations, action_space=action_space, **steps)


def _load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file that recordings are made of."""
    with reading(path, "an .npz file"), np.load(path) as loaded:
        names = loaded.files
        wanted = [name for name in names if name.split(".")[0] == array_name(NO_KEY) or name in STEP_ARRAYS]
        arrays = {name: loaded[name] for name in wanted}
    if arrays.keys() <= set(STEP_ARRAYS):
        raise ValueError(
            f"{path} must hold the array 'observations', or 'observations.<key>' for each key of a Dict, got {names}"
        )
    return arrays


def _find_steps(path: pathlib.Path, arrays: dict[str, np.ndarray], n_rows: int) -> dict[str, np.ndarray]:
    """The episodes of the rows, and their actions, rewards and terminations if the file has them."""
    for name in ("rewards", *END_ARRAYS):
        if name in arrays and arrays[name].shape not in ((n_rows,), (n_rows, 1)):
            raise ValueError(f"'{name}' of {path} must have the shape ({n_rows},), got {arrays[name].shape}")
    steps: dict[str, np.ndarray] = {name: arrays[name] for name in ("episodes", "actions") if name in arrays}
    if "actions" in steps and steps["actions"].shape[:1] != (n_rows,):
        raise ValueError(
            f"'actions' of {path} must have a row for each of {n_rows} observations, got {steps['actions'].shape}"
        )
    if "rewards" in arrays:
        steps["rewards"] = arrays["rewards"].reshape(-1)
    ends = {name: arrays[name].reshape(-1) > 0 for name in END_ARRAYS if name in arrays}
    if "terminals" in ends:
        steps["terminated"] = ends["terminals"]
    elif ends.keys() == {"dones", "timeouts"}:
        steps["terminated"] = ends["dones"] & ~ends["timeouts"]
    if "episodes" not in steps:
        starts = np.zeros((n_rows, 1), dtype=bool)
        starts[0] = True
        for end in ends.values():
            starts[1:, 0] |= end[:-1]
        steps["episodes"] = count_episodes(starts).reshape(-1)
    return steps


def guess_space(name: str, array: np.ndarray, argument: str) -> spaces.Space:
    """
    :param name: Of the array
    :param array: ``(rows, ...)``
    :param argument: What would say it
    :return: A space that its rows are of
    :raises ValueError: If that cannot be guessed
    """
    shape = array.shape[1:]
    if array.dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, shape, array.dtype.type)
    if array.dtype == bool and shape:
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else list(shape))
    if array.dtype == np.uint8 and len(shape) >= 3:
        return spaces.Box(0, 255, shape, np.uint8)
    if array.dtype.kind in "iu" and len(shape) < 2 and array.min() >= 0:
        n = array.max(axis=0).astype(np.int64) + 1
        return spaces.MultiDiscrete(n) if shape else spaces.Discrete(int(n))
    raise ValueError(
        f"The space of {name}, {array.dtype} of shape {array.shape}, cannot be guessed: these are neither floats, nor "
        f"images, nor categories from 0 on. Say `{argument}`"
    )
