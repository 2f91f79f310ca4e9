"""TD-JEPA, its ablations, and what it is to be compared with, all with the same encoders."""

import json
import pathlib
from typing import Any

from sb3_jepa import TDJEPA
from sb3_jepa.zero_shot import ForwardBackward, RandomTaskFeatures

ARMS: dict[str, tuple[type[TDJEPA], dict[str, Any]]] = {
    "td-jepa": (TDJEPA, {}),
    "symmetric": (TDJEPA, dict(policy_kwargs=dict(symmetric=True))),
    "one-step": (TDJEPA, dict(gamma=0.0)),
    "behavior": (TDJEPA, dict(next_actions="data")),
    "without-orthonormality": (TDJEPA, dict(state_orthonormality_coef=0.0, task_orthonormality_coef=0.0)),
    "forward-backward": (ForwardBackward, dict(state_orthonormality_coef=0.0, task_orthonormality_coef=1.0)),
    "random-features": (RandomTaskFeatures, {}),
}
NETWORKS: dict[str, Any] = dict(net_arch=[128, 128], encoder_dim=128, state_dim=64, task_dim=50)
SETTINGS: dict[str, Any] = dict(gamma=0.98, momentum=0.99, learning_rate=5e-4, device="cpu")


def make_model(arm: str, env: Any, seed: int, policy: str = "MlpPolicy", **changes: Any) -> TDJEPA:
    """
    :param arm: Name
    :param env: Environment
    :param seed: Seed
    :param policy: Name of the policy
    :param changes: Other arguments than those that all examples share; what makes the arm goes before them
    :return: A model that has not learned
    """
    algorithm, of_arm = ARMS[arm]
    policy_kwargs = {**NETWORKS, **changes.pop("policy_kwargs", {}), **of_arm.get("policy_kwargs", {})}
    settings = {**SETTINGS, **changes, **of_arm, "policy_kwargs": policy_kwargs}
    return algorithm(policy, env, seed=seed, **settings)


def write_result(path: pathlib.Path, result: dict[str, Any]) -> None:
    """
    :param path: Where to write, once all is there
    :param result: What was measured
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1))
    unfinished.rename(path)
