"""Algorithms that do not take the gradient of their loss as it is, and what becomes of the JEPA's beside it."""

import numpy as np
import pytest
import torch as th

from sb3_jepa import PPO, JepaPolicy
from tests.conftest import SMALL_POLICY, SMALL_PPO

# A mean over the rows, which all have a next observation
MEAN_OVER_ROWS = dict(prediction_coef=1.0, deviation_coef=0.0, covariance_coef=0.0)


class OwnPPO(PPO):
    """
    One step for each rollout, from the gradients of several minibatches.

    :param n_minibatches: How many
    :param factor: Of the loss of each
    :param told: What the policy is told of that
    :param scaler: What scales the loss, and makes the step
    """

    n_minibatches, factor, told, scaler = 1, 1.0, None, None
    throws_away_first = False
    set_to_none = True

    def train(self) -> None:
        self.policy.set_training_mode(True)
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        for number, samples in enumerate(self.rollout_buffer.get(32 // self.n_minibatches)):
            self.policy.loss_scale = self.told
            values, log_prob, _ = self.policy.evaluate_actions(samples.observations, samples.actions.long().flatten())
            value_loss = (samples.returns - values.flatten()).square().mean()
            loss = (value_loss - (samples.advantages * log_prob).mean()) * self.factor
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            if self.throws_away_first and number == 0:
                optimizer.zero_grad(self.set_to_none)
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        self.gradients = {
            name: parameter.grad.clone()
            for name, parameter in self.policy.named_parameters()
            if parameter.grad is not None
        }
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def train_once(env, **attributes) -> dict[str, th.Tensor]:
    """One rollout and one step, with the same seeds; the gradients."""
    policy_kwargs = dict(SMALL_POLICY, objective_kwargs=MEAN_OVER_ROWS)
    model = OwnPPO(JepaPolicy, env, policy_kwargs=policy_kwargs, **{**SMALL_PPO, "batch_size": 32})
    for name, value in attributes.items():
        setattr(model, name, value)
    np.random.seed(0)
    model.learn(32)
    assert any(name.startswith("objectives") for name in model.gradients)
    return model.gradients


def assert_equal(gradients: dict[str, th.Tensor], expected: dict[str, th.Tensor]) -> None:
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        # Sums of many terms are not exact
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def test_accumulated_gradients_are_those_of_the_whole_batch(pixel_cartpole):
    whole = train_once(pixel_cartpole)
    assert_equal(train_once(pixel_cartpole, n_minibatches=2, factor=0.5, told=0.5), whole)
    # A sum over minibatches has its own scale
    summed = {name: 2 * gradient for name, gradient in whole.items()}
    assert_equal(train_once(pixel_cartpole, n_minibatches=2, told=1.0), summed)
    # Without being told, the JEPA would count for more than it should
    too_strong = train_once(pixel_cartpole, factor=0.25)
    of_jepa = [name for name in whole if name.startswith("objectives")]
    assert_equal({name: too_strong[name] for name in of_jepa}, {name: whole[name] for name in of_jepa})
    assert_equal(train_once(pixel_cartpole, factor=0.25, told=0.25), {name: 0.25 * one for name, one in whole.items()})


@pytest.mark.parametrize("as_tensor", [False, True])
def test_under_a_grad_scaler_gradients_are_the_same(pixel_cartpole, as_tensor):
    whole = train_once(pixel_cartpole)
    scaler = th.amp.GradScaler("cpu", init_scale=1024.0)
    told = scaler.scale(th.ones(())) if as_tensor else scaler.get_scale()
    assert_equal(train_once(pixel_cartpole, scaler=scaler, told=told), whole)


def test_accumulated_gradients_are_refused_without_their_scale(pixel_cartpole):
    with pytest.raises(RuntimeError, match=r"second backward pass.*`policy\.loss_scale`.*`1 / n`"):
        train_once(pixel_cartpole, n_minibatches=2, factor=0.5)


def test_a_grad_scaler_is_refused_without_its_scale(pixel_cartpole):
    with pytest.raises(RuntimeError, match=r"GradScaler.*`policy\.loss_scale = scaler\.get_scale\(\)`"):
        train_once(pixel_cartpole, scaler=th.amp.GradScaler("cpu"))
    # One that is switched off scales nothing
    assert_equal(train_once(pixel_cartpole, scaler=th.amp.GradScaler("cpu", enabled=False)), train_once(pixel_cartpole))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_thrown_away_are_not_accumulated(pixel_cartpole, set_to_none):
    assert train_once(pixel_cartpole, n_minibatches=2, throws_away_first=True, set_to_none=set_to_none)


def test_a_minibatch_without_a_backward_pass_is_no_accumulation(pixel_cartpole):
    # Beyond target_kl, PPO evaluates a minibatch and does nothing with it
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, "target_kl": 1e-9})
    model.learn(96)
    assert model._n_updates > 0


def test_encoders_of_their_own_are_each_reached_once(pixel_cartpole):
    policy_kwargs = dict(SMALL_POLICY, share_features_extractor=False)
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=policy_kwargs, **SMALL_PPO).learn(64)
    assert model._n_updates > 0


def test_a_scale_that_is_none(pixel_cartpole):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(32)
    model.policy.loss_scale = 0.0
    with pytest.raises(ValueError, match=r"positive number or a scalar tensor, got 0\.0"):
        model.train()
