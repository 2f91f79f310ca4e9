"""Recordings in a folder, which is written row by row and read without being loaded."""

import errno
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.digests import digest
from sb3_jepa.common.files import reading, replace_when_complete
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.settings import differing_settings, readable
from sb3_jepa.common.spaces import space_from_json, space_to_json, spaces_by_key
from sb3_jepa.data.recordings import Recordings

# Describes the arrays beside it, and says how many of their rows are complete
INFO_FILE = "recording.json"
# What recordings may have beside their observations, episodes and actions: one number for each row
OPTIONAL_TYPES = dict(rewards=np.float32, terminated=bool, has_action=bool, times=np.int64)
OPTIONAL_ARRAYS = ("actions", *OPTIONAL_TYPES)
# After so many rows the file is written again. If the process is killed, what was recorded since is lost.
SAVE_FREQ = 1000


def array_name(key: str) -> str:
    """
    :param key: Of a ``Dict`` observation, or the key of one that has none
    :return: The name of its array in a file, and of its file in a folder
    """
    return f"observations.{key}" if key else "observations"


def _file_name(name: str) -> str:
    # Quote keys such as "robot/joints": the slash would name a folder
    return f"{quote(name, safe=' ')}.npy"


class NotRepeatedError(ValueError):
    """Rows that were saved before came out differently when they were recorded once more."""


class RecordingWriter:
    """
    Writes recordings row by row, to memory or to a folder. What an interrupted call has saved in a folder is kept: the
    next call begins with the first row again, compares the rows that are saved and writes those that are not. A folder
    that an earlier version began has no actions, and gets none.

    :param observation_space: As a Stable-Baselines3 policy sees it
    :param n_rows: How many rows to write; their room is reserved at once
    :param folder: Where to write; None for memory
    :param settings: What distinguishes these recordings from others
    :param action_space: None if no actions are written
    :param optional_arrays: Names of the arrays to write beside observations and episodes
    :raises ValueError: If the folder holds other recordings, or the disk has too little room
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        n_rows: int,
        folder: str | pathlib.Path | None = None,
        settings: Mapping[str, Any] | None = None,
        action_space: spaces.Space | None = None,
        optional_arrays: Collection[str] = ("actions", "rewards", "terminated", "has_action"),
    ):
        self.observation_space, self.n_rows = observation_space, n_rows
        self.folder = None if folder is None else pathlib.Path(folder)
        described = {
            "n_rows": n_rows,
            "observation_space": space_to_json(observation_space),
            "action_space": None if action_space is None else space_to_json(action_space),
            "arrays": [name for name in optional_arrays if name != "actions" or action_space is not None],
        }
        self._settings = readable({**(settings or {}), **described})
        self.n_saved = self._find_rows()
        self.n_written = self.n_saved if self.n_saved == n_rows else 0
        self.action_space = action_space if self._settings.get("action_space") else None
        types = {"episodes": ((), np.dtype(np.int64))} | {
            array_name(key): (space.shape or (), np.dtype(space.dtype))
            for key, space in spaces_by_key(observation_space).items()
        }
        if self.action_space is not None:
            types["actions"] = (self.action_space.shape or (), np.dtype(self.action_space.dtype))
        optional = self._settings.get("arrays", ())
        types |= {name: ((), np.dtype(dtype)) for name, dtype in OPTIONAL_TYPES.items() if name in optional}
        if self.folder is not None and self.n_saved == 0:
            self._make_room(types)
        opened = {name: self._open(name, *shape_and_type) for name, shape_and_type in types.items()}
        self._mapped = [array for array in opened.values() if isinstance(array, np.memmap)]
        # Write to views: those of a memmap are slow to index
        self._arrays = {name: np.asarray(array) for name, array in opened.items()}

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
        if "arrays" not in info:
            # An earlier version wrote it, without actions
            for name in ("action_space", "arrays"):
                del self._settings[name]
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
        # Check it now: a process that writes to a mapped array on a full disk is killed without a message
        if n_bytes > free:
            raise ValueError(f"{self.n_rows} observations take {n_bytes:,} bytes, and {self.folder} has {free:,} left")
        # Write it before the arrays: a folder of arrays alone would be refused next time
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

    def append(self, arrays: Mapping[str, Any]) -> int:
        """
        Write the next rows, as far as there is room.

        :param arrays: By name: ``observations``, ``(rows, *observation shape)`` or a dictionary of such, their
            ``episodes``, ``(rows,)``, and what else is known already. All else is zero.
        :return: The number of the first of these rows
        :raises NotRepeatedError: If they are not those that were saved before
        """
        start = self.n_written
        self.n_written = min(start + len(arrays["episodes"]), self.n_rows)
        known = {**arrays, **{array_name(key): array for key, array in by_key(arrays["observations"]).items()}}
        for name, own in self._arrays.items():
            if name not in known:
                own[max(start, self.n_saved) : self.n_written] = 0
        self.amend(start, known)
        return start

    def amend(self, start: int, arrays: Mapping[str, Any]) -> None:
        """
        Write more of rows that were appended. Rows that were saved before are not written but compared.

        :param start: The number of the first of these rows
        :param arrays: By name, ``(rows, ...)``
        :raises NotRepeatedError: If they are not those that were saved before
        """
        n_old = max(0, self.n_saved - start)
        if n_old > 0:
            for name in arrays.keys() & self._arrays.keys():
                own = self._arrays[name][start : self.n_written][:n_old]
                old = np.asarray(arrays[name][: len(own)], own.dtype)
                # Compare bytes: NaN is equal to NaN then
                if old.tobytes() != own[: len(old)].tobytes():
                    raise NotRepeatedError(f"`folder` holds other recordings, {self.folder}: other {name} lie there")
        for name, array in arrays.items():
            if name in self._arrays:
                own = self._arrays[name][start : self.n_written][n_old : len(array)]
                own[...] = array[n_old : n_old + len(own)]

    def skip_saved(self) -> None:
        """Continue after the rows that were saved before."""
        self.n_written = self.n_saved

    def save(self) -> None:
        """Make the rows that were written part of the folder's recordings."""
        if self.folder is None or self.n_written <= self.n_saved:
            return
        for array in self._mapped:
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
        return _recordings(
            self.observation_space,
            self.action_space,
            {name: array[: self.n_written] for name, array in self._arrays.items()},
        )


def _recordings(
    observation_space: spaces.Space, action_space: spaces.Space | None, arrays: Mapping[str, np.ndarray]
) -> Recordings:
    keyed = {key: arrays[array_name(key)] for key in spaces_by_key(observation_space)}
    optional = {name: arrays[name] for name in OPTIONAL_ARRAYS if name in arrays}
    return Recordings(observation_space, as_observations(keyed), arrays["episodes"], action_space, **optional)


def save_recordings(recordings: Recordings, folder: str | pathlib.Path) -> Recordings:
    """
    Write recordings to a folder, from which :func:`~sb3_jepa.pretrain.read` maps them into memory. The same call goes
    on where it was interrupted, and does not write what is complete again.

    :param recordings: Of any kind, such as those of an ``.npz`` file, which are loaded each time otherwise
    :param folder: Where to save them
    :return: The same recordings, mapped into memory
    :raises ValueError: If the folder holds others
    """
    recordings = checks.instance("recordings", recordings, Recordings)
    optional = {name: array for name in OPTIONAL_ARRAYS if (array := getattr(recordings, name)) is not None}
    writer = RecordingWriter(
        recordings.observation_space,
        len(recordings),
        checks.path("folder", folder),
        dict(recordings=recordings.id, steps=digest(np.ascontiguousarray(one).tobytes() for one in optional.values())),
        recordings.action_space,
        list(optional),
    )
    for start in range(writer.n_written, len(recordings), SAVE_FREQ):
        rows = np.arange(start, min(start + SAVE_FREQ, len(recordings)))
        columns = {name: array[rows] for name, array in optional.items()}
        writer.append(dict(observations=recordings.take(rows), episodes=recordings.episodes[rows], **columns))
        writer.save_if_due()
    return writer.recordings()


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
        action_space = info.get("action_space") and space_from_json(info["action_space"])
        names = [*map(array_name, spaces_by_key(space)), "episodes", *info.get("arrays", ())]
    if n_rows == 0:
        raise ValueError(f"{folder} holds no observations yet")
    if n_rows < n_expected:
        warnings.warn(f"{folder} is not complete: it holds {n_rows} of {n_expected} rows", UserWarning, stacklevel=3)
    return _recordings(
        space, action_space, {name: map_array(folder / _file_name(name), n_rows=n_rows)[:n_rows] for name in names}
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
        # Reserve the room: writing to the array when the disk has become full would kill the process
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        # Some file systems cannot reserve room
        if error.errno == errno.EOPNOTSUPP:
            return array
        text = f"{error.strerror or error}. There is no room for {shape[0]} observations"
        raise OSError(error.errno, text, str(path)) from error
    return array


def _reading_info(path: pathlib.Path) -> AbstractContextManager[None]:
    return reading(path, "what `record_env` wrote of its recordings")
