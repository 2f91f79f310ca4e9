"""Encoder files: parameters and buffers, written whole and read with a check."""

import pathlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch as th

from sb3_jepa.common.files import in_memory, reading, write_file
from sb3_jepa.common.state_dicts import find_misfits, find_not_finite, warn_if_not_finite

SAFETENSORS = ".safetensors"


def write_encoder(module: th.nn.Module, path: str | pathlib.Path) -> pathlib.Path:
    """
    Write an encoder's parameters and buffers to a file, as :func:`save_encoder` does. A warning tells if some of them
    are NaN or infinite.

    :param module: The encoder
    :param path: Where to save, see :func:`save_encoder`
    :return: The file
    :raises ImportError: If ``.safetensors`` is asked for and not installed
    """
    path = pathlib.Path(path)
    if not path.suffix:
        path = path.with_suffix(SAFETENSORS if find_spec("safetensors") else ".pth")
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    warn_if_not_finite(state, "The encoder")
    # The save_file() of safetensors keeps the file from all other users
    is_safe = path.suffix == SAFETENSORS
    write_file(path, _safetensors().save(state) if is_safe else in_memory(lambda file: th.save(state, file)))
    return path


def read_state(path: str | pathlib.Path) -> dict[str, th.Tensor]:
    """
    :param path: A file that :func:`save_encoder` wrote
    :return: The encoder's parameters and buffers
    :raises ValueError: If the file is broken, or holds NaN or infinite values
    :raises ImportError: If ``.safetensors`` is to be loaded and not installed
    """
    path = pathlib.Path(path)
    load_file = _safetensors().load_file if path.suffix == SAFETENSORS else None
    with path.open("rb") as file, reading(path, "an encoder that save_encoder or pretrain wrote"):
        state = load_file(path) if load_file else th.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(value, th.Tensor) for value in state.values()):
            raise TypeError("it holds something else than tensors by their names")
    name = find_not_finite(state)
    if name is not None:
        raise ValueError(
            f"{path} holds NaN or infinite values, first in {name}: the training that it is from has diverged. Take an "
            "encoder of before"
        )
    return dict(state)


def check_fit(state: Mapping[str, th.Tensor], encoder: th.nn.Module, message: str) -> None:
    """
    :param state: Parameters and buffers that were read from a file
    :param encoder: What they are for
    :param message: The beginning of what is said if they do not fit
    :raises ValueError: If names, shapes or types are others
    """
    misfits = find_misfits(state, encoder.state_dict(), "in the file", "in the model")
    if misfits:
        raise ValueError(f"{message}: {'; '.join(misfits)}")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            'Files that end in .safetensors need a package: pip install "sb3-jepa[safetensors]"'
        ) from error
    return safetensors.torch
