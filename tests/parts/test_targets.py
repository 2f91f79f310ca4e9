import pytest
import torch as th
from torch import nn

from sb3_jepa.parts import MomentumEncoder, TargetEncoder


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


class HistoryEncoder(nn.Module):
    """The encoder of single views, below an aggregator that has no part in targets."""

    def __init__(self):
        super().__init__()
        self.aggregator = nn.GRU(4, 4, batch_first=True)
        self.views = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    @property
    def target_module(self):
        return self.views

    def forward(self, history):
        views = self.views(history.flatten(0, 1)).unflatten(0, history.shape[:2])
        return self.aggregator(views)[0][:, -1]


def test_an_encoder_says_which_of_its_modules_is_the_target():
    encoder = HistoryEncoder()
    target = MomentumEncoder(encoder)
    assert target.encoder.state_dict().keys() == encoder.views.state_dict().keys()
    before = target.encoder[0].weight.clone()
    encoder(th.randn(6, 5, 3) + 3).sum().backward()
    th.optim.SGD(encoder.parameters(), 0.1).step()
    target.update(encoder, 0.25)
    assert th.allclose(target.encoder[0].weight, 0.25 * before + 0.75 * encoder.views[0].weight)
    assert th.equal(target.encoder[1].running_mean, encoder.views[1].running_mean)
    view = th.randn(2, 3)
    encoder.eval()
    target.update(encoder, 0.0)
    assert th.equal(target(view), encoder.views(view))
    # A frozen teacher is that part too, and saved by its digits
    assert TargetEncoder(encoder).id == target.id == TargetEncoder(encoder.views).id
