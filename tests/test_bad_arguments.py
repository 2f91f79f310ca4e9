"""
Whatever is wrong with an argument is told at once, by its name: every public class and function is called with the same
wrong values for each of its arguments.
"""

import copy
import importlib
import inspect
import pathlib
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sb3_jepa
from sb3_jepa import data, diagnostics, envs, imitation, objectives, parts, report, zero_shot
from tests.arguments.cases import VALUES, Call
from tests.arguments.table import CALLS, UNTRIED

# The package: sb3_jepa.pretrain is its function
pretrain = importlib.import_module("sb3_jepa.pretrain")


def public(module: types.ModuleType) -> Iterator[Callable[..., Any]]:
    """The classes and functions that a package exports."""
    return (value for name in module.__all__ if callable(value := getattr(module, name)))


PUBLIC = dict.fromkeys(
    value
    for module in (sb3_jepa, parts, objectives, diagnostics, data, pretrain, envs, report, zero_shot, imitation)
    for value in public(module)
)


def test_every_public_argument_is_in_the_table():
    tried = {call.target: call for call in CALLS}
    assert len(tried) == len(CALLS), "twice in the table"
    assert not set(tried) & set(UNTRIED)
    for target in PUBLIC:
        parameters = inspect.signature(target).parameters
        if not parameters or target in UNTRIED:
            continue
        assert target in tried, f"{target.__qualname__} is neither in the table nor among the exceptions"
        call = tried[target]
        assert not set(call.legal) & set(call.untried), target
        assert set(parameters) <= {*call.legal, *call.untried}, f"of {target.__qualname__}, arguments are missing"
        takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        assert takes_more or {*call.legal, *call.untried} <= set(parameters), f"{target.__qualname__} has no such ones"
    assert {*tried, *UNTRIED} <= set(PUBLIC), "what is in the table is not public"


def fault(call: Call, name: str, label: str, folder: pathlib.Path) -> str | None:
    """What is wrong with the answer to a value; None if nothing is."""
    is_legal = label in call.legal[name]
    try:
        call(**{name: copy.copy(VALUES[label])})
    except ValueError as error:
        if is_legal:
            return f"refused: {error}"
        if any(folder.iterdir()):
            return f"late: {error}"
        return None if re.search(rf"\b{name}", str(error), re.IGNORECASE) else f"unclear: {error}"
    except Exception as error:
        return f"unclear: {type(error).__name__}: {error}"
    return None if is_legal else "silent"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.target.__qualname__)
def test_a_bad_argument_is_named(call, tmp_path, monkeypatch):
    faults = {}
    for name in call.legal:
        for label in VALUES.keys() - call.legal[name] if call.is_costly else VALUES:
            folder = tmp_path / f"{name} {label}".replace("*", "")
            folder.mkdir()
            monkeypatch.chdir(folder)
            answer = fault(call, name, label, folder)
            if answer is not None:
                faults[f"{name}={label}"] = answer[:150]
    assert not faults, "\n".join(f"{given}: {answer}" for given, answer in faults.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "call", [call for call in CALLS if not call.is_costly], ids=lambda call: call.target.__qualname__
)
def test_what_the_table_calls_good_works(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call()
