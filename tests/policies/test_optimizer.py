"""The optimiser of a JepaPolicy, and the learning rate of its encoder."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_jepa import PPO, JepaPolicy
from tests.conftest import SMALL_POLICY, SMALL_PPO


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.SGD])
def test_learning_rate_of_the_encoder_follows_the_schedule(pixel_cartpole, optimizer_class):
    policy_kwargs = {**SMALL_POLICY, "encoder_lr_factor": 0.25, "optimizer_class": optimizer_class}
    model = PPO(
        JepaPolicy,
        pixel_cartpole,
        learning_rate=LinearSchedule(1e-2, 1e-3, 1.0),
        policy_kwargs=policy_kwargs,
        **SMALL_PPO,
    )
    policy = model.policy
    rates: list[dict[th.nn.Parameter, float]] = []
    policy.optimizer.register_step_pre_hook(
        lambda *_: rates.append({p: group["lr"] for group in policy.optimizer.param_groups for p in group["params"]})
    )
    encoder = set(policy.features_extractor.parameters())
    model.learn(128)
    assert len({rate[policy.action_net.weight] for rate in rates}) > 1
    for rate in rates:
        assert set(rate) == {parameter for parameter in policy.parameters() if parameter.requires_grad}
        for parameter, value in rate.items():
            factor = 0.25 if parameter in encoder else 1.0
            assert value == pytest.approx(factor * rate[policy.action_net.weight])


def test_an_encoder_with_a_learning_rate_of_0_stays_as_it_is(pixel_cartpole):
    policy_kwargs = {**SMALL_POLICY, "encoder_lr_factor": 0.0}
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=policy_kwargs, **SMALL_PPO)
    before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
    head = model.policy.action_net.weight.clone()
    model.learn(64)
    for old, new in zip(before, model.policy.features_extractor.parameters(), strict=True):
        assert th.equal(old, new)
    assert not th.equal(head, model.policy.action_net.weight)


def test_another_optimiser_still_moves_the_target(pixel_cartpole):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.policy.optimizer = th.optim.SGD(model.policy.features_extractor.parameters(), lr=0.1)
    target = copy.deepcopy(model.policy.objective.target_encoder)
    model.learn(32)
    assert not th.equal(
        target.encoder.encoder.class_token, model.policy.objective.target_encoder.encoder.encoder.class_token
    )


def test_optimiser_of_the_users_choice(pixel_cartpole):
    for optimizer_kwargs in (dict(foreach=True), dict(fused=False)):
        kwargs = dict(SMALL_POLICY, optimizer_kwargs=optimizer_kwargs)
        PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO).learn(64)
    kwargs = dict(SMALL_POLICY, optimizer_class=th.optim.SGD)
    PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO).learn(64)


def test_schedule_of_the_encoder_alone(pixel_cartpole, tmp_path):
    policy_kwargs = dict(SMALL_POLICY, encoder_lr_factor=LinearSchedule(0.0, 1.0, 1.0))
    model = PPO(JepaPolicy, pixel_cartpole, learning_rate=1e-3, policy_kwargs=policy_kwargs, **SMALL_PPO)
    rates = []
    model.policy.optimizer.register_step_post_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    model.learn(4 * 32)
    # Each update uses the progress at the start of its rollout
    expected = [[1e-3, rate] for rate in (0.0, 2.5e-4, 5e-4, 7.5e-4)]
    assert np.unique(rates, axis=0) == pytest.approx(np.array(expected))
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=pixel_cartpole)
    assert loaded.policy.encoder_lr_factor(0.9) == pytest.approx(0.1)


def test_a_schedule_of_the_encoder_that_goes_wrong(pixel_cartpole):
    policy_kwargs = dict(SMALL_POLICY, encoder_lr_factor=LinearSchedule(1.0, -1.0, 1.0))
    with pytest.raises(ValueError, match=r"encoder_lr_factor.progress_remaining=0.0.*got -1.0"):
        PPO(JepaPolicy, pixel_cartpole, policy_kwargs=policy_kwargs, **SMALL_PPO)
