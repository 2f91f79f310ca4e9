"""Each check takes what it should, as Python's own type, and else names the argument and what was given."""

import fractions
import pathlib
from functools import partial

import numpy as np
import pytest

from sb3_jepa.common import checks


def halved(progress_remaining):
    return progress_remaining / 2


def test_numpy_numbers_become_pythons_own():
    for value in (np.int64(16), np.uint8(16), 16):
        assert type(checks.whole_number("x", value)) is int
    for value in (np.float32(0.5), np.float64(0.5), fractions.Fraction(1, 2), 0.5):
        assert type(checks.number("x", value)) is float
        assert checks.number("x", value) == 0.5
    assert checks.flag("x", np.True_) is True
    assert checks.sizes("x", np.array([2, 3])) == (2, 3)
    assert checks.pair("x", np.array([0.25, 1.0])) == (0.25, 1.0)
    assert checks.schedule("x", np.float32(0.5)) == 0.5


def test_what_is_accepted_is_returned():
    assert checks.number("x", 0, least=0) == 0.0
    assert checks.number("x", 1, least=0, most=1) == 1.0
    assert checks.whole_number("x", 3, 2, 3) == 3
    assert checks.seed("x", 2**32 - 1) == 2**32 - 1
    assert checks.optional(checks.whole_number, "x", None) is None
    assert checks.optional(checks.whole_number, "x", np.int8(2)) == 2
    assert checks.texts("x", ("a", "b")) == ["a", "b"]
    assert checks.path("x", "a/b") == pathlib.Path("a/b")
    assert checks.text("x", "", may_be_empty=True) == ""
    assert checks.keyword_arguments("x", None) == {}
    assert checks.instance("x", 1, (int, str)) == 1
    assert checks.subclass("x", bool, int) is bool
    assert checks.function("x", len) is len
    assert checks.schedule("x", halved, least=0) is halved
    assert checks.scheduled("x", halved, 0.5) == 0.25
    given = dict(a=1)
    taken = checks.keyword_arguments("x", given)
    assert taken == given
    assert taken is not given


def optional(check, **limits):
    return lambda name, value: checks.optional(check, name, value, **limits)


NO_NUMBERS = [True, np.True_, "1", None, [1]]


@pytest.mark.parametrize(
    ("check", "accepted", "values"),
    [
        (checks.whole_number, "a positive whole number", [*NO_NUMBERS, 1.0, np.float64(1), {}, object(), 10**30]),
        (partial(checks.whole_number, least=2, most=3), "a whole number from 2 to 3", [4]),
        (partial(checks.whole_number, least=0), "a whole number of at least 0", [-1]),
        (checks.seed, "a whole number from 0 to 4294967295", [2**32]),
        (optional(checks.whole_number), "a positive whole number, or None", [0]),
        (checks.number, "a finite number", [*NO_NUMBERS, np.array(1.0), 10**400, np.nan, np.inf, -np.inf, 1j]),
        (partial(checks.number, least=0), "a finite number of at least 0", [-1]),
        (partial(checks.number, above=0), "a finite number above 0", [0]),
        (partial(checks.number, least=0, most=1), "a finite number from 0 to 1", [1.5]),
        (partial(checks.number, above=0, below=1), "a finite number above 0 and below 1", [1]),
        (partial(checks.number, least=0, below=1), "a finite number of at least 0 and below 1", [1]),
        (partial(checks.number, most=1), "a finite number of at most 1", [2]),
        (
            partial(checks.pair, above=0),
            r"a pair \(least, largest\) of finite numbers above 0",
            [(1,), (0.5, 0.2), "ab", 0.5, None, {0: 1, 1: 2}],
        ),
        (partial(checks.pair, least=0, most=1), "a pair .* of finite numbers from 0 to 1", [(0.5, np.nan)]),
        (checks.sizes, "a sequence of positive whole numbers", ["ab", "", [], [1, 0]]),
        (checks.flag, "True or False", [1, 0, None, "True", [], np.array([True])]),
        (partial(checks.choice, accepted=("a", "b")), '"a" or "b"', ["d", "", None, 0, [], {}, np.array(["a", "b"])]),
        (optional(checks.choice, accepted=("a", "b", "c")), '"a", "b" or "c", or None', ["d"]),
        (checks.text, "a text", ["", None]),
        (checks.texts, "a list of texts", ["ab", ["a", 1]]),
        (checks.path, "a path", ["", 1]),
        (checks.existing_file, "a file that exists", ["no such file", "/"]),
        (checks.keyword_arguments, "a dictionary of keyword arguments, or None", [[], "", {1: 2}, 0]),
        (partial(checks.instance, cls=(int, str)), "an instance of int or str", [1.5]),
        (partial(checks.subclass, cls=int), "a subclass of int", [str, 1, "int", None]),
        (checks.function, "a function", [1]),
        (partial(checks.schedule, least=0), "a finite number of at least 0, or a schedule", [-1]),
    ],
)
def test_what_is_not_accepted_is_refused(check, accepted, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^`x` must be {accepted}, got ") as error:
            check("x", value)
        assert str(error.value).endswith(f"got {value!r}") or len(repr(value)) > checks.MAX_SHOWN


def test_a_schedule_is_called_before_the_training():
    message = r"`x\(progress_remaining=1\.0\)` must be a finite number of at most 0.4, got 0.5"
    with pytest.raises(ValueError, match=message):
        checks.schedule("x", halved, most=0.4)


def test_long_values_are_shown_by_their_beginning():
    with pytest.raises(ValueError, match="aaa") as error:
        checks.flag("x", "a" * 10_000)
    assert len(str(error.value)) < 300
