import pytest
import torch as th
from torch import nn

from sb3_jepa.parts import MomentumEncoder


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
