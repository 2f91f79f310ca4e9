"""LiDAR seen from above."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_jepa import BevPrediction, LidarExtractor
from sb3_jepa.diagnostics.birds_eye import KINDS, birds_eye_figure, look_from_above

KWARGS = dict(range=(-8, 8, -8, 8, -2, 2), cell=1.0, z_bins=4, width=16, cell_dim=16, halvings=1)
NAMES = list(KINDS)


def make_sweeps(n=3):
    th.manual_seed(0)
    return th.cat((12 * th.rand(n, 60, 2) - 6, 3.9 * th.rand(n, 60, 1) - 1.95), dim=2)


@pytest.fixture
def encoder():
    th.manual_seed(1)
    return LidarExtractor(spaces.Box(-np.inf, np.inf, (60, 3)), **KWARGS).eval()


def test_what_is_predicted_is_told_apart(encoder):
    sweeps = make_sweeps()
    seen = look_from_above(encoder, sweeps, BevPrediction(encoder, 64))
    occupied = encoder.cell_encoder.occupied(encoder.bev(sweeps))[:, 0].numpy() > 0
    hidden = seen.hidden[:, ::2, ::2] > 0
    kinds = np.array(NAMES)[seen.kinds]
    assert (np.char.startswith(kinds, "seen") == ~hidden).all()
    says_occupied = np.isin(kinds, ["hidden, occupied, so predicted", "empty, predicted occupied"])
    truly = np.isin(kinds, ["seen, occupied", "hidden, occupied, so predicted", "occupied, predicted empty"])
    np.testing.assert_array_equal(truly, occupied)
    both, any_ = (hidden & says_occupied & occupied).sum(), (hidden & (says_occupied | occupied)).sum()
    assert seen.iou == pytest.approx(both / any_)


def test_heights_are_numbers_of_voxels(encoder):
    column = th.tensor([[[0.5, 0.5, z] for z in (-1.5, -0.5, 0.5)] + [[th.nan] * 3] * 57])
    heights = look_from_above(encoder, column).heights
    assert heights.sum() == heights[0, 8, 8] == 3


def test_the_cross_is_on_the_occupied_cell_nearest_to_the_middle(encoder):
    points = th.full((1, 60, 3), th.nan)
    points[0, :2] = th.tensor([[1.5, 0.5, 0.0], [-6.5, 6.5, 0.0]])
    seen = look_from_above(encoder, points)
    assert seen.chosen.tolist() == [[4, 4]]
    assert seen.similarity[0, 4, 4] == pytest.approx(1.0)
    # All but two cells are empty
    assert np.isfinite(seen.similarity).sum() == 2


def test_an_empty_sweep_is_drawn(encoder):
    birds_eye_figure(look_from_above(encoder, th.full((1, 60, 3), th.nan), BevPrediction(encoder, 64)))


@pytest.mark.parametrize(("kwargs", "n_columns"), [(None, 2), (dict(empty_token=False), 3), ({}, 4)])
def test_there_is_a_column_for_all_that_is_known(encoder, kwargs, n_columns):
    objective = None if kwargs is None else BevPrediction(encoder, 64, **kwargs)
    figure = birds_eye_figure(look_from_above(encoder, make_sweeps(2), objective))
    assert len(figure.axes) == 2 * n_columns


def test_grids_and_scans_are_drawn():
    grid = LidarExtractor(spaces.Box(0, 1, (2, 16, 12)), kind="grid", width=4, cell_dim=8)
    scan = LidarExtractor(spaces.Box(0, 5, (30,)), angles=(-3, 3), range=(-5, 5, -5, 5, -1, 1), width=4, cell_dim=8)
    for encoder, observations in ((grid, (th.rand(2, 2, 16, 12) < 0.2).float()), (scan, 6 * th.rand(2, 30))):
        seen = look_from_above(encoder.eval(), observations, BevPrediction(encoder, 64))
        assert birds_eye_figure(seen).axes


def test_the_masks_of_a_training_are_not_touched(encoder):
    objective, sweeps = BevPrediction(encoder, 64), make_sweeps()
    th.manual_seed(5)
    expected = th.rand(3)
    th.manual_seed(5)
    look_from_above(encoder, sweeps, objective)
    assert th.equal(th.rand(3), expected)
