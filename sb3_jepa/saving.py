"""Saving without loss: the old file stays until the new one is whole."""

import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replace_when_complete(
    path: str | pathlib.Path | io.BufferedIOBase, suffix: str = ""
) -> Iterator[pathlib.Path | io.BufferedIOBase]:
    """
    Give a temporary path beside ``path`` to write to, and move it there at the end. If the writing fails, nothing is
    left of it and the old file stays as it was.

    :param path: Where the file is to be in the end; its folder is made if missing. An open file is passed through.
    :param suffix: Added to a path that has none
    :return: Where to write
    """
    if not isinstance(path, (str, pathlib.Path)):
        yield path
        return
    path = pathlib.Path(path)
    path = path if path.suffix else path.with_suffix(suffix)
    # A link stays a link: the file that it points to is replaced
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The folder gives the file inside it the permissions that it would have had anyway, which mkstemp() would not
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        unfinished = pathlib.Path(folder) / path.name
        yield unfinished
        os.replace(unfinished, path)
