import pytest
import torch as th
from torch import nn

from sb3_jepa.parts import ActionConditionedPredictor, MomentumEncoder


def test_target_equals_the_context_encoder_at_the_start():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    target = MomentumEncoder(encoder)
    x = th.randn(5, 3)
    assert th.equal(target(x), encoder(x))
    assert not target(x).requires_grad
    assert not any(parameter.requires_grad for parameter in target.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_momentum_formula(momentum):
    encoder = nn.Linear(3, 4)
    target = MomentumEncoder(encoder)
    before = [parameter.clone() for parameter in target.parameters()]
    for parameter in encoder.parameters():
        parameter.data.add_(th.randn_like(parameter))
    target.update(encoder, momentum)
    for new, old, context in zip(target.parameters(), before, encoder.parameters(), strict=True):
        assert th.allclose(new, momentum * old + (1 - momentum) * context, atol=1e-6)


def test_target_stays_in_evaluation_mode_and_takes_over_buffers():
    encoder = nn.BatchNorm1d(4)
    parent = nn.Sequential(encoder, MomentumEncoder(encoder))
    parent.train()
    target = parent[1]
    assert encoder.training
    assert not any(module.training for module in target.modules())
    encoder(th.randn(8, 4) + 3)
    target.update(encoder, 0.5)
    assert th.equal(target.encoder.running_mean, encoder.running_mean)


def test_predictor_adds_the_action_after_the_first_layer():
    predictor = ActionConditionedPredictor(embed_dim=4, action_dim=2, hidden_dim=8)
    embedding, action = th.randn(3, 4), th.eye(2)[[0, 1, 1]]
    hidden = embedding @ predictor.hidden.weight.T + predictor.hidden.bias + predictor.action.weight.T[[0, 1, 1]]
    expected = hidden.clamp(min=0) @ predictor.output.weight.T + predictor.output.bias
    assert th.allclose(predictor(embedding, action), expected, atol=1e-6)
    with pytest.raises(ValueError, match="hidden_dim"):
        ActionConditionedPredictor(4, 2, hidden_dim=0)


def test_predictor_begins_with_the_gain_it_was_given():
    predictor = ActionConditionedPredictor(embed_dim=4, action_dim=2, hidden_dim=8, init_gain=2.0)
    assert th.allclose(predictor.hidden.weight.T @ predictor.hidden.weight, 4 * th.eye(4), atol=1e-5)
    assert th.allclose(predictor.output.weight @ predictor.output.weight.T, 4 * th.eye(4), atol=1e-5)
    with pytest.raises(ValueError, match="init_gain"):
        ActionConditionedPredictor(4, 2, init_gain=0.0)
