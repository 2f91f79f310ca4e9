"""Parameters that do not fit the policy that they are loaded into."""

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO
from tests.conftest import SMALL_EXTRACTOR, SMALL_PPO

KWARGS = dict(features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16])


def make(**policy_kwargs) -> PPO:
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
    return PPO("JepaPolicy", env, policy_kwargs={**KWARGS, **policy_kwargs}, **SMALL_PPO)


def test_parameters_that_came_from_no_file_were_said_to_be_of_one():
    model, parameters = make(), make().get_parameters()
    del parameters["policy"]["action_net.weight"]
    for load in (
        lambda: model.set_parameters(parameters),
        lambda: model.policy.load_state_dict(parameters["policy"]),
    ):
        with pytest.raises(ValueError, match=r"of another policy: action_net.weight is missing there\.") as told:
            load()
        assert "saved from" not in str(told.value)


def test_another_shape_was_an_error_of_pytorch(tmp_path):
    other = make(features_extractor_kwargs=dict(SMALL_EXTRACTOR, embed_dim=32))
    other.save(tmp_path / "model")
    model = make()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    message = r"features_extractor\.encoder\.class_token is \(1, 1, 32\) there and \(1, 1, 16\) here.*`policy_kwargs`"
    for load in (
        lambda: model.set_parameters(tmp_path / "model"),
        lambda: model.policy.load_state_dict(other.policy.state_dict()),
        lambda: model.policy.load_state_dict(other.policy.state_dict(), strict=False),
    ):
        with pytest.raises(ValueError, match=message):
            load()
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def test_a_zip_of_a_version_with_another_default_can_be_loaded(tmp_path):
    # In that version, 12 was the default: the zip does not tell of it
    made = make(features_extractor_kwargs=dict(SMALL_EXTRACTOR, embed_dim=12)).learn(64)
    made.policy_kwargs = KWARGS
    made.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"class_token is \(1, 1, 12\) there .*custom_objects=dict\(policy_kwargs="):
        PPO.load(tmp_path / "model")
    # As the message says
    policy_kwargs = dict(KWARGS, features_extractor_kwargs=dict(SMALL_EXTRACTOR, embed_dim=12))
    loaded = PPO.load(tmp_path / "model", custom_objects=dict(policy_kwargs=policy_kwargs), env=made.get_env())
    observations = made.get_env().reset()
    assert (
        loaded.predict(observations, deterministic=True)[0] == made.predict(observations, deterministic=True)[0]
    ).all()
    loaded.learn(64)
    loaded.save(tmp_path / "model")
    assert PPO.load(tmp_path / "model").policy.features_dim == 12
