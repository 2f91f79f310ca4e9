"""Pictures of what an encoder makes of LiDAR, seen from above."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.diagnostics.pictures import new_figure
from sb3_jepa.diagnostics.verdict import Verdict
from sb3_jepa.objectives.ad_l_jepa import BevPrediction
from sb3_jepa.objectives.output import ObjectiveInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a cell of the prediction is, and its colour
KINDS = {
    "seen, empty": "#ffffff",
    "seen, occupied": "#9aa0a6",
    "hidden, empty, so predicted": "#d6e6f5",
    "hidden, occupied, so predicted": "#1a7f37",
    "occupied, predicted empty": "#b3261e",
    "empty, predicted occupied": "#e69f00",
}
SIDE = 1.5


class BirdsEye(NamedTuple):
    """
    LiDAR observations, seen from above. Arrays are ``(batch, rows, columns)``, of the map or of embedded cells.

    :param heights: Number of occupied voxels above each other, of the map
    :param hidden: 1 where a cell was hidden, of the map; None without :class:`~sb3_jepa.BevPrediction`
    :param kinds: Places in :data:`KINDS`; None if nothing is predicted to be empty
    :param similarity: Cosine of each embedded cell and the chosen one; NaN where it is empty
    :param chosen: Row and column of an embedded cell, the occupied one nearest to the middle, ``(batch, 2)``
    :param iou: Of the hidden cells that are occupied or predicted to be, the share that are both
    """

    heights: np.ndarray
    hidden: np.ndarray | None
    kinds: np.ndarray | None
    similarity: np.ndarray
    chosen: np.ndarray
    iou: float


@th.no_grad()
def look_from_above(encoder: nn.Module, observations: Any, objective: nn.Module | None = None) -> BirdsEye:
    """
    :param encoder: A :class:`~sb3_jepa.LidarExtractor`
    :param observations: Preprocessed, what it takes
    :param objective: What it learns; if this is :class:`~sb3_jepa.BevPrediction`, cells are hidden and predicted
    :return: What there is to see
    """
    lidar: Any = encoder
    bev = lidar.bev(observations)
    occupied = lidar.cell_encoder.occupied(bev)
    hidden = kinds = None
    iou = float("nan")
    if isinstance(objective, BevPrediction):
        # The same cells each time
        with isolated_random_numbers(0):
            is_hidden = objective.draw_hidden(occupied)
        hidden = _grown(is_hidden, bev.occupied)
        if objective.empty_token is not None:
            _, predicted, _ = objective.predict(ObjectiveInput(encoder, observations), is_hidden, bev)
            says = objective.says_occupied(predicted)
            iou = float(objective.occupancy_iou(predicted, occupied, is_hidden))
            of_hidden = th.where(occupied > 0, th.where(says > 0, 3, 4), th.where(says > 0, 5, 2))
            kinds = th.where(is_hidden > 0, of_hidden, occupied.long())[:, 0].cpu().numpy()
    cells = F.normalize(lidar.cell_encoder(bev).cells, dim=1)
    chosen = th.stack([_nearest_to_middle(one[0]) for one in occupied])
    picked = cells[th.arange(len(cells), device=cells.device), :, chosen[:, 0], chosen[:, 1]]
    similarity = th.einsum("bcij,bc->bij", cells, picked).masked_fill(occupied[:, 0] == 0, th.nan)
    heights = bev.occupied[:, 0]
    if lidar.grid is not None:
        heights = bev.cells[:, :: 4 + lidar.grid.n_further].sum(dim=1)
    arrays = (heights.cpu().numpy(), hidden, kinds, similarity.cpu().numpy(), chosen.cpu().numpy())
    return BirdsEye(*arrays, iou=iou)


def birds_eye_figure(seen: BirdsEye, verdict: Verdict | None = None) -> "Figure":
    """
    Draw LiDAR from above: the sensor in the middle, x upward and y to the left, as it looks from a vehicle.

    :param seen: What there is to see
    :param verdict: On the encoder
    :return: Figure, a row for each observation
    :raises ImportError: If Matplotlib is not installed
    """
    columns = ["occupied"]
    columns += ["what is left to see"] if seen.hidden is not None else []
    columns += [f"predicted, IoU {seen.iou:.2f}"] if seen.kinds is not None else []
    columns += ["similar to the cross"]
    title = "hidden cells, and what is predicted" if seen.kinds is not None else "similar cells"
    n_rows = len(seen.heights)
    figure = new_figure(SIDE * len(columns) + 0.4, SIDE * n_rows + 0.9, title, verdict)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = ListedColormap(list(KINDS.values()))
    axes = figure.subplots(n_rows, len(columns), squeeze=False)
    for row in range(n_rows):
        pictures: list[tuple[np.ndarray, dict[str, Any]]] = [(seen.heights[row], dict(cmap="viridis"))]
        if seen.hidden is not None:
            pictures.append((np.where(seen.hidden[row] > 0, np.nan, seen.heights[row]), dict(cmap="viridis")))
        if seen.kinds is not None:
            pictures.append((seen.kinds[row], dict(cmap=colours, vmin=-0.5, vmax=len(KINDS) - 0.5)))
        pictures.append((seen.similarity[row], dict(cmap="coolwarm", vmin=-1.0, vmax=1.0)))
        for column, (picture, style) in enumerate(pictures):
            ax = axes[row, column]
            ax.imshow(picture, origin="lower", interpolation="nearest", **style)
            ax.invert_xaxis()
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_facecolor("#e8e8e8")
            if row == 0:
                ax.set_title(columns[column], fontsize=7)
        place = seen.chosen[row]
        axes[row, -1].plot(place[1], place[0], "+", color="black", markersize=8)
    if seen.kinds is not None:
        patches = [Patch(facecolor=colour, edgecolor="grey", label=name) for name, colour in KINDS.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=5.5, frameon=False)
    return figure


def _grown(of_cells: th.Tensor, like: th.Tensor) -> np.ndarray:
    factor = like.shape[2] // of_cells.shape[2]
    return of_cells.repeat_interleave(factor, 2).repeat_interleave(factor, 3)[:, 0].cpu().numpy()


def _nearest_to_middle(occupied: th.Tensor) -> th.Tensor:
    rows, columns = occupied.shape
    row, column = th.meshgrid(th.arange(rows), th.arange(columns), indexing="ij")
    distance = (row - (rows - 1) / 2).square() + (column - (columns - 1) / 2).square()
    # Cells that are empty come last
    nearest = (distance.to(occupied.device) + rows * columns * 4 * (occupied == 0)).argmin()
    return th.stack((nearest // columns, nearest % columns))
