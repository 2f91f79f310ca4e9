import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_jepa.objectives import NextLatentPrediction, ObjectiveInput
from sb3_jepa.parts import covariance_loss, deviation_loss, embedding_variance, prediction_loss

# The paper's objective: nothing of VICReg
PAPER = dict(prediction_coef=1.0, deviation_coef=0.0, covariance_coef=0.0)


def make_objective(**kwargs) -> tuple[nn.Module, NextLatentPrediction]:
    th.manual_seed(0)
    encoder = nn.Linear(5, 4)
    return encoder, NextLatentPrediction(encoder, embed_dim=4, action_dim=2, **{**PAPER, **kwargs})


def test_loss_is_the_weighted_sum_of_its_terms():
    encoder, objective = make_objective(prediction_coef=0.5, variance_coef=3.0)
    x, y, actions, valid = th.randn(6, 5), th.randn(6, 5), th.eye(2)[[0, 1, 0, 1, 0, 1]], th.tensor([1.0] * 5 + [0.0])
    embedding = encoder(x)
    loss, terms, *_ = objective(ObjectiveInput(encoder, x, embedding, actions, y, valid))
    expected_prediction = prediction_loss(objective.predictor(embedding, actions), encoder(y), valid)
    expected_variance = embedding_variance(embedding)
    assert terms["prediction_loss"].item() == pytest.approx(expected_prediction.item())
    assert terms["embedding_variance"].item() == pytest.approx(expected_variance.item())
    assert terms["variance_loss"].item() == pytest.approx(-min(1.0, expected_variance.item()))
    assert loss.item() == pytest.approx(0.5 * expected_prediction.item() + 3.0 * terms["variance_loss"].item())
    assert not any(term.requires_grad for term in terms.values())


def test_loss_with_the_terms_of_vicreg():
    encoder, objective = make_objective(prediction_coef=0.0, deviation_coef=2.0, covariance_coef=0.5)
    embedding = encoder(th.randn(6, 5))
    loss, terms, *_ = objective(ObjectiveInput(encoder, None, embedding, th.zeros(6, 2), th.randn(6, 5)))
    assert terms["deviation_loss"].item() == pytest.approx(deviation_loss(embedding).item())
    assert terms["covariance_loss"].item() == pytest.approx(covariance_loss(embedding).item())
    assert loss.item() == pytest.approx(2.0 * terms["deviation_loss"].item() + 0.5 * terms["covariance_loss"].item())
    loss.backward()
    assert encoder.weight.grad.abs().sum() > 0


def test_the_target_is_the_next_observation_and_not_the_same_one():
    # The first known mistake of the public re-implementation: a target computed from the context's own frames
    encoder, objective = make_objective()
    x, y = th.randn(6, 5), th.randn(6, 5)
    actions = th.zeros(6, 2)
    embedding = encoder(x)
    _, terms, *_ = objective(ObjectiveInput(encoder, x, embedding, actions, y))
    _, of_same, *_ = objective(ObjectiveInput(encoder, x, embedding, actions, x))
    assert terms["prediction_loss"].item() == pytest.approx(
        prediction_loss(objective.predictor(embedding, actions), objective.target_encoder(y)).item()
    )
    assert terms["prediction_loss"].item() != pytest.approx(of_same["prediction_loss"].item())


def test_gradients_flow_where_promised():
    encoder, objective = make_objective()
    loss, *_ = objective(ObjectiveInput(encoder, None, encoder(th.randn(6, 5)), th.zeros(6, 2), th.randn(6, 5)))
    loss.backward()
    assert encoder.weight.grad.abs().sum() > 0
    assert objective.predictor.output.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in objective.target_encoder.parameters())


def test_coefficient_of_zero_needs_no_next_observations():
    encoder, objective = make_objective(prediction_coef=0.0)
    loss, terms, *_ = objective(ObjectiveInput(encoder, None, encoder(th.randn(6, 5))))
    assert loss.item() == 0.0
    assert "prediction_loss" not in terms


@pytest.mark.parametrize("momentum", [LinearSchedule(0.9, 1.0, 1.0), (0.9, 1.0)])
def test_momentum_follows_its_schedule(momentum):
    encoder, objective = make_objective(momentum=momentum)
    objective.update_momentum(1.0)
    assert objective.momentum == pytest.approx(0.9)
    objective.update_momentum(0.5)
    assert objective.momentum == pytest.approx(0.95)
    before = objective.target_encoder.encoder.weight.clone()
    encoder.weight.data += 1.0
    objective.update_target(encoder)
    assert th.allclose(objective.target_encoder.encoder.weight, before + 0.05, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            dict(momentum=1.5),
            r"`momentum` must be a finite number from 0 to 1, or a pair of them, or a schedule, got 1\.5",
        ),
        (dict(momentum=LinearSchedule(0.9, 1.1, 1.0)), "progress_remaining=0.0"),
        (dict(momentum=(0.9, 1.1)), "momentum"),
        (dict(momentum=(0.9, 0.95, 1.0)), "pair"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_objective(**kwargs)
