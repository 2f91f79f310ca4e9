"""
PPO on a robot with a laser scanner between moving obstacles: scans as a vector, as a bird's-eye view, and with a
JEPA.

    pip install -e ".[examples,zero-shot]"
    python examples/lidar/navigation.py --seeds 0 1 2 3 4
    python examples/lidar/navigation.py --table
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from navigation_env import ANGLES, NavigationEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa import PPO, BevPrediction, LidarExtractor, load_encoder, pretrain

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import bootstrap_interval

ARMS = ("mlp", "bev", "bev-jepa", "bev-hidden-cells", "bev-pretrained")
SETTINGS: dict[str, Any] = dict(n_steps=128, batch_size=256, n_epochs=5, learning_rate=3e-4, gamma=0.98, ent_coef=0.001)
EXTRACTOR: dict[str, Any] = dict(
    key="lidar",
    kind="scan",
    angles=ANGLES,
    range=(-6.0, 6.0, -6.0, 6.0, -1.0, 1.0),
    cell=0.5,
    z_bins=1,
    halvings=1,
    width=8,
    cell_dim=16,
    pooling=12,
)
WITHOUT_OBJECTIVE = dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0)
N_ENVS = 8


def make_envs(arm: str, seed: int) -> VecEnv:
    """
    :param arm: Name
    :param seed: Seed
    :return: Environments
    """
    return make_vec_env(NavigationEnv, N_ENVS, seed=seed, env_kwargs=dict(flat=arm == "mlp"))


def make_model(arm: str, seed: int, folder: pathlib.Path, device: str, changes: dict[str, Any]) -> Any:
    """
    :param arm: Name
    :param seed: Seed
    :param folder: For what is pretrained
    :param device: Of PyTorch
    :param changes: Of the keyword arguments of the policy
    :return: A model that has not learned from rewards
    """
    envs = make_envs(arm, seed)
    if arm == "mlp":
        return stable_baselines3.PPO("MultiInputPolicy", envs, seed=seed, device=device, **SETTINGS)
    policy_kwargs: dict[str, Any] = dict(
        features_extractor_class=LidarExtractor,
        features_extractor_kwargs=EXTRACTOR,
        encoder_lr_factor=1.0,
    )
    if arm in ("bev", "bev-pretrained"):
        policy_kwargs["objective_kwargs"] = WITHOUT_OBJECTIVE
    elif arm == "bev-hidden-cells":
        policy_kwargs.update(objective_class=BevPrediction, objective_kwargs=dict(hinge_coef=1.0))
    policy_kwargs.update(changes)
    model = PPO("JepaPolicy", envs, policy_kwargs=policy_kwargs, seed=seed, device=device, **SETTINGS)
    if arm == "bev-pretrained":
        # What a random policy sees, which takes 10,000 steps more
        encoder = pretrain(
            make_envs(arm, 1_000 + seed),
            folder / f"pretrained{seed}",
            BevPrediction,
            features_extractor_kwargs=EXTRACTOR,
            n_steps=10_000,
            n_updates=1_000,
            batch_size=64,
            seed=seed,
            device=device,
        )
        load_encoder(model, encoder)
    return model


class Curve(BaseCallback):
    """Keeps success and return of the latest episodes, 20 times."""

    def __init__(self, timesteps: int):
        super().__init__()
        self.every, self.curve = timesteps // 20, list[tuple[int, float, float]]()

    def _on_step(self) -> bool:
        model = self.model
        if self.num_timesteps // self.every > len(self.curve) and model.ep_info_buffer and model.ep_success_buffer:
            mean = float(np.mean([info["r"] for info in model.ep_info_buffer]))
            self.curve.append((self.num_timesteps, mean, float(np.mean(model.ep_success_buffer))))
        return True


def evaluate(model: Any, arm: str, seed: int, n_episodes: int = 200) -> dict[str, float]:
    """
    :param model: That has learned
    :param arm: Name
    :param seed: Of the evaluation's starts
    :param n_episodes: How many
    :return: Share of episodes that reached the goal, and their mean return
    """
    envs = make_envs(arm, 10_000 + seed)
    observations: Any = envs.reset()
    successes, returns = list[bool](), list[float]()
    while len(returns) < n_episodes:
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, dones, infos = envs.step(actions)
        for info in (info for info, done in zip(infos, dones, strict=True) if done):
            successes.append(info["is_success"])
            returns.append(info["episode"]["r"])
    return dict(success=float(np.mean(successes)), mean_return=float(np.mean(returns)))


def print_table(folder: pathlib.Path) -> None:
    """
    :param folder: Of results
    """
    print("| scans as | success, % | return | success while it learns, % | steps per CPU second | seeds |")
    print("|---|---|---|---|---|---|")
    for arm in ARMS:
        runs = [json.loads(path.read_text()) for path in sorted((folder / arm).glob("seed*.json"))]
        if not runs:
            continue
        columns = [
            (100 * np.array([one["success"] for one in runs]), 1),
            (np.array([one["mean_return"] for one in runs]), 2),
            (100 * np.array([np.mean([row[2] for row in one["curve"]]) for one in runs]), 1),
            (np.array([one["timesteps"] / one["cpu_seconds"] for one in runs]), 0),
        ]
        cells = []
        for values, digits in columns:
            low, high = bootstrap_interval(values, lambda resampled: resampled.mean(axis=-1))
            cells.append(f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        print(f"| {arm} | {' | '.join(cells)} | {len(runs)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["mlp", "bev", "bev-jepa"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--timesteps", type=int, default=150_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--policy-kwargs", type=json.loads, default={}, help="changes of the policy, as JSON")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/navigation"))
    parser.add_argument("--table", action="store_true", help="print what was measured")
    arguments = parser.parse_args()
    if arguments.table:
        return print_table(arguments.folder)
    th.set_num_threads(1)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            file = arguments.folder / arm / f"seed{seed}.json"
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            start, curve = time.process_time(), Curve(arguments.timesteps)
            model = make_model(arm, seed, arguments.folder / arm, arguments.device, arguments.policy_kwargs)
            model.learn(arguments.timesteps, callback=curve)
            seconds = time.process_time() - start
            result = dict(
                evaluate(model, arm, seed), curve=curve.curve, cpu_seconds=seconds, timesteps=arguments.timesteps
            )
            file.write_text(json.dumps(result))
            print(arm, seed, {name: value for name, value in result.items() if name != "curve"}, flush=True)


if __name__ == "__main__":
    main()
