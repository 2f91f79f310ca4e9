"""Convolutions of a map of which most cells are empty, and stay so."""

from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.parts.bev import BevMap, grow

NORMS = ("group", "batch")


class MaskedNorm(nn.Module):
    """
    Normalises cells by the mean and deviation of those that are occupied: of a sample and a group of channels
    (``"group"``), or of a channel in the batch (``"batch"``, as in *AD-L-JEPA*). Empty cells have no part in it.

    :param channels: Number of channels
    :param norm: ``"group"`` or ``"batch"``
    :param groups: Number of groups, a divisor of ``channels``
    """

    def __init__(self, channels: int, norm: str = "group", groups: int = 4):
        super().__init__()
        self.norm, self.groups = checks.choice("norm", norm, NORMS), groups
        self.weight, self.bias = nn.Parameter(th.ones(channels)), nn.Parameter(th.zeros(channels))
        if norm == "batch":
            self.register_buffer("running_mean", th.zeros(channels))
            self.register_buffer("running_variance", th.ones(channels))

    running_mean: th.Tensor
    running_variance: th.Tensor

    def forward(self, cells: th.Tensor, occupied: th.Tensor) -> th.Tensor:
        """
        :param cells: ``(batch, channels, rows, columns)``
        :param occupied: ``(batch, 1, rows, columns)``
        :return: Normalised; of no meaning where a cell is empty
        """
        if self.norm == "batch":
            normalized = self._by_batch(cells, occupied)
        else:
            grouped = cells.unflatten(1, (self.groups, -1))
            mask = occupied[:, None]
            count = (mask.sum(dim=(2, 3, 4), keepdim=True) * grouped.shape[2]).clamp(min=1.0)
            mean = (grouped * mask).sum(dim=(2, 3, 4), keepdim=True) / count
            variance = ((grouped - mean).square() * mask).sum(dim=(2, 3, 4), keepdim=True) / count
            normalized = ((grouped - mean) * (variance + 1e-5).rsqrt()).flatten(1, 2)
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]

    def _by_batch(self, cells: th.Tensor, occupied: th.Tensor) -> th.Tensor:
        if self.training:
            count = occupied.sum().clamp(min=1.0)
            mean = (cells * occupied).sum(dim=(0, 2, 3)) / count
            variance = ((cells - mean[:, None, None]).square() * occupied).sum(dim=(0, 2, 3)) / count
            with th.no_grad():
                self.running_mean.lerp_(mean, 0.01)
                self.running_variance.lerp_(variance, 0.01)
        else:
            mean, variance = self.running_mean, self.running_variance
        return (cells - mean[:, None, None]) * (variance[:, None, None] + 1e-3).rsqrt()


class MaskedConvolution(nn.Module):
    """
    Convolution, norm and ReLU, of which empty cells stay empty (a submanifold sparse convolution, computed densely).
    One with ``halves`` joins 2 x 2 cells, and what it makes of them is occupied if one of these was.

    :param inputs: Number of input channels
    :param outputs: Number of output channels
    :param norm: As of :class:`MaskedNorm`
    :param halves: Whether rows and columns are halved
    :param is_last: Whether the ReLU is left out
    """

    def __init__(self, inputs: int, outputs: int, norm: str = "group", halves: bool = False, is_last: bool = False):
        super().__init__()
        self.halves, self.is_last = halves, is_last
        size = dict(kernel_size=2, stride=2) if halves else dict(kernel_size=3, padding=1)
        self.convolution = nn.Conv2d(inputs, outputs, bias=False, **size)  # type: ignore[arg-type]
        self.norm = MaskedNorm(outputs, norm)

    def forward(self, bev: BevMap) -> BevMap:
        """
        :param bev: A map, 0 where it is empty
        :return: The next one
        """
        occupied = grow(bev.occupied, 2 if self.halves else 1)
        cells = self.norm(self.convolution(bev.cells), occupied)
        return BevMap((cells if self.is_last else cells.relu()) * occupied, occupied)


class BevEncoder(nn.Module):
    """
    Embeds the cells of a bird's-eye view (*AD-L-JEPA*, Zhu et al. 2026, arXiv 2501.04969, with two dimensions in the
    place of three): pairs of convolutions, between which rows and columns are halved. An embedding is one of
    ``2**halvings`` x ``2**halvings`` cells of the map.

    :param channels: What is known of each cell of the map
    :param map_shape: Rows and columns of the map, multiples of ``2**halvings``
    :param cell_dim: Width of the embedding of a cell, a multiple of 4
    :param width: Width of the first convolution, a multiple of 4. It doubles with each halving.
    :param halvings: How often rows and columns are halved
    :param norm: ``"group"`` or, as in the paper, ``"batch"``
    """

    def __init__(
        self,
        channels: int,
        map_shape: Sequence[int],
        cell_dim: int = 64,
        width: int = 16,
        halvings: int = 2,
        norm: str = "group",
    ):
        super().__init__()
        channels = checks.whole_number("channels", channels)
        self.map_shape = checks.sizes("map_shape", map_shape)
        self.halvings = checks.whole_number("halvings", halvings, 0)
        self.factor = 2**self.halvings
        if len(self.map_shape) != 2 or any(side % self.factor for side in self.map_shape):
            checks.refuse("map_shape", f"rows and columns, multiples of {self.factor}", map_shape)
        for name, number in (("cell_dim", cell_dim), ("width", width)):
            if checks.whole_number(name, number) % 4:
                checks.refuse(name, "a multiple of 4, the groups of channels that are normalised together", number)
        checks.choice("norm", norm, NORMS)
        self.cell_dim = int(cell_dim)
        layers, inputs = [], channels
        for index in range(self.halvings + 1):
            outputs = self.cell_dim if index == self.halvings else width * 2**index
            layers.append(MaskedConvolution(inputs, outputs, norm, halves=index > 0))
            layers.append(MaskedConvolution(outputs, outputs, norm, is_last=index == self.halvings))
            inputs = outputs
        self.layers = nn.ModuleList(layers)

    @property
    def token_shape(self) -> tuple[int, int]:
        """Rows and columns of the embedded cells."""
        rows, columns = self.map_shape
        return rows // self.factor, columns // self.factor

    def occupied(self, bev: BevMap) -> th.Tensor:
        """
        :param bev: A map
        :return: 1 where an embedded cell holds something, ``(batch, 1, *token_shape)``
        """
        return grow(bev.occupied, self.factor)

    def forward(self, bev: BevMap) -> BevMap:
        """
        :param bev: A map
        :return: The embeddings of its cells, 0 where they are empty, ``(batch, cell_dim, *token_shape)``
        """
        for layer in self.layers:
            bev = layer(bev)
        return bev
