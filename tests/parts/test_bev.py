"""The bird's-eye view, and convolutions whose empty cells stay empty."""

import math

import numpy as np
import pytest
import torch as th

from sb3_jepa.parts.bev import BevGrid, BevMap, scan_points
from sb3_jepa.parts.masked_convolutions import BevEncoder, MaskedNorm


def test_a_voxel_holds_the_mean_of_its_points():
    grid = BevGrid((0, 4, 0, 2, 0, 2), cell=1.0, n_further=1, z_bins=2)
    assert grid.shape == (4, 2)
    points = th.tensor([[[2.25, 1.5, 0.5, 10.0], [2.75, 1.0, 0.0, 20.0], [2.5, 1.5, 1.5, 7.0]]])
    bev = grid(points)
    assert bev.occupied.nonzero().tolist() == [[0, 0, 2, 1]]
    lower, upper = bev.cells[0, :, 2, 1].chunk(2)
    # Occupied, the mean place in the voxel from -1 to 1, the mean of the further number
    assert lower.tolist() == pytest.approx([1, 0, -0.5, -0.5, 15])
    assert upper.tolist() == pytest.approx([1, 0, 0, 0, 7])
    assert bev.cells.abs().sum() == pytest.approx(float(lower.abs().sum() + upper.abs().sum()))


def test_points_that_are_no_points_do_not_count():
    grid = BevGrid((-2, 2, -2, 2, -1, 1), cell=1.0)
    inside = th.tensor([0.5, 0.5, 0.0])
    no_points = th.tensor(
        [[math.nan] * 3, [math.inf, 0, 0], [0, 0, math.nan], [5.0, 0, 0], [0, -2.1, 0], [0, 0, 1.0], [2.0, 0, 0]]
    )
    alone = grid(inside[None, None])
    among = grid(th.cat((no_points, inside[None]))[None])
    assert th.equal(alone.cells, among.cells)
    assert grid(no_points[None]).occupied.sum() == 0
    assert grid(no_points[None]).cells.abs().sum() == 0
    assert grid(th.zeros(2, 0, 3)).cells.shape == (2, grid.channels, 4, 4)


def test_a_batch_is_as_its_sweeps_alone():
    grid = BevGrid((-2, 2, -2, 2, -1, 1), cell=0.5)
    points = th.randn(3, 50, 3)
    together = grid(points)
    for sample in range(3):
        assert th.allclose(together.cells[sample], grid(points[sample : sample + 1]).cells[0], atol=1e-6)


def test_polar_cells_are_those_of_distance_and_angle():
    grid = BevGrid((0, 4, -math.pi, math.pi, -1, 1), cell=(1.0, math.pi / 2), z_bins=1, polar=True)
    assert grid.shape == (4, 4)
    # To the left, at a distance of 2.5
    assert grid(th.tensor([[[-0.1, 2.5, 0.0]]])).occupied.nonzero().tolist() == [[0, 0, 2, 3]]


def test_rows_and_columns_are_filled_up_to_a_multiple():
    assert BevGrid((0, 5, 0, 3, 0, 1), cell=1.0, multiple=4).shape == (8, 4)
    # 0.3 / 0.1 is not exactly 3
    assert BevGrid((0, 0.3, 0, 0.3, 0, 1), cell=0.1).shape == (3, 3)


def test_a_beam_without_return_gives_no_point():
    distances = th.tensor([[1.0, 5.0, 0.0, math.nan, 2.0]])
    angles = th.tensor([0.0, 0.0, 0.0, 0.0, math.pi / 2])
    points = scan_points(distances, angles, no_return=5.0)
    assert points.isnan().all(dim=2).tolist() == [[False, True, True, True, False]]
    assert points[0, 0].tolist() == [1, 0, 0]
    assert points[0, 4].tolist() == pytest.approx([0, 2, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(bounds=(0, 1, 0, 1)), "`range` must be"),
        (dict(bounds=(1, 0, 0, 1, 0, 1)), "`range` must be"),
        (dict(bounds=(0, math.nan, 0, 1, 0, 1)), "`range` must be"),
        (dict(bounds=(0, 1, 0, 1, 0, 1), cell=2.0), "`cell` must be at most as large as the range along x, 1, got 2"),
        (dict(cell=1e-4), "`cell` must leave at most"),
        (dict(cell=0), "`cell` must be"),
        (dict(cell=(1.0, 1.0, 1.0)), "`cell` must be"),
    ],
)
def test_bounds_that_hold_no_cells_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        BevGrid(**kwargs)


def random_map(batch=2, rows=16, columns=8, channels=3, share=0.2):
    occupied = (th.rand(batch, 1, rows, columns) < share).float()
    return BevMap(th.randn(batch, channels, rows, columns) * occupied, occupied)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_empty_cells_stay_empty(norm):
    th.manual_seed(0)
    encoder = BevEncoder(3, (16, 8), cell_dim=8, width=4, norm=norm)
    bev = random_map()
    embedded = encoder(bev)
    assert embedded.cells.shape == (2, 8, 4, 2)
    assert th.equal(embedded.occupied, encoder.occupied(bev))
    assert th.equal(embedded.cells.abs().sum(dim=1, keepdim=True) > 0, embedded.occupied > 0)
    nothing = encoder(BevMap(th.zeros(1, 3, 16, 8), th.zeros(1, 1, 16, 8)))
    assert nothing.cells.abs().sum() == 0
    nothing.cells.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_norm_does_not_see_empty_cells(norm):
    th.manual_seed(0)
    layer = MaskedNorm(8, norm)
    bev = random_map(channels=8)
    with_empty = layer(bev.cells, bev.occupied)
    noisy = th.where(bev.occupied > 0, bev.cells, 100.0)
    without = MaskedNorm(8, norm)(noisy, bev.occupied)
    assert th.allclose(with_empty * bev.occupied, without * bev.occupied, atol=1e-5)
    if norm == "batch":
        seen = bev.cells.movedim(1, -1)[bev.occupied[:, 0] > 0]
        expected = (seen - seen.mean(dim=0)) / (seen.var(dim=0, correction=0) + 1e-3).sqrt()
        assert th.allclose(with_empty.movedim(1, -1)[bev.occupied[:, 0] > 0], expected, atol=1e-5)
        assert not th.allclose(layer.running_mean, th.zeros(8))
        layer.eval()
        assert not th.allclose(layer(bev.cells, bev.occupied), with_empty)


def test_hidden_cells_are_as_if_nothing_were_there():
    bev = random_map(rows=8, columns=8)
    visible = th.zeros(2, 1, 4, 4)
    visible[:, :, 0, 0] = 1.0
    shown = bev.shown(visible)
    assert th.equal(shown.cells[..., :2, :2], bev.cells[..., :2, :2])
    assert shown.cells[..., 2:, :].abs().sum() == 0
    assert shown.occupied[..., :, 2:].sum() == 0


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="`map_shape` must be rows and columns, multiples of 4"):
        BevEncoder(3, (16, 6))
    with pytest.raises(ValueError, match="`width` must be a multiple of 4"):
        BevEncoder(3, (16, 8), width=6)


def test_a_sweep_takes_milliseconds_and_not_a_loop_over_points():
    # 100,000 points of 8 sweeps: a loop over them would take minutes
    points = th.from_numpy(np.random.default_rng(0).normal(size=(8, 100_000, 3)).astype(np.float32))
    assert BevGrid((-2, 2, -2, 2, -2, 2), cell=0.25)(points).occupied.mean() > 0.9
