"""Reading and writing of files: an old file stays until the new one is complete, and errors name the file."""

import io
import os
import pathlib
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sb3_jepa.common.digests import digest

# The temporary folders of this process
_unfinished_folders: set[pathlib.Path] = set()


@contextmanager
def replace_when_complete(path: str | os.PathLike, suffix: str = "") -> Iterator[pathlib.Path]:
    """
    Give a temporary path beside ``path`` to write to, and move the file to ``path`` at the end. If the writing fails,
    the temporary file is removed and the old file stays as it was. Temporary files of this ``path`` that processes of
    this computer left when they were killed are removed.

    :param path: Where the file is to be in the end; its folder is made if missing
    :param suffix: Added to a path that has none
    :return: Where to write
    :raises OSError: If it cannot be written, with the name of the file and the system's reason
    """
    path = pathlib.Path(path)
    path = path if path.suffix else path.with_suffix(suffix)
    # Replace the file that a link points to, and not the link
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        # A file in a temporary folder gets the usual permissions; one of mkstemp() would be private
        folder = path.parent / f"{_prefix(path)}{os.getpid()}.{secrets.token_hex(4)}"
        # Register it before it exists: another thread must not take it for a leftover
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
        # OSError chooses its subclass by the number
        raise OSError(error.errno, text, str(path)) from error


def _prefix(path: pathlib.Path) -> str:
    # Include the computer's name, for several computers may share the folder
    return f".{path.name}.{digest([platform.node().encode()])}."


def _remove_leftovers(path: pathlib.Path) -> None:
    """Remove the temporary folders of a file whose processes do not exist any more."""
    # On Windows, os.kill(process, 0) would end the process
    if os.name != "posix":
        return
    prefix = _prefix(path)
    with os.scandir(path.parent) as entries:
        for entry in entries:
            match = re.fullmatch(re.escape(prefix) + r"(\d+)\.[0-9a-f]{8}", entry.name)
            if match is not None and entry.is_dir(follow_symlinks=False):
                folder, process = pathlib.Path(entry.path), int(match[1])
                # In a container, a killed process often had the same number as this one
                is_in_use = folder in _unfinished_folders if process == os.getpid() else _is_alive(process)
                if not is_in_use:
                    shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        # It belongs to another user; or the number is too large to be one of a process, and the file is kept
        return True
    return True


def in_memory(save: Callable[[io.BytesIO], Any]) -> memoryview:
    """
    Let a function write to memory. PyTorch's own writer aborts the process if the disk is full; Python's raises.

    :param save: Writes to the open file that it is given
    :return: What it wrote
    """
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getbuffer()


def write_file(path: str | os.PathLike | io.BufferedIOBase, content: bytes | memoryview, suffix: str = "") -> None:
    """
    Write a file as :func:`replace_when_complete` does.

    :param path: Where to; or an open file, which Stable-Baselines3 accepts too
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
    Name the file if its content cannot be read. Put it around the reading alone: it catches all exceptions, since
    broken content may raise any.

    :param path: Of the file
    :param expected: What it should be, such as ``"a saved model (*.zip)"``
    :raises ValueError: If the file is empty, cut off, or something else
    """
    try:
        yield
    # A missing file is not a broken one
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise ValueError(f"{path} must be {expected}, and is empty") from error
        # PyTorch's messages have many lines
        reason = "".join(str(error).strip().splitlines()[:1])
        needs = ", or needs a package that is not installed" if isinstance(error, ImportError) else ""
        raise ValueError(
            f"{path} must be {expected}, and was cut off or is something else{needs} ({type(error).__name__}: {reason})"
        ) from error
