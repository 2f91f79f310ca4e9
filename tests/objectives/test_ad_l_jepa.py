"""AD-L-JEPA's objective: masks, targets, loss and hinge."""

import pytest
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_jepa.extractors import LidarExtractor
from sb3_jepa.objectives import BevPrediction, ObjectiveInput
from sb3_jepa.objectives.ad_l_jepa import hinge

SPACE = spaces.Box(-float("inf"), float("inf"), (80, 3))
SMALL = dict(range=(-8, 8, -8, 8, -2, 2), cell=1.0, width=4, cell_dim=8, halvings=1)


def make_sweeps(n=6, n_points=80):
    centers = 12 * th.rand(n, 4, 2) - 6
    points = centers.repeat_interleave(n_points // 4, dim=1) + 0.7 * th.randn(n, n_points, 2)
    return th.cat((points, th.rand(n, n_points, 1)), dim=2)


def make(**kwargs):
    th.manual_seed(0)
    encoder = LidarExtractor(SPACE, 16, **SMALL)
    return encoder, BevPrediction(encoder, 16, **kwargs)


@pytest.mark.parametrize(("ratio", "empty_ratio"), [(0.5, 0.5), (0.25, 0.75), (0.5, 0.0)])
def test_each_sweep_has_the_ratios_of_hidden_cells(ratio, empty_ratio):
    _, objective = make(mask_ratio=ratio, empty_mask_ratio=empty_ratio)
    occupied = (th.rand(5, 1, 8, 8) < th.tensor([0.1, 0.3, 0.5, 0.9, 0.0]).view(5, 1, 1, 1)).float()
    hidden = objective.draw_hidden(occupied)
    for sample in range(5):
        for of_kind, wanted in ((occupied[sample], ratio), (1 - occupied[sample], empty_ratio)):
            assert (hidden[sample] * of_kind).sum() == (of_kind.sum() * wanted).round()


def test_the_loss_is_that_of_its_equation():
    encoder, objective = make(hinge_coef=3.0)
    with th.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    sweeps = make_sweeps(3)
    batch = ObjectiveInput(encoder, sweeps)
    bev = encoder.bev(sweeps)
    occupied = encoder.cell_encoder.occupied(bev)
    hidden = objective.draw_hidden(occupied)
    objective.draw_hidden = lambda _: hidden
    output = objective(batch)
    # By hand
    seen, alone = (
        one.cell_encoder(bev.shown(mask)).cells
        for one, mask in ((encoder, 1 - hidden), (objective.target_encoder.encoder, hidden))
    )
    context = th.where(hidden > 0, objective.mask_token, th.where(occupied > 0, seen, objective.empty_token))
    predicted = F.normalize(objective.predictor(F.normalize(context, dim=1)), dim=1)
    target = F.normalize(th.where(occupied > 0, alone, objective.empty_token), dim=1)
    distances = 1 - (predicted * target).sum(dim=1, keepdim=True)
    of = {kind: distances[(hidden > 0) & (occupied == (kind == "occupied"))].mean() for kind in ("occupied", "empty")}
    hinges = []
    for cells, mask in ((F.normalize(context, dim=1), occupied * (1 - hidden)), (predicted, occupied * hidden)):
        of_sweeps = [
            F.relu(8**-0.5 - (cells[i][:, mask[i, 0] > 0].var(dim=1, correction=0) + 1e-4).sqrt()).mean()
            for i in range(3)
        ]
        hinges.append(th.stack(of_sweeps).mean())
    expected = 0.75 * of["occupied"] + 0.25 * of["empty"] + 3.0 * sum(hinges)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert output.terms["empty_loss"].item() == pytest.approx(of["empty"].item(), rel=1e-4)


def test_context_and_target_see_nothing_of_each_other():
    encoder, objective = make()
    sweeps = make_sweeps(2)
    bev = encoder.bev(sweeps)
    hidden = objective.draw_hidden(encoder.cell_encoder.occupied(bev))
    seen_by: dict[str, th.Tensor] = {}
    for name, one in (("context", encoder), ("target", objective.target_encoder.encoder)):
        one.cell_encoder.register_forward_pre_hook(
            lambda _, inputs, name=name: seen_by.__setitem__(name, inputs[0].occupied)
        )
    objective.predict(ObjectiveInput(encoder, sweeps), hidden, bev)
    assert (seen_by["context"] * seen_by["target"]).sum() == 0
    assert th.equal(seen_by["context"] + seen_by["target"], bev.occupied)


def test_targets_have_no_gradient_also_not_to_the_empty_token():
    encoder, objective = make(hinge_coef=0.0)
    sweeps = make_sweeps(2)
    bev = encoder.bev(sweeps)
    hidden = objective.draw_hidden(encoder.cell_encoder.occupied(bev))
    _, predicted, target = objective.predict(ObjectiveInput(encoder, sweeps), hidden, bev)
    assert not target.requires_grad
    assert predicted.requires_grad
    objective(ObjectiveInput(encoder, sweeps)).loss.backward()
    assert all(parameter.grad is None for parameter in objective.target_encoder.parameters())
    assert objective.mask_token.grad.abs().sum() > 0
    assert any(parameter.grad.abs().sum() > 0 for parameter in encoder.cell_encoder.parameters())


def test_the_hinge_is_zero_for_directions_everywhere_and_positive_for_one():
    th.manual_seed(0)
    everywhere = F.normalize(th.randn(2, 8, 30, 30), dim=1)
    ones = th.ones(2, 1, 30, 30)
    assert hinge(everywhere, ones) < 0.01
    alike = everywhere[:, :, :1, :1].expand(-1, -1, 30, 30)
    assert hinge(alike, ones).item() == pytest.approx(8**-0.5 - 0.01, abs=1e-3)
    assert hinge(alike, th.zeros(2, 1, 30, 30)) == 0


def test_learning_reduces_the_loss_and_tells_occupied_cells_from_empty_ones():
    encoder, objective = make(momentum=0.99)
    optimizer = th.optim.Adam([*encoder.parameters(), *objective.predictor.parameters(), objective.mask_token], 3e-3)
    losses, ious = [], []
    for _ in range(240):
        output = objective(ObjectiveInput(encoder, make_sweeps(12)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.update_target(encoder)
        losses.append(output.terms["prediction_loss"].item())
        ious.append(output.terms["occupancy_iou"].item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert sum(ious[-10:]) > sum(ious[:10]) + 1.0


def test_a_sweep_without_a_point_is_no_error():
    encoder, objective = make()
    output = objective(ObjectiveInput(encoder, th.full((2, 80, 3), th.nan)))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(one.grad is None or one.grad.isfinite().all() for one in encoder.parameters())


def test_other_encoders_are_refused():
    with pytest.raises(ValueError, match=r"BevPrediction needs a sb3_jepa\.LidarExtractor"):
        BevPrediction(th.nn.Linear(3, 3), 3)
