"""Files without loss: an old one stays until the new one is whole, and one that is broken is named."""

import io
import os
import pathlib
import platform
import re
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.save_util import open_path

from sb3_jepa.parts.digests import digest
from sb3_jepa.parts.standardization import FILLED_IN

HOW_TO_FIT = (
    "Build the model with the `policy_kwargs` that they are of. Files of an earlier sb3_jepa have patches of 16 pixels "
    "and a token for each number: `PPO.load(path, custom_objects=dict(policy_kwargs=dict("
    "features_extractor_kwargs=dict(patch_size=16, numbers_per_token=1))))`, with all other `policy_kwargs` that the "
    "model had"
)
# What this process is writing to
_unfinished_folders: set[pathlib.Path] = set()


@contextmanager
def replace_when_complete(path: str | os.PathLike, suffix: str = "") -> Iterator[pathlib.Path]:
    """
    Give a temporary path beside ``path`` to write to, and move it there at the end. If the writing fails, nothing is
    left of it and the old file stays as it was. What was left by processes of this computer that were killed while they
    were saving the same file is removed.

    :param path: Where the file is to be in the end; its folder is made if missing
    :param suffix: Added to a path that has none
    :return: Where to write
    :raises OSError: If it cannot be written, with the name of the file and the system's reason
    """
    path = pathlib.Path(path)
    path = path if path.suffix else path.with_suffix(suffix)
    # A link stays a link: the file that it points to is replaced
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        # The folder gives the file inside it the permissions that it would have had anyway, which mkstemp() would not
        folder = path.parent / f"{_prefix(path)}{os.getpid()}.{secrets.token_hex(4)}"
        # Before it exists, for another thread must not take it for a leftover
        _unfinished_folders.add(folder)
        try:
            folder.mkdir(mode=0o700)
            yield folder / path.name
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _unfinished_folders.discard(folder)
    except OSError as error:
        text = f"{error.strerror or error}. The file could not be written, and an older one is as it was"
        if error.errno is None:
            raise OSError(f"{text}: {path}") from error
        # The number chooses the subclass
        raise OSError(error.errno, text, str(path)) from error


def _prefix(path: pathlib.Path) -> str:
    # Several computers may share the folder
    return f".{path.name}.{digest([platform.node().encode()])}."


def _remove_leftovers(path: pathlib.Path) -> None:
    """Remove the temporary folders of a file whose processes do not exist any more."""
    # On Windows the question whether a process is alive would end it
    if os.name != "posix":
        return
    prefix = _prefix(path)
    with os.scandir(path.parent) as entries:
        for entry in entries:
            match = re.fullmatch(re.escape(prefix) + r"(\d+)\.[0-9a-f]{8}", entry.name)
            if match is not None and entry.is_dir(follow_symlinks=False):
                folder, process = pathlib.Path(entry.path), int(match[1])
                # In a container, the process that was killed often had the number that this one has
                is_in_use = folder in _unfinished_folders if process == os.getpid() else _is_alive(process)
                if not is_in_use:
                    shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        # Somebody else's; or no number of a process, and then nothing is known of it
        return True
    return True


def in_memory(save: Callable[[io.BytesIO], Any]) -> memoryview:
    """
    What a function writes to a file. PyTorch's own writer aborts the process if the disk is full: let it write here,
    and Python to the disk.

    :param save: It is given an open file
    :return: Its content
    """
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getbuffer()


def write_file(path: str | os.PathLike | io.BufferedIOBase, content: bytes | memoryview, suffix: str = "") -> None:
    """
    Write a file as :func:`replace_when_complete` does; or to an open one, as Stable-Baselines3 lets who saves a model.

    :param path: Where to
    :param content: What to write
    :param suffix: Added to a path that has none
    """
    if not isinstance(path, (str, os.PathLike)):
        path.write(content)
        return
    with replace_when_complete(path, suffix) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def reading(path: str | os.PathLike, expected: str) -> Iterator[None]:
    """
    Name the file if what it holds cannot be read. To be put around the reading alone: broken content raises anything.

    :param path: Of the file
    :param expected: What it should be, such as ``"a saved model (*.zip)"``
    :raises ValueError: If the file is empty, cut off, or something else
    """
    try:
        yield
    # A file that is not there is not broken
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise ValueError(f"{path} must be {expected}, and is empty") from error
        # PyTorch's go on for many lines
        reason = "".join(str(error).strip().splitlines()[:1])
        needs = ", or needs a package that is not installed" if isinstance(error, ImportError) else ""
        raise ValueError(
            f"{path} must be {expected}, and was cut off or is something else{needs} ({type(error).__name__}: {reason})"
        ) from error


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
    :return: In what they differ, in words: shapes, then types, then what is missing
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
        # One precision becomes another
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
    Warn if what is about to be saved is of no use.

    :param state: Parameters and buffers by name
    :param what: What it is the state of, for the message
    """
    name = find_not_finite(state)
    if name is not None:
        warnings.warn(
            f"{what} that is saved holds NaN or infinite values, first in {name}: the training has diverged",
            UserWarning,
            stacklevel=3,
        )


# What a saved model always has
MODEL_PARTS = ("data", "policy.pth")
MODEL = "a saved model (*.zip)"


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """
    :param path: What ``load()`` of Stable-Baselines3 takes; an open file is not looked at
    :raises ValueError: If the file is no saved model
    """
    if not isinstance(path, (str, pathlib.Path)):
        return
    # It is found with and without its ending
    with open_path(path, "r", verbose=0, suffix="zip") as file, reading(file.name, MODEL):
        with zipfile.ZipFile(file) as archive:  # type: ignore[arg-type]
            missing = set(MODEL_PARTS) - set(archive.namelist())
        if missing:
            raise ValueError(f"it does not hold {' and '.join(sorted(map(repr, missing)))}")
