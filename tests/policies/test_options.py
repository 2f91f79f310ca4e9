"""The options of Stable-Baselines3 with every algorithm that trains jointly."""

from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from tests.algorithms.test_matrix import (
    ACTIONS,
    ALGORITHMS,
    EXTRACTOR,
    NOT_SUPPORTED,
    OBSERVATIONS,
    distance,
    parameters,
)
from tests.conftest import FakeEnv

FLOAT_IMAGE = spaces.Box(0, 1, (3, 16, 24), np.float32)
# What the algorithm gets, what its policy gets, the observations, the actions, and what the environments are made with
OPTIONS = {
    "gSDE": (dict(use_sde=True, sde_sample_freq=4), {}, "image", "Box", {}),
    "gSDE and separate encoders": (dict(use_sde=True), dict(share_features_extractor=False), "vector", "Box", {}),
    "images that are normalised": ({}, dict(normalize_images=False), FLOAT_IMAGE, "Discrete", {}),
    "separate encoders": ({}, dict(share_features_extractor=False), "Dict", "Discrete", {}),
    "JEPA for the actor": (
        {},
        dict(share_features_extractor=False, objective_for="actor"),
        "image",
        "MultiDiscrete",
        {},
    ),
    "JEPA for the critic": (
        {},
        dict(share_features_extractor=False, objective_for="critic"),
        "vector",
        "Discrete",
        {},
    ),
    "VecNormalize": ({}, {}, "vector", "Discrete", dict(wrap=VecNormalize)),
    "VecNormalize of rewards": ({}, {}, "image", "Discrete", dict(wrap=partial(VecNormalize, norm_obs=False))),
    "VecNormalize of a Dict": ({}, {}, "Dict", "Discrete", dict(wrap=partial(VecNormalize, norm_obs_keys=["speed"]))),
    "SubprocVecEnv": ({}, {}, "image", "Discrete", dict(vec_env_cls=SubprocVecEnv)),
    "target_kl": (dict(target_kl=1e-9), {}, "vector", "MultiDiscrete", {}),
    "clip_range_vf": (dict(clip_range_vf=0.2), {}, "vector", "Discrete", {}),
    "plain learning rate": (dict(learning_rate=1e-3), dict(encoder_lr_factor=1.0), "vector", "Discrete", {}),
}
OF_PPO = {"target_kl", "clip_range_vf"}


def make_env(observation, action: str, wrap=None, vec_env_cls=None):
    space = OBSERVATIONS[observation] if isinstance(observation, str) else observation
    env = make_vec_env(lambda: FakeEnv(space, ACTIONS[action]), n_envs=2, seed=0, vec_env_cls=vec_env_cls)
    return env if wrap is None else wrap(env)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_joint_training(algorithm, option, tmp_path):
    kwargs, policy_kwargs, observation, action, env_kwargs = OPTIONS[option]
    if (algorithm, action) in NOT_SUPPORTED or (algorithm == "A2C" and kwargs.keys() & OF_PPO):
        pytest.skip(f"{algorithm} has no such option")
    if "PPO" in algorithm:
        kwargs = dict(batch_size=16, n_epochs=2) | kwargs
    env = make_env(observation, action, **env_kwargs)
    policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16], **policy_kwargs)
    model = ALGORITHMS[algorithm](
        "JepaPolicy", env, n_steps=16, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs
    )
    policy = model.policy
    before = {name: parameters(encoder) for name, encoder in policy.encoders.items()}
    model.learn(64)
    for name, encoder in policy.encoders.items():
        moved = distance(before[name], parameters(encoder))
        assert moved > 0, name
        if name in policy.objectives:
            assert 0 < distance(before[name], parameters(policy.objectives[name].target_encoder.encoder)) < moved
    learners = list(before) if policy.objective_for == "both" else [policy.objective_for]
    assert list(policy.objectives) == learners
    # Two rollouts, and where there is no limit two epochs
    assert (model._n_updates == (2 if algorithm == "A2C" else 4)) == (option != "target_kl")
    assert all(parameter.isfinite().all() for parameter in policy.parameters())

    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=env, device="cpu")
    observations = env.reset()
    actions = [one.predict(observations, deterministic=True)[0] for one in (model, loaded)]
    assert np.array_equal(*actions)
    for name, value in policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[name]), name
    loaded.learn(32, reset_num_timesteps=False)
    env.close()
