import pytest
import torch as th

from sb3_jepa.parts import ActionConditionedPredictor


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
