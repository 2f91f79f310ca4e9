"""AD-L-JEPA: what hidden cells of a bird's-eye view hold, also where that is nothing."""

from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.objectives.objective import Objective
from sb3_jepa.objectives.output import ObjectiveInput, ObjectiveOutput
from sb3_jepa.parts.bev import BevMap
from sb3_jepa.parts.losses import weighted_mean
from sb3_jepa.parts.masked_convolutions import MaskedNorm

# Keeps the gradient of a deviation finite
EPSILON = 1e-4


class CellPredictor(nn.Module):
    """
    Three convolutions over a whole map of embeddings. Unlike in the paper, the last has neither norm nor ReLU, so that
    what is predicted may have any direction.

    :param embed_dim: Width of the embedding of a cell
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(MaskedNorm(embed_dim) for _ in range(2))

    def forward(self, cells: th.Tensor) -> th.Tensor:
        """
        :param cells: ``(batch, embed_dim, rows, columns)``
        :return: Of the same shape
        """
        everywhere = cells.new_ones(len(cells), 1, *cells.shape[2:])
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            cells = norm(convolution(cells), everywhere).relu()
        return self.convolutions[-1](cells)


class BevPrediction(Objective):
    r"""
    *AD-L-JEPA* (Zhu et al., AAAI 2026, arXiv 2501.04969): cells of a bird's-eye view are hidden, occupied ones and
    empty ones. The context encoder sees the others, its momentum copy sees only those that are hidden, and a
    convolutional predictor says what that one makes of them,

    .. math:: L = 0.75\,\overline{1 - \cos(\hat s, s)}_\text{hidden, occupied}
              + 0.25\,\overline{1 - \cos(\hat s, s)}_\text{hidden, empty} + \beta\,(h(s_x) + h(\hat s))

    Learned tokens stand for what is hidden and for what is empty; an empty cell's target is the empty token, so that
    free space is predicted too. The hinge :math:`h(Z) = \frac1d \sum_c \max(0, 1/\sqrt d - \sqrt{\mathrm{Var}(Z_c) +
    10^{-4}})` of the embeddings of a sweep's occupied cells keeps them from collapsing. It needs no actions and no next
    observations: for :func:`~sb3_jepa.pretrain`, or beside a policy::

        pretrain(sweeps, "runs/lidar", BevPrediction, features_extractor_kwargs=dict(range=(-20, 20, -20, 20, -2, 2)))

    What differs from the paper: masks have their ratio in each sweep, not in the batch; targets have no gradient, also
    not to the empty token; and see :class:`~sb3_jepa.LidarExtractor` and :class:`CellPredictor`.

    :param encoder: The context encoder, a :class:`~sb3_jepa.LidarExtractor`
    :param embed_dim: Width of its features
    :param mask_ratio: Which share of a sweep's occupied cells is hidden
    :param empty_mask_ratio: Which share of its empty cells is hidden; 0 to predict no empty cells
    :param occupied_weight: Weight of the occupied cells, against that of the empty ones, ``1 - occupied_weight``
    :param hinge_coef: :math:`\beta`
    :param empty_token: Whether empty cells have a token; without it, their embedding is 0
    :param kwargs: Those of :class:`Objective`: the momentum, ``(0.996, 1.0)`` by default, and the coefficients, which
        are of the pooled features
    :raises ValueError: If the encoder has no bird's-eye view, or an argument is out of range
    """

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        mask_ratio: float = 0.5,
        empty_mask_ratio: float = 0.5,
        occupied_weight: float = 0.75,
        hinge_coef: float = 10.0,
        empty_token: bool = True,
        **kwargs: Any,
    ):
        ratio = checks.number("mask_ratio", mask_ratio, above=0, below=1)
        empty_ratio = checks.number("empty_mask_ratio", empty_mask_ratio, least=0, below=1)
        weight = checks.number("occupied_weight", occupied_weight, least=0, most=1)
        hinge_coef = checks.number("hinge_coef", hinge_coef, least=0)
        has_token = checks.flag("empty_token", empty_token)
        if not hasattr(encoder, "bev"):
            raise ValueError(
                "BevPrediction needs a sb3_jepa.LidarExtractor as `encoder`, which has a bird's-eye view, got "
                f"{type(encoder).__name__}: `features_extractor_class=LidarExtractor`"
            )
        super().__init__(encoder, embed_dim, **{"momentum": (0.996, 1.0), **kwargs})
        cell_encoder: Any = encoder.cell_encoder
        cell_dim: int = cell_encoder.cell_dim
        self.mask_ratio, self.empty_mask_ratio, self.occupied_weight = ratio, empty_ratio, weight
        self.term_coefs["hinge_loss"] = hinge_coef
        self.mask_token = nn.Parameter(th.randn(1, cell_dim, 1, 1))
        token = th.randn(1, cell_dim, 1, 1)
        self.empty_token = nn.Parameter(token) if has_token else None
        self.predictor = CellPredictor(cell_dim)

    def draw_hidden(self, occupied: th.Tensor) -> th.Tensor:
        """
        :param occupied: Which cells hold something, ``(batch, 1, rows, columns)``
        :return: 1 where a cell is hidden, of the same shape: of each sweep as many of both kinds as the ratios say
        """
        flat = occupied.flatten(1) > 0
        chances = th.rand(flat.shape, device=flat.device)
        hidden = th.zeros_like(flat)
        for of_kind, ratio in ((flat, self.mask_ratio), (~flat, self.empty_mask_ratio)):
            n_hidden = (of_kind.sum(dim=1, keepdim=True) * ratio).round()
            ranks = chances.masked_fill(~of_kind, 2.0).argsort(dim=1).argsort(dim=1)
            hidden |= of_kind & (ranks < n_hidden)
        return hidden.view_as(occupied).to(occupied.dtype)

    def predict(self, batch: ObjectiveInput, hidden: th.Tensor, bev: BevMap) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param batch: What it learns from
        :param hidden: 1 where a cell is hidden, ``(batch, 1, rows, columns)``
        :param bev: The map of the observations
        :return: Embeddings of the context, what is predicted, and the targets, each of length 1,
            ``(batch, cell_dim, rows, columns)``
        """
        encoder: Any = batch.encoder
        occupied = encoder.cell_encoder.occupied(bev)
        seen = encoder.cell_encoder(bev.shown(1.0 - hidden)).cells
        with_tokens = th.where(hidden > 0, self.mask_token, self._fill(seen, occupied))
        context = F.normalize(with_tokens, dim=1)
        predicted = F.normalize(self.predictor(context), dim=1)
        with th.no_grad():
            target_encoder: Any = self.target_encoder.encoder
            target = F.normalize(self._fill(target_encoder.cell_encoder(bev.shown(hidden)).cells, occupied), dim=1)
        return context, predicted, target

    def _fill(self, cells: th.Tensor, occupied: th.Tensor) -> th.Tensor:
        return cells if self.empty_token is None else th.where(occupied > 0, cells, self.empty_token)

    def prediction_output(self, batch: ObjectiveInput) -> ObjectiveOutput:
        """
        :param batch: What it learns from: the observations
        :return: The prediction loss, and the terms ``occupied_loss``, ``empty_loss``, ``hinge_loss``, and how well the
            prediction tells hidden cells that are occupied from empty ones, ``occupancy_iou``
        """
        encoder: Any = batch.encoder
        bev = encoder.bev(batch.observations)
        occupied = encoder.cell_encoder.occupied(bev)
        hidden = self.draw_hidden(occupied)
        context, predicted, target = self.predict(batch, hidden, bev)
        distance = 1.0 - (predicted * target).sum(dim=1, keepdim=True)
        of_occupied = weighted_mean(distance, hidden * occupied)
        of_empty = weighted_mean(distance, hidden * (1.0 - occupied))
        loss = self.occupied_weight * of_occupied
        if self.empty_mask_ratio > 0:
            loss = loss + (1.0 - self.occupied_weight) * of_empty
        terms = dict(
            occupied_loss=of_occupied,
            empty_loss=of_empty,
            hinge_loss=hinge(context, occupied * (1.0 - hidden)) + hinge(predicted, occupied * hidden),
        )
        if self.empty_token is not None:
            terms["occupancy_iou"] = self.occupancy_iou(predicted, occupied, hidden)
        return ObjectiveOutput(loss, terms)

    @th.no_grad()
    def occupancy_iou(self, predicted: th.Tensor, occupied: th.Tensor, hidden: th.Tensor) -> th.Tensor:
        """
        :param predicted: Of length 1, ``(batch, cell_dim, rows, columns)``
        :param occupied: ``(batch, 1, rows, columns)``
        :param hidden: ``(batch, 1, rows, columns)``
        :return: Of the hidden cells that are occupied or predicted to be, the share that are both
        """
        is_predicted = hidden * self.says_occupied(predicted)
        truly = hidden * occupied
        return (is_predicted * truly).sum() / th.maximum(is_predicted, truly).sum().clamp(min=1.0)

    def says_occupied(self, cells: th.Tensor) -> th.Tensor:
        """
        The paper's own reading of a prediction: a cell is empty if the cosine to the empty token is above 0.5.

        :param cells: Of length 1, ``(batch, cell_dim, rows, columns)``
        :return: 1 where they say that there is something, ``(batch, 1, rows, columns)``
        """
        assert self.empty_token is not None
        cosine = (cells * F.normalize(self.empty_token, dim=1)).sum(dim=1, keepdim=True)
        return (cosine <= 0.5).to(cells.dtype)


def hinge(cells: th.Tensor, counted: th.Tensor) -> th.Tensor:
    r"""
    :math:`h` of :class:`BevPrediction`: 0 for unit vectors that point everywhere, and positive where they point the
    same way.

    :param cells: ``(batch, cell_dim, rows, columns)``
    :param counted: 1 where a cell counts, ``(batch, 1, rows, columns)``
    :return: Scalar: the mean of the sweeps that have at least two such cells; 0 if none has
    """
    count = counted.sum(dim=(2, 3))
    mean = (cells * counted).sum(dim=(2, 3)) / count.clamp(min=1.0)
    variance = ((cells - mean[..., None, None]).square() * counted).sum(dim=(2, 3)) / count.clamp(min=1.0)
    of_sweep = F.relu(cells.shape[1] ** -0.5 - (variance + EPSILON).sqrt()).mean(dim=1)
    return weighted_mean(of_sweep, (count[:, 0] > 1).to(cells.dtype))
