"""Masked prediction with a convolution over a grid of which few cells are occupied, as in AD-L-JEPA."""

import pytest
import torch as th
from torch import nn

from sb3_jepa.objectives import MaskedPrediction, ObjectiveInput
from sb3_jepa.parts import Masks, TokenEncoder

SIDE = 6


class CellEncoder(nn.Module):
    """Tokens are the cells of a grid."""

    token_shape, embed_dim, class_tokens, missing_as_nan = (SIDE, SIDE), 8, 0, False
    n_inputs = [2] * SIDE**2

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1))

    def token_inputs(self, grids):
        return grids.flatten(2).transpose(1, 2)

    def occupied(self, grids):
        return (grids != 0).any(dim=1).flatten(1)

    def encode_views(self, grids, visible):
        shown = [grids if cells is None else grids * cells.view(-1, 1, SIDE, SIDE) for cells in visible]
        return [self.layers(view).flatten(2).transpose(1, 2) for view in shown]

    def encode_tokens(self, grids, places=None):
        return self.encode_views(grids, [places])[0]

    def forward(self, grids):
        return self.encode_tokens(grids).mean(dim=1)


class PredictionOfTheComplement(MaskedPrediction):
    target_sees_context = False


def make_grids(n: int = 16) -> th.Tensor:
    """A bar across each grid, and one number that all its cells share."""
    rows = th.arange(SIDE)
    start, length, value = th.randint(0, 3, (n, 1)), th.randint(2, 4, (n, 1)), th.rand(n, 1, 1, 1)
    is_in_bar = (rows >= start) & (rows < start + length)
    return th.cat((th.ones(n, 1, 1, 1), value), dim=1) * is_in_bar[:, None, :, None] * th.ones(SIDE)


def make(objective_class=PredictionOfTheComplement, **kwargs) -> tuple[CellEncoder, MaskedPrediction]:
    th.manual_seed(0)
    encoder = CellEncoder()
    masks = dict(n_masks=2, context_scale=(0.5, 0.5), target_scale=(0.5, 0.5))
    kwargs = dict(dict(predictor_dim=16, predictor_depth=1, mask_kwargs=masks), **kwargs)
    return encoder, objective_class(encoder, 8, **kwargs)


@pytest.mark.parametrize("target", ["momentum", "input"])
def test_its_loss_falls(target):
    encoder, objective = make(target=target, momentum=0.99, deviation_coef=1.0)
    assert isinstance(encoder, TokenEncoder)
    learning = [*encoder.parameters(), *objective.predictor.parameters()]
    optimizer = th.optim.Adam(learning, 3e-3)
    losses = []
    for _ in range(150):
        grids = make_grids()
        output = objective(ObjectiveInput(encoder, grids, encoder(grids)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.update_target(encoder)
        losses.append(output.loss.item())
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


class FixedMasks:
    """All occupied cells of the left half are seen, and those of the right half predicted."""

    def sample(self, batch_size, candidates):
        is_left = (th.arange(SIDE) < SIDE // 2).repeat(SIDE)
        return Masks(candidates & is_left, (candidates & ~is_left)[:, None])


def test_the_loss_is_that_of_the_hidden_cells_and_the_target_sees_nothing_else():
    encoder, objective = make()
    objective.masks = [FixedMasks()]
    grids = make_grids(3)
    with th.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1
        (masks,) = (family.sample(3, encoder.occupied(grids)) for family in objective.masks)
        context, target = encoder.encode_tokens(grids, masks.context), []
        errors = []
        for sample, cells in enumerate(masks.targets[:, 0]):
            seen, hidden = (cells.nonzero()[:, 0] for cells in (masks.context[sample], cells))
            # Of this sample alone, with as many places as there are
            predicted = objective.predictor(context[sample : sample + 1, seen], seen[None], hidden[None, None])[0, 0]
            right_half = grids[sample : sample + 1].clone()
            right_half[..., : SIDE // 2] = 0
            target = objective.target_encoder.encoder.encode_tokens(right_half)[0, hidden]
            errors += (predicted - target).square().flatten().tolist()
        loss = objective(ObjectiveInput(encoder, grids)).loss.item()
    assert loss == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    # I-JEPA's target encoder sees all
    _, other = make(MaskedPrediction)
    other.masks, other.predictor = objective.masks, objective.predictor
    assert other(ObjectiveInput(encoder, grids)).loss.item() != pytest.approx(loss, rel=1e-4)


def test_grids_with_nothing_or_one_cell_in_them_teach_nothing():
    encoder, objective = make()
    grids = th.zeros(4, 2, SIDE, SIDE)
    grids[1, :, 2, 3] = 1.0
    loss = objective(ObjectiveInput(encoder, grids)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
