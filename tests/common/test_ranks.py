"""Of one process; tests/test_distributed.py has two."""

import torch as th
from torch import nn

from sb3_jepa.common import ranks


def test_one_process_is_a_rank_alone_and_copies_nothing():
    assert (ranks.n_ranks(), ranks.rank()) == (1, 0)
    batch, number = th.randn(4, 3, requires_grad=True), {"a": 1}
    assert ranks.gather_batch(batch) is batch
    assert ranks.gather_objects(number)[0] is number
    assert ranks.average(0.5) == 0.5
    layer = nn.Linear(3, 2)
    with ranks.training_jointly(layer.parameters()):
        joined, nothing = ranks.join_batches(batch, None)
        assert joined is batch
        assert nothing is None
        layer(joined).sum().backward()
    assert th.equal(layer.bias.grad, th.full((2,), 4.0))


def test_gradients_are_averaged_once_in_each_backward_pass_and_no_longer(monkeypatch):
    calls = []
    monkeypatch.setattr(ranks, "average_gradients", lambda parameters: calls.append([p.grad for p in parameters]))
    layers = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    layers[0].requires_grad_(False)
    with ranks.training_jointly(layers.parameters()):
        for _ in range(2):
            layers(th.randn(4, 3)).sum().backward()
    layers(th.randn(4, 3)).sum().backward()
    # When all gradients are there, and only of what learns
    assert [len(gradients) for gradients in calls] == [2, 2]
    assert all(gradient is not None for gradients in calls for gradient in gradients)


def test_on_one_process_no_group_is_made():
    device = th.device("cpu")
    assert ranks.own_device(device) is device
    ranks.start(device)
    assert not th.distributed.is_initialized()
