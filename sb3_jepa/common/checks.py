"""
Checks of arguments. A wrong one is refused by a ``ValueError`` with its name, what is accepted, and what was given.

Each check takes ``name``, the argument's; ``value``, what was given; and ``also``, what else is accepted and the caller
has looked for, such as ``"None"``. It returns the value as Python's own type, so that NumPy's numbers may be given as
well as Python's. A bool is no number, and a text neither.
"""

import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from math import isfinite
from numbers import Integral, Real
from typing import Any, NoReturn, TypeVar

import numpy as np

Value = TypeVar("Value")
# What a tensor can count, and what a seed of NumPy can be
LARGEST, LARGEST_SEED = 2**63 - 1, 2**32 - 1
# Longer ones are shown by their beginning
MAX_SHOWN = 200


def refuse(name: str, accepted: str, value: Any) -> NoReturn:
    """Raise the ``ValueError`` of an argument that must be what ``accepted`` says."""
    shown = repr(value)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
    raise ValueError(f"`{name}` must be {accepted}, got {shown}")


def whole_number(name: str, value: Any, least: int = 1, most: int = LARGEST, also: str = "") -> int:
    """A whole number from ``least`` to ``most``."""
    if not _is_whole(value, least, most):
        refuse(name, _either(f"a {_whole_numbers(least, most)}", also), value)
    return int(value)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _whole_numbers(least: int, most: int) -> str:
    if most < LARGEST:
        return f"whole number from {least} to {most}"
    return "positive whole number" if least == 1 else f"whole number of at least {least}"


def seed(name: str, value: Any, also: str = "") -> int:
    """A seed that NumPy takes."""
    return whole_number(name, value, 0, LARGEST_SEED, also)


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    also: str = "",
) -> float:
    """A finite number, of at least ``least`` and at most ``most``, larger than ``above``, smaller than ``below``."""
    if not _is_number(value, least, most, above, below):
        refuse(name, _either(f"a finite number{_limits(least, most, above, below)}", also), value)
    return float(value)


def _is_number(
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        given = float(value)
    except OverflowError:
        return False
    return isfinite(given) and not (
        (least is not None and given < least)
        or (most is not None and given > most)
        or (above is not None and given <= above)
        or (below is not None and given >= below)
    )


def _limits(least: float | None, most: float | None, above: float | None, below: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    given = {"of at least": least, "above": above, "of at most": most, "below": below}
    limits = [f"{words} {limit:g}" for words, limit in given.items() if limit is not None]
    return f" {' and '.join(limits)}" if limits else ""


def _either(accepted: str, also: str) -> str:
    return f"{accepted}, or {also}" if also else accepted


def pair(name: str, value: Any, also: str = "", **limits: Any) -> tuple[float, float]:
    """Two numbers in ascending order, the least and the largest, each within the ``limits`` of :func:`number`."""
    is_pair = isinstance(value, (tuple, list, np.ndarray)) and len(value) == 2
    if not is_pair or not all(_is_number(one, **limits) for one in value) or value[0] > value[1]:
        words = _limits(*map(limits.get, ("least", "most", "above", "below")))
        refuse(name, _either(f"a pair (least, largest) of finite numbers{words}", also), value)
    return float(value[0]), float(value[1])


def sizes(name: str, value: Any, least: int = 1, also: str = "") -> tuple[int, ...]:
    """A sequence of one or more whole numbers of at least ``least``."""
    is_sequence = isinstance(value, (Sequence, np.ndarray)) and len(value) > 0
    if not is_sequence or not all(_is_whole(size, least, LARGEST) for size in value):
        refuse(
            name, _either(f"a sequence of {_whole_numbers(least, LARGEST).replace('number', 'numbers')}", also), value
        )
    return tuple(int(size) for size in value)


def flag(name: str, value: Any, also: str = "") -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        refuse(name, _either("True or False", also), value)
    return bool(value)


def choice(name: str, value: Any, accepted: Collection[str], also: str = "") -> str:
    """One of the texts that are ``accepted``."""
    # What is no text may have no hash, or compare element by element
    if not (isinstance(value, str) and value in accepted):
        *others, last = (f'"{one}"' for one in accepted)
        refuse(name, _either(f"{', '.join(others)} or {last}" if others else last, also), value)
    return str(value)


def text(name: str, value: Any, also: str = "", may_be_empty: bool = False) -> str:
    """A text, which is not empty unless ``may_be_empty``."""
    if not isinstance(value, str) or not (value or may_be_empty):
        refuse(name, _either("a text", also), value)
    return str(value)


def texts(name: str, value: Any, also: str = "") -> list[str]:
    """A sequence of texts, and not one text alone."""
    is_sequence = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
    if not is_sequence or not all(isinstance(one, str) for one in value):
        refuse(name, _either("a list of texts", also), value)
    return [str(one) for one in value]


def path(name: str, value: Any, also: str = "") -> pathlib.Path:
    """A path that is not empty."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        refuse(name, _either("a path", also), value)
    return pathlib.Path(value)


def existing_file(name: str, value: Any) -> pathlib.Path:
    """The path of a file that exists."""
    given = path(name, value)
    if not given.is_file():
        refuse(name, "a file that exists", value)
    return given


def keyword_arguments(name: str, value: Any) -> dict[str, Any]:
    """A copy of a dictionary with texts for keys; an empty one for None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        refuse(name, "a dictionary of keyword arguments, or None", value)
    return dict(value)


def instance(name: str, value: Value, cls: Any, also: str = "") -> Value:
    """An instance of ``cls``, which is a class or a tuple of such."""
    if not isinstance(value, cls):
        classes = cls if isinstance(cls, tuple) else (cls,)
        refuse(name, _either(f"an instance of {' or '.join(one.__name__ for one in classes)}", also), value)
    return value


def subclass(name: str, value: Value, cls: Any, also: str = "") -> Value:
    """The class ``cls``, or one that is derived from it."""
    if not isinstance(value, type) or not issubclass(value, cls):
        refuse(name, _either(f"a subclass of {cls.__name__}", also), value)
    return value


def function(name: str, value: Any, also: str = "") -> Callable[..., Any]:
    """Anything that can be called."""
    if not callable(value):
        refuse(name, _either("a function", also), value)
    return value


def scheduled(name: str, value: Any, progress_remaining: float, also: str = "a schedule", **limits: Any) -> float:
    """The number at ``progress_remaining``, of a number or a function of the remaining progress (from 1 to 0)."""
    if callable(value):
        return number(f"{name}(progress_remaining={progress_remaining})", value(progress_remaining), **limits)
    return number(name, value, also=also, **limits)


def schedule(name: str, value: Any, also: str = "a schedule", **limits: Any) -> Any:
    """
    A number, or a function of the remaining progress (from 1 to 0), which is returned as it is. It is called here, so
    that one that goes wrong does so before the training and not in the middle.
    """
    numbers = [scheduled(name, value, progress, also, **limits) for progress in (0.0, 0.5, 1.0)]
    return value if callable(value) else numbers[0]


def optional(check: Callable[..., Value], name: str, value: Any, **limits: Any) -> Value | None:
    """None, or what the ``check`` accepts with these ``limits``."""
    return None if value is None else check(name, value, also="None", **limits)
