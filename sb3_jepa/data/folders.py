"""Recordings in a folder, which is written row by row and read without being loaded."""

import errno
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

import numpy as np
from gymnasium import spaces

from sb3_jepa.common.files import reading, replace_when_complete
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.settings import differing_settings, readable
from sb3_jepa.common.spaces import space_from_json, space_to_json, spaces_by_key
from sb3_jepa.data.recordings import Recordings

# What the arrays beside it hold, and how many rows of them
INFO_FILE = "recording.json"
# After so many rows it is written again. What was recorded since is lost if the process is killed.
SAVE_FREQ = 1000


def array_name(key: str) -> str:
    """
    :param key: Of a ``Dict`` observation, or the key of one that has none
    :return: The name of its array in a file, and of its file in a folder
    """
    return f"observations.{key}" if key else "observations"


def _file_name(name: str) -> str:
    # Keys such as "robot/joints" name no folder
    return f"{quote(name, safe=' ')}.npy"


class NotRepeatedError(Exception):
    """Rows that were saved before came out differently when they were recorded once more."""


class RecordingWriter:
    """
    Writes recordings row by row, to memory or to a folder. What an interrupted one has saved in a folder is kept: rows
    are compared with it from the first on, and written from there on.

    :param observation_space: As a Stable-Baselines3 policy sees it
    :param n_rows: How many rows to write, for which there will be room from the first on
    :param folder: Where to write; None for memory
    :param settings: What distinguishes these recordings from others
    :raises ValueError: If the folder holds others, or there is no room for so many rows
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        n_rows: int,
        folder: str | pathlib.Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self.observation_space, self.n_rows = observation_space, n_rows
        self.folder = None if folder is None else pathlib.Path(folder)
        described = {"n_rows": n_rows, "observation_space": space_to_json(observation_space)}
        self._settings = readable({**(settings or {}), **described})
        # Of an interrupted recording all is gone through once more, for it to go on where it was
        self.n_saved = self._find_rows()
        self.n_written = self.n_saved if self.n_saved == n_rows else 0
        types = {"episodes": ((), np.dtype(np.int64))} | {
            array_name(key): (space.shape or (), np.dtype(space.dtype))
            for key, space in spaces_by_key(observation_space).items()
        }
        if self.folder is not None and self.n_saved == 0:
            self._make_room(types)
        self._arrays = {name: self._open(name, *shape_and_type) for name, shape_and_type in types.items()}

    def _find_rows(self) -> int:
        """How many rows the folder holds."""
        if self.folder is None or not self.folder.exists():
            return 0
        path = self.folder / INFO_FILE
        if not path.is_file():
            if next(self.folder.glob("*.npy"), None) is not None:
                raise ValueError(f"`folder` holds arrays that are not known to be recordings: {self.folder}")
            return 0
        with _reading_info(path):
            info = json.loads(path.read_text())
            n_saved = int(info.pop("n_saved"))
        differing = differing_settings(info, self._settings)
        if differing:
            texts = [f"{name} is {theirs!r} there and {own!r} here" for name, (theirs, own) in differing.items()]
            raise ValueError(f"`folder` holds other recordings, {self.folder}: {'; '.join(texts)}")
        return n_saved

    def _make_room(self, types: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        n_bytes = self.n_rows * sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in types.values())
        free = shutil.disk_usage(self.folder).free
        # Later, the process would be killed for it without a word
        if n_bytes > free:
            raise ValueError(f"{self.n_rows} observations take {n_bytes:,} bytes, and {self.folder} has {free:,} left")
        # Before the arrays, so that they are known for what they are
        self._write_info()

    def _open(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if self.folder is None:
            return np.empty((self.n_rows, *shape), dtype)
        path = self.folder / _file_name(name)
        if self.n_saved > 0:
            return map_array(path, "r" if self.is_complete else "r+", self.n_rows)
        return _make_array(path, (self.n_rows, *shape), dtype)

    @property
    def is_complete(self) -> bool:
        """Whether all rows are written."""
        return self.n_written == self.n_rows

    @property
    def next_episode(self) -> int:
        """A number that no episode has yet."""
        return int(self._arrays["episodes"][: self.n_written].max(initial=-1)) + 1

    def write(self, observations: Any, episodes: np.ndarray) -> None:
        """
        Write the next rows, as far as there is room. Those that were saved before are not written but compared.

        :param observations: ``(rows, *observation shape)``, or a dictionary of such
        :param episodes: Numbers of their episodes, ``(rows,)``
        :raises NotRepeatedError: If they are not those that were saved before
        """
        n_new = min(len(episodes), self.n_rows - self.n_written)
        n_old = min(n_new, max(0, self.n_saved - self.n_written))
        start, middle, end = self.n_written, self.n_written + n_old, self.n_written + n_new
        arrays = {array_name(key): array for key, array in by_key(observations).items()}
        arrays["episodes"] = episodes
        for name, array in arrays.items():
            own = self._arrays[name]
            # NaN is the same as NaN
            if n_old > 0 and np.asarray(array[:n_old], own.dtype).tobytes() != own[start:middle].tobytes():
                raise NotRepeatedError
        for name, array in arrays.items():
            self._arrays[name][middle:end] = array[n_old:n_new]
        self.n_written = end

    def skip_saved(self) -> None:
        """Go on behind what was saved before."""
        self.n_written = self.n_saved

    def save(self) -> None:
        """Make what was written known to those who read the folder."""
        if self.folder is None or self.n_written <= self.n_saved:
            return
        for array in self._arrays.values():
            assert isinstance(array, np.memmap)
            array.flush()
        self._write_info()
        self.n_saved = self.n_written

    def save_if_due(self) -> None:
        """Save if much was written since the last time."""
        if self.n_written - self.n_saved >= SAVE_FREQ:
            self.save()

    def _write_info(self) -> None:
        assert self.folder is not None
        with replace_when_complete(self.folder / INFO_FILE) as unfinished:
            unfinished.write_text(json.dumps({**self._settings, "n_saved": self.n_written}, indent=2) + "\n")

    def recordings(self) -> Recordings:
        """
        :return: What was written, with the arrays of a folder mapped into memory
        """
        self.save()
        if self.folder is not None:
            return read_folder(self.folder)
        arrays = {name: array[: self.n_written] for name, array in self._arrays.items()}
        keys = spaces_by_key(self.observation_space)
        observations = as_observations({key: arrays[array_name(key)] for key in keys})
        return Recordings(self.observation_space, observations, arrays["episodes"])


def read_folder(folder: pathlib.Path) -> Recordings:
    """
    :param folder: That :func:`~sb3_jepa.pretrain.record_env` has written, also if it was interrupted
    :return: What it holds, mapped into memory
    :raises ValueError: If it is another, or a file of it is broken
    """
    path = folder / INFO_FILE
    if not path.is_file():
        raise ValueError(f"A folder of recordings must have been written by `record_env`, and {path} does not exist")
    with _reading_info(path):
        info = json.loads(path.read_text())
        n_rows, n_expected, space = int(info["n_saved"]), info["n_rows"], space_from_json(info["observation_space"])
    if n_rows == 0:
        raise ValueError(f"{folder} holds no observations yet")
    if n_rows < n_expected:
        warnings.warn(f"{folder} is not complete: it holds {n_rows} of {n_expected} rows", UserWarning, stacklevel=3)
    files = {key: folder / _file_name(array_name(key)) for key in spaces_by_key(space)}
    arrays = {key: map_array(file, n_rows=n_rows)[:n_rows] for key, file in files.items()}
    return Recordings(
        space, as_observations(arrays), map_array(folder / _file_name("episodes"), n_rows=n_rows)[:n_rows]
    )


def map_array(path: pathlib.Path, mode: str = "r", n_rows: int = 0) -> np.ndarray:
    """
    :param path: Of an ``.npy`` file
    :param mode: ``"r"`` to read, ``"r+"`` to write too
    :param n_rows: How many rows it must have, at least
    :return: Its array, mapped into memory
    :raises ValueError: If the file is broken, or has fewer rows
    """
    with reading(path, "an .npy file"):
        array = np.lib.format.open_memmap(str(path), mode=mode)
        if len(array) < n_rows:
            raise ValueError(f"it has {len(array)} rows of {n_rows}")
    return array


def _make_array(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(str(path), mode="w+", dtype=dtype, shape=shape)
        # Without it the process would be killed for writing to the array where the disk has become full
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        # Some file systems cannot tell
        if error.errno == errno.EOPNOTSUPP:
            return array
        text = f"{error.strerror or error}. There is no room for {shape[0]} observations"
        raise OSError(error.errno, text, str(path)) from error
    return array


def _reading_info(path: pathlib.Path) -> AbstractContextManager[None]:
    return reading(path, "what `record_env` wrote of its recordings")
