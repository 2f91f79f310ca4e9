"""Recordings of what is there already: buffers, files, and data sets of Minari."""

import os
import pathlib
import sys
import zipfile
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first, maybe_transpose
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from sb3_jepa.buffers.frames import FrameStacks
from sb3_jepa.common import checks
from sb3_jepa.common.files import reading
from sb3_jepa.common.observations import NO_KEY, as_observations, by_key
from sb3_jepa.common.spaces import spaces_by_key
from sb3_jepa.data.collection import record_env
from sb3_jepa.data.folders import RecordingWriter, array_name, map_array, read_folder
from sb3_jepa.data.recordings import Recordings

MINARI_PREFIX = "minari:"
# What ends with a row, under the names that data sets have for it
END_ARRAYS = ("dones", "terminals", "timeouts")
EPISODE_ARRAYS = ("episodes", *END_ARRAYS)


def read(source: Any, **kwargs: Any) -> Recordings:
    """
    Recordings of anything that holds or shows observations.

    :param source: :class:`Recordings`; a file or folder, see :func:`read_file`; a buffer, see :func:`read_buffer`; a
        data set of Minari, as ``"minari:ID"`` too, see :func:`read_minari`; an environment or its ID, see
        :func:`~sb3_jepa.pretrain.record_env`
    :param kwargs: The further parameters of that function
    :return: The recordings
    :raises ValueError: If it is none of these
    """
    if isinstance(source, Recordings):
        if kwargs:
            raise ValueError(f"Recordings are taken as they are, without further arguments, got {sorted(kwargs)}")
        return source
    if isinstance(source, (ReplayBuffer, RolloutBuffer)):
        return read_buffer(source, **kwargs)
    if isinstance(source, str) and source.startswith(MINARI_PREFIX):
        return read_minari(source.removeprefix(MINARI_PREFIX), **kwargs)
    # The empty path would be the current folder
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) and pathlib.Path(source).exists():
        return read_file(source, **kwargs)
    if is_env(source):
        return record_env(source, **kwargs)
    # There is no such data set before Minari was imported
    if "minari" in sys.modules and isinstance(source, sys.modules["minari"].MinariDataset):
        return read_minari(source, **kwargs)
    raise ValueError(
        "`source` must be Recordings, the path of a file (.npy, .npz) or of a folder of `record_env`, a replay or "
        f'rollout buffer, a data set of Minari or "{MINARI_PREFIX}ID", an environment or its ID, got {source!r}'
    )


def read_into(
    folder: pathlib.Path, source: Any, seed: int, progress_bar: bool, source_kwargs: dict[str, Any]
) -> Recordings:
    """
    Recordings of a source; those of an environment are kept beside the encoder that learns from them.

    :param folder: Of the pretraining
    :param source: As of :func:`~sb3_jepa.pretrain.read`
    :param seed: Seed of an environment
    :param progress_bar: Display a progress bar while an environment is recorded
    :param source_kwargs: Keyword arguments of :func:`~sb3_jepa.pretrain.read`, which come before all these
    :return: The recordings
    :raises ValueError: If it is no such source, or does not take such arguments
    """
    of_env = dict(folder=folder / "recordings", seed=seed, progress_bar=progress_bar) if is_env(source) else {}
    return read(source, **{**of_env, **source_kwargs})


def is_env(source: Any) -> bool:
    """
    :param source: As of :func:`read`
    :return: Whether it is an environment, or the ID of one (``"module:ID"`` too), and nothing that exists as a file
    """
    if isinstance(source, (gym.Env, VecEnv)):
        return True
    if not isinstance(source, str) or source.startswith(MINARI_PREFIX) or pathlib.Path(source).exists():
        return False
    # "module:ID" imports a module that registers it, as in gymnasium.make
    module, _, env_id = source.rpartition(":")
    try:
        if module:
            import_module(module)
        return gym.spec(env_id) is not None
    except (gym.error.Error, ImportError, TypeError):
        return False


def read_buffer(buffer: ReplayBuffer | RolloutBuffer) -> Recordings:
    """
    The observations of a buffer of Stable-Baselines3, sb3-contrib or sb3_jepa, as it stores them. They are not copied:
    what the buffer overwrites later is overwritten here. Under ``VecNormalize``, a rollout buffer has observations as
    they were normalised, and a replay buffer as they were before.

    :param buffer: Replay buffer or rollout buffer, full or not
    :return: The recordings, in the order in which the buffer has its rows. An episode of a replay buffer that another
        call of ``learn()`` broke off counts as one with the next, for no step has ended it.
    :raises ValueError: If it is no such buffer, or empty
    """
    if not isinstance(buffer, (ReplayBuffer, RolloutBuffer)):
        raise ValueError(f"`buffer` must be a ReplayBuffer or a RolloutBuffer, got {type(buffer).__name__}")
    n_steps = buffer.size()
    if n_steps == 0:
        raise ValueError("`buffer` must hold observations, and is empty")
    episodes = _replay_episodes(buffer) if isinstance(buffer, ReplayBuffer) else _rollout_episodes(buffer)
    # Once samples were drawn from it, a rollout buffer has its rows environment by environment
    is_flat = isinstance(buffer, RolloutBuffer) and buffer.generator_ready
    keyed = spaces_by_key(buffer.observation_space)
    arrays = {key: _flatten(array, n_steps, is_flat, keyed[key]) for key, array in by_key(buffer.observations).items()}
    return Recordings(
        buffer.observation_space, as_observations(arrays), (episodes.T if is_flat else episodes).reshape(-1)
    )


def _flatten(array: Any, n_steps: int, is_flat: bool, space: spaces.Space) -> Any:
    if isinstance(array, FrameStacks):
        return array if is_flat else array.first_rows(n_steps)
    # Buffers give a number an axis, which a policy does not
    return (array if is_flat else array[:n_steps]).reshape(-1, *(space.shape or ()))


def _replay_episodes(buffer: ReplayBuffer) -> np.ndarray:
    """``(steps, environments)``"""
    rows = np.arange(buffer.size())
    if buffer.full:
        # From the oldest on. To save memory it has been overwritten, by what followed on the newest.
        rows = (rows + buffer.pos + int(buffer.optimize_memory_usage)) % buffer.buffer_size
    starts = np.ones((len(rows), buffer.n_envs), dtype=bool)
    starts[1:] = buffer.dones[rows[:-1]] > 0
    if buffer.full and buffer.optimize_memory_usage:
        starts[-1] = False
    episodes = np.empty(starts.shape, dtype=np.int64)
    episodes[rows] = _count_episodes(starts)
    return episodes


def _rollout_episodes(buffer: RolloutBuffer) -> np.ndarray:
    """``(steps, environments)``"""
    starts = buffer.episode_starts > 0
    if len(starts) != buffer.buffer_size:
        # RecurrentPPO's are flattened too
        starts = starts.reshape(buffer.n_envs, -1).T
    starts = starts[: buffer.size()].copy()
    starts[0] = True
    return _count_episodes(starts)


def _count_episodes(starts: np.ndarray) -> np.ndarray:
    """Of ``(steps, environments)``, the first of which is a start everywhere."""
    return starts.T.cumsum().reshape(starts.T.shape).T - 1


def read_file(path: str | os.PathLike, observation_space: spaces.Space | None = None) -> Recordings:
    """
    The observations of a file, which is mapped into memory and not loaded, unless it is compressed; or those of a
    folder that :func:`~sb3_jepa.pretrain.record_env` has written.

    :param path: Of an ``.npy`` file ``(rows, *observation shape)``; or of an ``.npz`` file with the array
        ``observations``, or ``observations.<key>`` for each key of a ``Dict``. That one may say which rows are of which
        episode: by their numbers in ``episodes``, or by what ended with a row, ``dones``, or ``terminals`` and
        ``timeouts``. Images may have their channels first or last.
    :param observation_space: Of the environment that they are from; a folder knows it. By default it is guessed:
        ``uint8`` in three or more dimensions are images, other whole numbers are categories, and floats are numbers.
    :return: The recordings. If nothing is known of episodes, all rows count as one.
    :raises ValueError: If it is no such file, or its observations are none of the space
    """
    path = checks.path("path", path)
    observation_space = checks.optional(checks.instance, "observation_space", observation_space, cls=spaces.Space)
    if path.is_dir():
        recordings = read_folder(path)
        if observation_space not in (None, recordings.observation_space):
            raise ValueError(
                f"`observation_space` must be that of {path}, {recordings.observation_space}, got {observation_space}"
            )
        return recordings
    if not path.is_file() or path.suffix not in (".npy", ".npz"):
        raise ValueError(f"`path` must be an .npy or .npz file, or a folder of `record_env`, got {path}")
    arrays = {array_name(NO_KEY): map_array(path)} if path.suffix == ".npy" else _map_npz(path)
    keyed = {name.partition(".")[2]: array for name, array in arrays.items() if name not in EPISODE_ARRAYS}
    if NO_KEY in keyed and len(keyed) > 1:
        raise ValueError(f"{path} must hold either 'observations' or 'observations.<key>', got both: {sorted(arrays)}")
    if any(array.ndim == 0 or len(array) == 0 for array in keyed.values()):
        raise ValueError(f"{path} holds no observations")
    if observation_space is None:
        guessed = {key: _guess_space(array_name(key), array) for key, array in keyed.items()}
        observation_space = guessed[NO_KEY] if NO_KEY in guessed else spaces.Dict(guessed)
    observation_space = _channels_first(observation_space)
    n_rows = len(next(iter(keyed.values())))
    return Recordings(
        observation_space, _transpose(as_observations(keyed), observation_space), _find_episodes(arrays, n_rows)
    )


def _map_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The observations of a file and what it says of episodes; what is not compressed is mapped into memory."""
    arrays = {}
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive, np.load(path) as loaded:
        names = loaded.files
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name.split(".")[0] == array_name(NO_KEY) or name in EPISODE_ARRAYS:
                array = _map_member(path, member) if member.compress_type == zipfile.ZIP_STORED else None
                arrays[name] = loaded[name] if array is None else array
    if arrays.keys() <= set(EPISODE_ARRAYS):
        raise ValueError(
            f"{path} must hold the array 'observations', or 'observations.<key>' for each key of a Dict, got {names}"
        )
    return arrays


def _map_member(path: pathlib.Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    with path.open("rb") as file:
        # Its header there, of 30 bytes with the lengths of what comes before its content in the last four
        file.seek(member.header_offset + 26)
        lengths = file.read(4)
        file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), os.SEEK_CUR)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(np.lib.format.read_magic(file))
        if read_header is None:
            return None
        shape, is_fortran, dtype = read_header(file)
        # Nothing can be mapped of what is empty, and objects are no numbers
        if dtype.hasobject or 0 in shape:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")


def _find_episodes(arrays: dict[str, np.ndarray], n_rows: int) -> np.ndarray:
    if "episodes" in arrays:
        return arrays["episodes"]
    ends = [arrays[name] for name in END_ARRAYS if name in arrays]
    if any(end.shape not in ((n_rows,), (n_rows, 1)) for end in ends):
        raise ValueError(
            f"'dones', 'terminals' and 'timeouts' must have the shape ({n_rows},), got {[end.shape for end in ends]}"
        )
    starts = np.zeros((n_rows, 1), dtype=bool)
    for end in ends:
        starts[1:] |= end.reshape(-1, 1)[:-1] > 0
    return _count_episodes(starts | (np.arange(n_rows) == 0)[:, None]).reshape(-1)


def _guess_space(name: str, array: np.ndarray) -> spaces.Space:
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
        "images, nor categories from 0 on. Say `observation_space`"
    )


def _channels_first(space: spaces.Space) -> spaces.Space:
    """As a policy sees it."""
    if isinstance(space, spaces.Dict):
        # Of a dictionary it would sort the keys
        return spaces.Dict([(key, _channels_first(one)) for key, one in space.items()])
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


def _transpose(observations: Any, space: spaces.Space) -> Any:
    """Views of the observations as a policy sees them."""
    keyed = spaces_by_key(space)
    arrays = by_key(observations)
    return as_observations(
        {key: maybe_transpose(array, keyed[key]) if key in keyed else array for key, array in arrays.items()}
    )


def read_minari(dataset: Any, download: bool = False) -> Recordings:
    """
    The observations of a data set of Minari, which are loaded into memory.

    :param dataset: ``MinariDataset``, or the ID of one
    :param download: Whether to download it, if it is not on this computer
    :return: The recordings, each with its last observation
    :raises ValueError: If there is no such data set
    :raises ImportError: If Minari is not installed
    """
    download = checks.flag("download", download)
    try:
        import minari
    except ImportError as error:
        raise ImportError('Data sets of Minari need a package: pip install "sb3-jepa[offline]"') from error
    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset, download=download)
        except (OSError, ValueError) as error:
            raise ValueError(f"`dataset` must be the ID of a data set of Minari, got {dataset!r}. {error}") from error
    if not isinstance(dataset, minari.MinariDataset):
        raise ValueError(f"`dataset` must be a MinariDataset or the ID of one, got {dataset!r}")
    space = _channels_first(dataset.observation_space)
    # Of each episode there is one more, the last
    writer = RecordingWriter(space, dataset.total_steps + dataset.total_episodes)
    for number, episode in enumerate(dataset.iterate_episodes()):
        observations = _transpose(episode.observations, space)
        writer.write(observations, np.full(len(episode) + 1, number))
    return writer.recordings()
