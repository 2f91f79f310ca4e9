import numpy as np
import pytest

from sb3_jepa.diagnostics import area_under_curve, probe_r2, ridge_predictions

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(400, 5)) * [1.0, 10.0, 0.1, 1.0, 1.0] + [0.0, 100.0, 0.0, -3.0, 0.0]
IS_HELD_OUT = np.arange(400) >= 300


def test_a_linear_relation_is_read_exactly():
    targets = INPUTS @ RNG.normal(size=(5, 2)) + 7.0
    r2 = probe_r2(INPUTS, targets, IS_HELD_OUT, penalty=0.0)
    assert r2.shape == (2,)
    assert r2.tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    # The penalty costs little, whatever the units of the inputs
    assert (probe_r2(INPUTS, targets, IS_HELD_OUT) > 0.999).all()


def test_noise_cannot_be_read():
    targets = RNG.normal(size=(400, 20))
    r2 = probe_r2(INPUTS, targets, IS_HELD_OUT)
    # Five useless inputs cost a little
    assert -0.1 < r2.mean() < 0.01
    assert (r2 < 0.1).all()


def test_r2_is_one_minus_error_by_variance_of_the_held_out_rows():
    targets = np.stack((INPUTS[:, 0] + RNG.normal(size=400), INPUTS[:, 3] ** 2), axis=1)
    predictions = ridge_predictions(INPUTS, targets, IS_HELD_OUT)
    held_out = targets[IS_HELD_OUT]
    expected = 1.0 - ((held_out - predictions) ** 2).mean(axis=0) / held_out.var(axis=0)
    assert np.allclose(probe_r2(INPUTS, targets, IS_HELD_OUT), expected)
    # Half of the first one is noise
    assert 0.3 < expected[0] < 0.7


def test_ridge_by_hand():
    # One input with the values -1 and 1, fitted to 1 and 5: slope 2 without a penalty, 2 / (1 + 1) with one of 1
    inputs, targets = np.array([[-1.0], [1.0], [3.0]]), np.array([[1.0], [5.0], [0.0]])
    is_held_out = np.array([False, False, True])
    assert ridge_predictions(inputs, targets, is_held_out, penalty=0.0).tolist() == [pytest.approx([9.0])]
    assert ridge_predictions(inputs, targets, is_held_out, penalty=1.0).tolist() == [pytest.approx([6.0])]


def test_held_out_rows_are_not_fitted():
    targets = INPUTS[:, :1].copy()
    targets[IS_HELD_OUT] *= -1.0
    assert probe_r2(INPUTS, targets, IS_HELD_OUT)[0] < -2.0


def test_what_does_not_vary_is_not_a_number():
    # A third is no binary fraction: its mean is rounded
    targets = np.stack((np.full(400, 1 / 3), np.zeros(400), INPUTS[:, 0]), axis=1)
    r2 = probe_r2(INPUTS, targets, IS_HELD_OUT)
    assert np.isnan(r2[:2]).all()
    assert r2[2] > 0.999
    # Varies while it is fitted, but not where it is measured
    assert np.isnan(probe_r2(INPUTS, np.where(IS_HELD_OUT, 1.0, INPUTS[:, 0])[:, None], IS_HELD_OUT)).all()


def test_an_input_that_does_not_vary_does_no_harm():
    inputs = np.hstack((INPUTS, np.full((400, 1), 2.0)))
    r2 = probe_r2(inputs, INPUTS[:, :1], IS_HELD_OUT)
    assert r2.tolist() == pytest.approx([1.0], abs=1e-3)


@pytest.mark.parametrize(
    ("inputs", "targets", "is_held_out"),
    [
        (INPUTS[:-1], INPUTS, IS_HELD_OUT),
        (INPUTS, INPUTS[:-1], IS_HELD_OUT),
        (INPUTS, INPUTS, IS_HELD_OUT[:-1]),
        (INPUTS[:, 0], INPUTS, IS_HELD_OUT),
        (INPUTS, INPUTS[:, 0], IS_HELD_OUT),
    ],
)
def test_arguments_that_do_not_fit_are_refused(inputs, targets, is_held_out):
    with pytest.raises(ValueError, match="of as many rows as `is_held_out`"):
        probe_r2(inputs, targets, is_held_out)


@pytest.mark.parametrize("value", [True, False])
def test_rows_are_needed_on_both_sides(value):
    with pytest.raises(ValueError, match="rows on both sides"):
        probe_r2(INPUTS, INPUTS, np.full(400, value))


@pytest.mark.parametrize(
    ("low", "high", "area"),
    [
        ([1, 2, 3], [4, 5], 1.0),
        ([4, 5], [1, 2, 3], 0.0),
        # So many of six pairs are in order
        ([1, 3], [2, 4, 0], 3 / 6),
        ([1, 3], [2, 4, 5], 5 / 6),
        # Equal scores count half: 1 + 0.5 of 2
        ([1, 2], [2], 0.75),
        ([7, 7], [7, 7, 7], 0.5),
    ],
)
def test_area_under_the_curve_by_hand(low, high, area):
    assert area_under_curve(np.array(low), np.array(high)) == pytest.approx(area)


def test_area_under_the_curve_counts_pairs():
    low, high = RNG.integers(0, 10, size=30), RNG.integers(2, 12, size=20)
    pairs = [float(h > one) + 0.5 * float(h == one) for h in high for one in low]
    assert area_under_curve(low, high) == pytest.approx(np.mean(pairs))
