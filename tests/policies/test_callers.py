import pytest
import torch as th

from sb3_jepa.policies.callers import steps_for_grad_scaler


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_grad_scaler_that_makes_the_step_is_found(fused, enabled):
    weight = th.ones(2, requires_grad=True)
    optimizer = th.optim.Adam([weight], fused=fused)
    found = []
    optimizer.register_step_pre_hook(lambda *_: found.append(steps_for_grad_scaler()))
    scaler = th.amp.GradScaler("cpu", enabled=enabled)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    # One that is only there has divided nothing
    optimizer.step()
    assert found == [enabled, False]
