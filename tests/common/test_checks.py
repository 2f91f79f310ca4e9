"""Each check takes what it should, as Python's own type, and else names the argument and what was given."""

import fractions
import pathlib

import numpy as np
import pytest

from sb3_jepa.common import checks


def test_numpy_numbers_become_pythons_own():
    for value in (np.int64(16), np.uint8(16), 16):
        assert type(checks.whole_number("x", value)) is int
    for value in (np.float32(0.5), np.float64(0.5), fractions.Fraction(1, 2), 0.5):
        assert type(checks.number("x", value)) is float
        assert checks.number("x", value) == 0.5
    assert checks.flag("x", np.True_) is True
    assert checks.sizes("x", np.array([2, 3])) == (2, 3)
    assert checks.pair("x", np.array([0.25, 1.0])) == (0.25, 1.0)


@pytest.mark.parametrize("value", [True, np.True_, "1", 1.0, np.float64(1), None, [1], {}, object(), 10**30])
def test_no_whole_number(value):
    with pytest.raises(ValueError, match="`x` must be a positive whole number, got"):
        checks.whole_number("x", value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, [1], np.array(1.0), 10**400, np.nan, np.inf, -np.inf, 1j])
def test_no_finite_number(value):
    with pytest.raises(ValueError, match="`x` must be a finite number, got"):
        checks.number("x", value)


def test_limits_of_numbers():
    assert checks.number("x", 0, least=0) == 0.0
    assert checks.number("x", 1, least=0, most=1) == 1.0
    for limits, value, words in (
        (dict(least=0), -1, "of at least 0"),
        (dict(above=0), 0, "above 0"),
        (dict(least=0, most=1), 1.5, "from 0 to 1"),
        (dict(above=0, below=1), 1, "above 0 and below 1"),
        (dict(least=0, below=1), 1, "of at least 0 and below 1"),
        (dict(most=1), 2, "of at most 1"),
    ):
        with pytest.raises(ValueError, match=f"`x` must be a finite number {words}, got {value}"):
            checks.number("x", value, **limits)
    assert checks.whole_number("x", 3, 2, 3) == 3
    with pytest.raises(ValueError, match="`x` must be a whole number from 2 to 3, got 4"):
        checks.whole_number("x", 4, 2, 3)
    with pytest.raises(ValueError, match="`x` must be a whole number of at least 0, got -1"):
        checks.whole_number("x", -1, 0)
    assert checks.seed("x", 2**32 - 1) == 2**32 - 1
    with pytest.raises(ValueError, match="`x` must be a whole number from 0 to 4294967295, got 4294967296"):
        checks.seed("x", 2**32)


def test_what_else_is_accepted_is_told():
    assert checks.optional(checks.whole_number, "x", None) is None
    assert checks.optional(checks.whole_number, "x", np.int8(2)) == 2
    with pytest.raises(ValueError, match="`x` must be a positive whole number, or None, got 0"):
        checks.optional(checks.whole_number, "x", 0)
    with pytest.raises(ValueError, match='`x` must be "a", "b" or "c", or None, got'):
        checks.optional(checks.choice, "x", "d", accepted=("a", "b", "c"))


@pytest.mark.parametrize("value", [(1,), (0.5, 0.2), "ab", 0.5, None, {0: 1, 1: 2}])
def test_no_pair(value):
    with pytest.raises(ValueError, match=r"`x` must be a pair \(least, largest\) of finite numbers above 0, got"):
        checks.pair("x", value, above=0)


def test_a_number_of_a_pair_is_out_of_range():
    with pytest.raises(ValueError, match=r"`x` must be a pair .* of finite numbers from 0 to 1, got \(0\.5, nan\)"):
        checks.pair("x", (0.5, np.nan), least=0, most=1)


@pytest.mark.parametrize("value", [1, 0, None, "True", [], np.array([True])])
def test_no_flag(value):
    with pytest.raises(ValueError, match="`x` must be True or False, got"):
        checks.flag("x", value)


@pytest.mark.parametrize("value", ["d", "", None, 0, [], {}, np.array(["a", "b"])])
def test_no_choice(value):
    with pytest.raises(ValueError, match='`x` must be "a" or "b", got'):
        checks.choice("x", value, ("a", "b"))


def test_texts_and_paths():
    assert checks.texts("x", ("a", "b")) == ["a", "b"]
    assert checks.path("x", "a/b") == pathlib.Path("a/b")
    assert checks.text("x", "", may_be_empty=True) == ""
    for check, value in (
        (checks.texts, "ab"),
        (checks.texts, ["a", 1]),
        (checks.path, ""),
        (checks.path, 1),
        (checks.text, ""),
        (checks.existing_file, "no such file"),
        (checks.existing_file, "/"),
        (checks.text, None),
        (checks.sizes, "ab"),
        (checks.sizes, ""),
        (checks.sizes, []),
        (checks.sizes, [1, 0]),
    ):
        with pytest.raises(ValueError, match="`x"):
            check("x", value)


def test_keyword_arguments_are_a_copy():
    given = dict(a=1)
    taken = checks.keyword_arguments("x", given)
    assert taken == given
    assert taken is not given
    assert checks.keyword_arguments("x", None) == {}
    for value in ([], "", {1: 2}, 0):
        with pytest.raises(ValueError, match="`x` must be a dictionary of keyword arguments, or None, got"):
            checks.keyword_arguments("x", value)


def test_classes_and_functions():
    assert checks.instance("x", 1, (int, str)) == 1
    assert checks.subclass("x", bool, int) is bool
    assert checks.function("x", len) is len
    with pytest.raises(ValueError, match=r"`x` must be an instance of int or str, got 1\.5"):
        checks.instance("x", 1.5, (int, str))
    for value in (str, 1, "int", None):
        with pytest.raises(ValueError, match="`x` must be a subclass of int, got"):
            checks.subclass("x", value, int)
    with pytest.raises(ValueError, match="`x` must be a function, got 1"):
        checks.function("x", 1)


def test_a_schedule_is_looked_at_before_the_training():
    def halved(progress_remaining):
        return progress_remaining / 2

    assert checks.schedule("x", halved, least=0) is halved
    assert checks.schedule("x", np.float32(0.5)) == 0.5
    assert checks.scheduled("x", halved, 0.5) == 0.25
    with pytest.raises(
        ValueError, match=r"`x\(progress_remaining=1\.0\)` must be a finite number of at most 0.4, got 0.5"
    ):
        checks.schedule("x", halved, most=0.4)
    with pytest.raises(ValueError, match="`x` must be a finite number of at least 0, or a schedule, got -1"):
        checks.schedule("x", -1, least=0)


def test_long_values_are_shown_by_their_beginning():
    with pytest.raises(ValueError, match="aaa") as error:
        checks.flag("x", "a" * 10_000)
    assert len(str(error.value)) < 300
