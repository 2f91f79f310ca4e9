"""The bird's-eye view: what a LiDAR's points say of the cells of the ground."""

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks

# A cell of a map that a network could not hold
MAX_CELLS = 1024 * 1024


class BevMap(NamedTuple):
    """
    A map of cells.

    :param cells: What is known of each cell, ``(batch, channels, rows, columns)``; 0 where it is empty
    :param occupied: 1 where a cell holds something, ``(batch, 1, rows, columns)``
    """

    cells: th.Tensor
    occupied: th.Tensor

    def shown(self, visible: th.Tensor) -> "BevMap":
        """
        :param visible: 1 where a cell is seen, ``(batch, 1, rows, columns)``, or of larger cells, each of which holds
            as many on both sides
        :return: The map with the other cells empty
        """
        factor = self.cells.shape[2] // visible.shape[2]
        mask = visible if factor == 1 else visible.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return BevMap(self.cells * mask, self.occupied * mask)


class BevGrid(nn.Module):
    """
    Points in cells. A cell is a column of ``z_bins`` voxels; of each, the mean of its points is known (where in the
    voxel they are, from -1 to 1, and their further numbers, such as intensity), and whether there is one. Points that
    are NaN, infinite or out of range do not count.

    Points are summed by one scatter for a whole batch. No library for sparse tensors is needed.

    :param bounds: ``(x_min, x_max, y_min, y_max, z_min, z_max)``, in the unit of the points. With ``polar``, x is the
        distance and y the angle in radians, from -pi to pi.
    :param cell: Side of a cell, or its sides along x and y
    :param n_further: Numbers of a point beside x, y and z
    :param z_bins: Number of voxels above each other
    :param polar: Whether cells are those of distance and angle
    :param multiple: What rows and columns are to be multiples of: cells are added beyond the upper bounds
    :raises ValueError: If the bounds hold no cell, a cell is larger than they are, or there are too many
    """

    def __init__(
        self,
        bounds: Sequence[float] = (-20.0, 20.0, -20.0, 20.0, -2.0, 2.0),
        cell: float | Sequence[float] = 0.5,
        n_further: int = 0,
        z_bins: int = 2,
        polar: bool = False,
        multiple: int = 1,
    ):
        super().__init__()
        limits = [float(one) for one in _six_numbers(bounds)]
        sides = _sides(cell)
        self.n_further = checks.whole_number("n_further", n_further, 0)
        self.z_bins = checks.whole_number("z_bins", z_bins)
        self.polar, multiple = checks.flag("polar", polar), checks.whole_number("multiple", multiple)
        self.bounds, self.cell = tuple(limits), sides
        counts = []
        for axis, side in zip("xy", sides, strict=True):
            low, high = limits[:2] if axis == "x" else limits[2:4]
            if side > high - low:
                raise ValueError(
                    f"`cell` must be at most as large as the range along {axis}, {high - low:g}, got {side:g}"
                )
            # A range that is a multiple of the cell but for rounding
            n = -int(-((high - low) / side - 1e-6) // 1)
            counts.append(-(-n // multiple) * multiple)
        if counts[0] * counts[1] > MAX_CELLS:
            raise ValueError(
                f"`cell` must leave at most {MAX_CELLS:,} cells, got {counts[0]} x {counts[1]}: enlarge it"
            )
        self.shape = (counts[0], counts[1])
        self.register_buffer("low", th.tensor(limits[::2]), persistent=False)
        steps = [*sides, (limits[5] - limits[4]) / self.z_bins]
        self.register_buffer("step", th.tensor(steps), persistent=False)
        self.register_buffer("counts", th.tensor([*counts, self.z_bins]), persistent=False)

    low: th.Tensor
    step: th.Tensor
    counts: th.Tensor

    @property
    def channels(self) -> int:
        """How much is known of each cell."""
        return self.z_bins * (4 + self.n_further)

    def forward(self, points: th.Tensor) -> BevMap:
        """
        :param points: ``(batch, points, 3 + n_further)``: x, y, z and further numbers
        :return: The map
        """
        batch = points.shape[0]
        place, further = points[..., :3], points[..., 3:]
        if self.polar:
            x, y, z = place.unbind(dim=2)
            place = th.stack((th.hypot(x, y), th.atan2(y, x), z), dim=2)
        scaled = (place - self.low) / self.step
        index = scaled.floor()
        # NaN is not inside
        inside = ((index >= 0) & (index < self.counts)).all(dim=2) & points.isfinite().all(dim=2)
        rows, columns = self.shape
        column = index.nan_to_num(0.0, 0.0, 0.0).long()
        flat = (column[..., 2] * rows + column[..., 0]) * columns + column[..., 1]
        n_voxels = self.z_bins * rows * columns
        flat = flat + n_voxels * th.arange(batch, device=points.device)[:, None]
        # What does not count goes to a place behind all others
        flat = th.where(inside, flat, batch * n_voxels)
        within = 2.0 * (scaled - index) - 1.0
        numbers = th.cat((th.ones_like(within[..., :1]), within, further), dim=2)
        numbers = th.where(inside[..., None], numbers, 0.0).flatten(0, 1)
        sums = numbers.new_zeros(batch * n_voxels + 1, numbers.shape[1]).index_add_(0, flat.flatten(), numbers)
        sums = sums[:-1].view(batch, self.z_bins, rows, columns, -1)
        present = (sums[..., :1] > 0).to(sums.dtype)
        means = th.cat((present, sums[..., 1:] / sums[..., :1].clamp(min=1.0)), dim=-1)
        cells = means.movedim(4, 2).flatten(1, 2)
        return BevMap(cells, present.amax(dim=1).movedim(3, 1))


def scan_points(distances: th.Tensor, angles: th.Tensor, no_return: float) -> th.Tensor:
    """
    The points that the beams of a laser scanner hit.

    :param distances: Of each beam, ``(batch, beams)``
    :param angles: Of each beam, in radians, ``(beams,)``
    :param no_return: A beam of this length, or a longer one, has hit nothing, and gives no point; nor has one that is
        not positive or is NaN
    :return: ``(batch, beams, 3)``, NaN where there is none
    """
    hit = (distances > 0) & (distances < no_return)
    points = th.stack((distances * angles.cos(), distances * angles.sin(), th.zeros_like(distances)), dim=2)
    return th.where(hit[..., None], points, th.nan)


def grow(occupied: th.Tensor, factor: int) -> th.Tensor:
    """
    :param occupied: ``(batch, 1, rows, columns)``
    :param factor: Cells of the map on a side of a larger cell
    :return: 1 where a larger cell holds something
    """
    return occupied if factor == 1 else F.max_pool2d(occupied, factor)


def _six_numbers(bounds: Sequence[float]) -> Sequence[float]:
    try:
        numbers = [checks.number("range", one) for one in bounds]
    except TypeError:
        numbers = []
    if len(numbers) != 6 or any(low >= high for low, high in zip(numbers[::2], numbers[1::2], strict=True)):
        checks.refuse("range", "(x_min, x_max, y_min, y_max, z_min, z_max), each minimum below its maximum", bounds)
    return numbers


def _sides(cell: float | Sequence[float]) -> tuple[float, float]:
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        if len(cell) != 2:
            checks.refuse("cell", "the side of a cell, or a pair of them", cell)
        return checks.number("cell", cell[0], above=0), checks.number("cell", cell[1], above=0)
    side = checks.number("cell", cell, above=0, also="a pair of such")
    return side, side
