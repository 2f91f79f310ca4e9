"""
Tasks that need memory, with memory and without: PPO on popgym's CartPole and Pendulum without velocities, on such a
CartPole with noise, and on MiniGrid's MemoryS7, where a key that is seen at the begin says which way is right at the
end.

    pip install -e ".[memory]"
    python examples/sequences/memory.py --tasks cartpole pendulum --seeds 0 1 2 3 4

All arms have the same settings. Returns are those of the most likely actions in 50 episodes after the training.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_jepa import PPO, SequenceExtractor, SequencePrediction
from sb3_jepa.envs import VecHistory

TASKS = ("cartpole", "noisy-cartpole", "pendulum", "minigrid")
SETTINGS: dict[str, Any] = dict(n_steps=128, batch_size=256, n_epochs=10, learning_rate=3e-4, device="cpu")
# Of Pendulum, as in rl-baselines3-zoo
SETTINGS_OF_TASK: dict[str, dict[str, Any]] = {"pendulum": dict(gamma=0.9, learning_rate=1e-3)}
N_ENVS = 8
WITHOUT_OBJECTIVE = dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0)


def make_env(task: str) -> gym.Env:
    """
    :param task: Name
    :return: The environment
    """
    if task == "minigrid":
        from minigrid.wrappers import ImgObsWrapper

        # Numbers of objects, colours and states
        env = ImgObsWrapper(gym.make("MiniGrid-MemoryS7-v0"))
        space = gym.spaces.Box(0.0, 1.0, (147,), np.float32)
        return gym.wrappers.TransformObservation(env, lambda image: (image.ravel() / 10).astype(np.float32), space)
    if task == "cartpole":
        from popgym.envs.position_only_cartpole import PositionOnlyCartPoleEasy

        return PositionOnlyCartPoleEasy()
    if task == "noisy-cartpole":
        from popgym.envs.noisy_position_only_cartpole import NoisyPositionOnlyCartPoleEasy

        return NoisyPositionOnlyCartPoleEasy()
    from popgym.envs.position_only_pendulum import PositionOnlyPendulumEasy

    return PositionOnlyPendulumEasy()


def make_envs(task: str, arm: str, length: int, seed: int, n_envs: int = N_ENVS) -> VecEnv:
    """
    :param task: Name
    :param arm: Name
    :param length: Of histories and stacks
    :param seed: Seed
    :param n_envs: How many
    :return: The environments, as the arm sees them
    """
    envs = make_vec_env(lambda: make_env(task), n_envs=n_envs, seed=seed)
    if arm == "stacked":
        return VecFrameStack(envs, length)
    return VecHistory(envs, length) if arm.startswith("sequence") else envs


def make_model(task: str, arm: str, envs: VecEnv, seed: int, changes: dict[str, Any]) -> Any:
    """
    :param task: Name
    :param arm: Name
    :param envs: Environments
    :param seed: Seed
    :param changes: Other keyword arguments of a JepaPolicy
    :return: A model that has not learned
    """
    settings = {**SETTINGS, **SETTINGS_OF_TASK.get(task, {}), "seed": seed}
    if arm.startswith("sequence"):
        policy_kwargs: dict[str, Any] = dict(
            features_extractor_class=SequenceExtractor,
            objective_class=SequencePrediction,
            # Found with seed 100: a factor of 0.3, the default, learns later
            encoder_lr_factor=1.0,
            objective_kwargs=dict(WITHOUT_OBJECTIVE) if arm == "sequence-without-objective" else {},
            **changes,
        )
        return PPO("JepaPolicy", envs, policy_kwargs=policy_kwargs, **settings)
    if arm == "recurrent":
        from sb3_contrib import RecurrentPPO

        return RecurrentPPO("MlpLstmPolicy", envs, **settings)
    import stable_baselines3

    return stable_baselines3.PPO("MlpPolicy", envs, **settings)


ARMS = ("sequence", "sequence-without-objective", "recurrent", "stacked", "without-memory")


class Curve(BaseCallback):
    """Keeps the mean return of the latest episodes, ten times."""

    def __init__(self, timesteps: int):
        super().__init__()
        self.every, self.curve = timesteps // 10, list[tuple[int, float]]()

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > len(self.curve) and self.model.ep_info_buffer:
            mean = float(np.mean([info["r"] for info in self.model.ep_info_buffer]))
            self.curve.append((self.num_timesteps, mean))
        return True


def run(task: str, arm: str, seed: int, timesteps: int, length: int, changes: dict[str, Any]) -> dict[str, Any]:
    """
    :param task: Name
    :param arm: Name
    :param seed: Seed
    :param timesteps: How long to train
    :param length: Of histories and stacks
    :param changes: Other keyword arguments of a JepaPolicy
    :return: What was measured
    """
    model, curve = make_model(task, arm, make_envs(task, arm, length, seed), seed, changes), Curve(timesteps)
    start = time.process_time()
    model.learn(timesteps, callback=curve)
    seconds = time.process_time() - start
    returns, _ = evaluate_policy(
        model, make_envs(task, arm, length, 10_000 + seed), 50, deterministic=True, return_episode_rewards=True
    )
    return dict(
        returns=dict(deterministic=float(np.mean(returns))),
        last_100_episodes=float(np.mean([info["r"] for info in model.ep_info_buffer])),
        curve=curve.curve,
        cpu_seconds=seconds,
        timesteps=timesteps,
        length=length,
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["cartpole", "pendulum"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--timesteps", type=int, default=30_000)
    parser.add_argument("--policy-kwargs", default="{}", help="other arguments of the JepaPolicy, as JSON")
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/sequences/memory"))
    options = parser.parse_args()
    th.set_num_threads(1)
    for seed in options.seeds:
        for task in options.tasks:
            for arm in options.arms:
                path = options.folder / task / arm / f"seed{seed}.json"
                if path.is_file():
                    continue
                changes = json.loads(options.policy_kwargs)
                result = run(task, arm, seed, options.timesteps, options.length, changes)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(result, indent=1))
                print(f"{task} {arm} {seed}: {result}", flush=True)


if __name__ == "__main__":
    main()
