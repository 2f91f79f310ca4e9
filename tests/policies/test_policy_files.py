"""Policies that are saved, loaded and copied."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule, obs_as_tensor

from sb3_jepa import PPO, JepaPolicy
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO, make_counting_env


def test_unsupported_action_space():
    with pytest.raises(AssertionError, match="only supports"):
        PPO(JepaPolicy, make_counting_env(action_space=spaces.Dict(a=spaces.Discrete(2))), policy_kwargs=SMALL_POLICY)


def test_policy_save_and_load(pixel_cartpole, tmp_path):
    kwargs = dict(
        SMALL_POLICY,
        rl_gradient=False,
        objective_kwargs=dict(momentum=LinearSchedule(0.9, 1.0, 1.0), variance_coef=0.5),
        optimizer_kwargs=dict(weight_decay=1e-4),
    )
    policy = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO).learn(64).policy
    policy.save(tmp_path / "policy.pth")
    loaded = JepaPolicy.load(tmp_path / "policy.pth")
    observations = pixel_cartpole.reset()
    assert np.array_equal(
        policy.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    for name, value in policy.state_dict().items():
        assert th.equal(value, loaded.state_dict()[name]), name
    assert loaded.rl_gradient is False
    assert loaded.objective.variance_coef == 0.5
    assert loaded.objective.momentum_schedule(0.5) == pytest.approx(0.95)
    assert loaded.optimizer.defaults["weight_decay"] == 1e-4
    assert loaded.optimizer.defaults["eps"] == 1e-5


def test_a_failed_policy_save_leaves_the_old_file(pixel_cartpole, tmp_path, monkeypatch):
    policy = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).policy
    policy.save(tmp_path / "policy.pth")
    old = (tmp_path / "policy.pth").read_bytes()
    monkeypatch.setattr(policy, "objective_kwargs", dict(momentum=lambda progress: progress))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        policy.save(tmp_path / "policy.pth")
    assert (tmp_path / "policy.pth").read_bytes() == old


def test_unknown_and_missing_keys_are_named(pixel_cartpole):
    policy = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).policy
    state = policy.state_dict()
    state["features_extractor.encoder.old_name"] = state.pop("features_extractor.encoder.class_token")
    with pytest.raises(ValueError, match=r"encoder\.class_token is missing there.*encoder\.old_name is missing here"):
        policy.load_state_dict(state)
    policy.load_state_dict(state, strict=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_keep_their_own_target(pixel_cartpole, duplicate):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    original = model.policy
    model.policy = duplicate(original)
    before = copy.deepcopy(original.state_dict())
    model.learn(32)
    for name, value in original.state_dict().items():
        assert th.equal(value, before[name]), name
    targets = [policy.objective.target_encoder.encoder.encoder.class_token for policy in (model.policy, original)]
    assert not th.equal(*targets)


def test_a_standalone_policy_evaluates_plain_observations(pixel_cartpole):
    policy = JepaPolicy(
        pixel_cartpole.observation_space,
        pixel_cartpole.action_space,
        lambda _: 3e-4,
        features_extractor_kwargs=SMALL_EXTRACTOR,
    )
    observations = obs_as_tensor(pixel_cartpole.reset(), "cpu")
    values, log_prob, entropy = policy.evaluate_actions(observations, th.zeros(2, dtype=th.long))
    assert values.shape == (2, 1)
    assert log_prob.shape == entropy.shape == (2,)
    policy.save(buffer := io.BytesIO())
    assert buffer.getvalue()
