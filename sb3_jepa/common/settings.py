"""Settings as JSON files hold them, to be read and compared."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from sb3_jepa.common.digests import id_of


def readable(value: Any) -> Any:
    """
    :param value: A setting
    :return: The setting as JSON holds it; what JSON cannot hold, such as a schedule, becomes its name
    """
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {id_of(value)}"
    if isinstance(value, (np.generic, np.ndarray)):
        return readable(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): readable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(one) for one in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    # Drop the address in memory: it is another one when a training is resumed
    return getattr(value, "__name__", re.sub(" at 0x[0-9a-f]+", "", str(value)))


def check_written_whole(name: str, value: Any) -> None:
    """
    Check a setting from which something is built again, so that its name alone would not do.

    :param name: Of the setting
    :param value: The setting
    :raises ValueError: If JSON cannot hold it
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key, one in value.items():
            check_written_whole(f"{name}[{key!r}]", one)
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            check_written_whole(f"{name}[{index}]", one)
    elif not isinstance(value, (bool, int, float, str, type(None), np.bool_, np.number, np.str_, np.ndarray)):
        raise ValueError(
            f"`{name}` must be a number, a text, a truth value, None, or a list or dictionary (by texts) of these, so "
            f"that the encoder can be built again from its file, got {value!r}"
        )


def differing_settings(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """
    :param theirs: Settings that were read from a file
    :param own: Others
    :return: Those that are not the same, by name: theirs and the own
    """
    # As they are when they are read from a file
    own = json.loads(json.dumps(readable(own)))
    names = {**theirs, **own}
    return {name: (theirs.get(name), own.get(name)) for name in names if theirs.get(name) != own.get(name)}
