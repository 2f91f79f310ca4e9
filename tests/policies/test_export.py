import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import sb3_jepa.policies.export
from sb3_jepa import export_policy
from tests.algorithms.test_matrix import make_model as make_joint_model
from tests.alternating.test_alternating import make_model as make_stock_model

CASES = [
    ("PPO", "channels-last image", "Discrete"),
    ("PPO", "Dict", "Discrete"),
    ("PPO", "MultiDiscrete", "MultiBinary"),
    ("A2C", "frames of Gymnasium", "Box"),
    ("MaskablePPO", "vector", "MultiDiscrete"),
]


def observe(env: VecEnv):
    """Three observations: another batch size than anything was exported with."""
    batches = [env.reset() for _ in range(2)]
    if isinstance(batches[0], dict):
        return {key: np.concatenate([batch[key] for batch in batches])[:3] for key in batches[0]}
    return np.concatenate(batches)[:3]


def check(model, tmp_path) -> None:
    """Both formats against ``predict``."""
    onnxruntime = pytest.importorskip("onnxruntime")
    # First, when the policy still holds what it last computed with a gradient
    export_policy(model, tmp_path / "policy.onnx")
    observations = observe(model.get_env())
    expected, _ = model.predict(observations, deterministic=True)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    fed = observations if isinstance(observations, dict) else {"observation": observations}
    (actions,) = session.run(["action"], fed)
    assert actions.shape == expected.shape
    assert np.abs(actions - expected).max() < 1e-5

    export_policy(model, tmp_path / "policy.pt2")
    program = th.export.load(tmp_path / "policy.pt2").module()
    tensors, _ = model.policy.obs_to_tensor(observations)
    assert np.abs(program(tensors).numpy(force=True) - expected).max() < 1e-5


@pytest.mark.parametrize(("algorithm", "observation", "action"), CASES)
def test_joint_training(algorithm, observation, action, tmp_path):
    check(make_joint_model(algorithm, observation, action).learn(64), tmp_path)


@pytest.mark.parametrize("algorithm", ["DQN", "SAC"])
def test_stock_algorithms(algorithm, tmp_path):
    check(make_stock_model(algorithm, "image").learn(60), tmp_path)


def test_state_dependent_exploration_and_squashed_actions(tmp_path):
    model = make_stock_model("PPO", env=make_vec_env("Pendulum-v1", n_envs=2), use_sde=True, sde_sample_freq=4)
    check(model.learn(48), tmp_path)


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16)
    with pytest.raises(ValueError, match=r"\.onnx or \.pt2"):
        export_policy(model, tmp_path / "policy.zip")
    with pytest.raises(ValueError, match="recurrent"):
        export_policy(make_joint_model("RecurrentPPO", "vector", "Discrete"), tmp_path / "policy.onnx")
    (tmp_path / "policy.onnx").write_text("old")
    monkeypatch.setattr(sb3_jepa.policies.export, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"sb3-jepa\[onnx\]"):
        export_policy(model, tmp_path / "policy.onnx")
    assert (tmp_path / "policy.onnx").read_text() == "old"
