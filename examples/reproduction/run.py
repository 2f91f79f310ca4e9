"""*JepaPolicy*, the four configurations of *JEPA for RL* (arXiv 2504.16591, figure 3) and *CnnPolicy*, from pixels.

    python examples/reproduction/run.py --arms 1 2 3 4 default --seeds 0 1 2 3 4
    python examples/reproduction/run.py --tasks acrobot pendulum --arms default cnn-ours

Each run writes its curves (``progress.csv``, and for TensorBoard), its models and its settings to a folder of its own.
A run that is finished is not run again; one that was interrupted, or that had other settings, starts again, alone.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

# One thread for each run, and no window: set before torch and pygame are imported
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium as gym
import numpy as np
import torch as th
from arms import ARMS, TASKS
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm import tqdm

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.envs.pixels import make_pixel_vec_env

EVALUATION_EPISODES, EVALUATION_SEED = 24, 10_000
PACKAGES = ("sb3-jepa", "stable-baselines3", "torch", "gymnasium", "numpy")


class ReportSteps(BaseCallback):
    """Tell another process how far the training is."""

    def __init__(self, queue: Any):
        super().__init__()
        self.queue = queue

    def _on_step(self) -> bool:
        self.queue.put(self.training_env.num_envs)
        return True


class FirstSuccess(BaseCallback):
    """Note at which time step an episode first reached its goal, which ends it before its time limit."""

    def __init__(self) -> None:
        super().__init__()
        self.timestep: int | None = None

    def _on_step(self) -> bool:
        if self.timestep is None:
            infos = [info for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True) if done]
            if not all(info.get("TimeLimit.truncated", False) for info in infos):
                self.timestep = self.num_timesteps
        return True


def evaluate(model: PPO, settings: dict[str, Any]) -> list[float]:
    """
    Returns of the most likely actions in environments of their own.

    :param model: The trained model
    :param settings: Of the run
    """
    env = make_env(**settings["environment"], seed=EVALUATION_SEED)
    returns, _ = evaluate_policy(model, env, EVALUATION_EPISODES, deterministic=True, return_episode_rewards=True)
    env.close()
    return [float(one) for one in returns]  # type: ignore[union-attr]


def make_settings(task: str, arm: str, seed: int, timesteps: int) -> dict[str, Any]:
    """All that decides what a run computes, beside the defaults of the packages."""
    settings = dict(task=task, arm=arm, seed=seed, timesteps=timesteps, environment=TASKS[task]["environment"])
    return {**settings, **ARMS[arm], "ppo": {**ARMS[arm]["ppo"], **TASKS[task]["ppo"]}}


def make_env(env_id: str, n_envs: int, seed: int, screen_size: int | None = None) -> VecEnv:
    """
    Pixel environments.

    :param env_id: Of Gymnasium
    :param n_envs: Number of environments
    :param seed: Seed of the environments' random numbers
    :param screen_size: Side of the picture that Acrobot and Pendulum draw, in pixels; None for their own
    """

    def make() -> gym.Env:
        env = gym.make(env_id, render_mode="rgb_array")
        if screen_size is not None:
            # The names of the screen size in Acrobot and in Pendulum
            env.unwrapped.SCREEN_DIM = env.unwrapped.screen_dim = screen_size  # type: ignore[attr-defined]
        return env

    return make_pixel_vec_env(make, n_envs=n_envs, seed=seed)


def make_model(settings: dict[str, Any]) -> PPO:
    """The untrained model of a run, with its environments."""
    env = make_env(**settings["environment"], seed=settings["seed"])
    ppo = dict(settings["ppo"])
    if settings["normalize_reward"]:
        # A critic that predicts returns in the hundreds would dominate the gradient of a shared encoder
        env = VecNormalize(env, norm_obs=False, gamma=ppo.get("gamma", 0.99))
    if "learning_rate_falls" in ppo:
        start, end = ppo.pop("learning_rate_falls")
        ppo["learning_rate"] = LinearSchedule(start, end, 1.0)
    # SB3's algorithms may write into their policy_kwargs
    policy_kwargs = dict(settings["policy_kwargs"])
    return PPO(settings["policy"], env, seed=settings["seed"], device="cpu", policy_kwargs=policy_kwargs, **ppo)


def run(settings: dict[str, Any], folder: pathlib.Path, queue: Any) -> None:
    """Train once. The last thing that is written is ``result.json``: it says that the run is finished."""
    th.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    model = make_model(settings)
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    checkpoints = CheckpointCallback(settings["timesteps"] // 4 // model.n_envs, str(folder / "models"))
    first_success = FirstSuccess()
    start, cpu_start = time.perf_counter(), time.process_time()
    model.learn(settings["timesteps"], callback=[checkpoints, first_success, ReportSteps(queue)])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start

    assert model.ep_info_buffer is not None
    result = dict(
        mean_return_of_last_100_episodes=float(np.mean([episode["r"] for episode in model.ep_info_buffer])),
        deterministic_returns=evaluate(model, settings),
        first_success=first_success.timestep if settings["task"] == "acrobot" else None,
        timesteps=model.num_timesteps,
        seconds=round(seconds, 1),
        cpu_seconds=round(cpu_seconds, 1),
        settings=settings,
        hyperparameters={
            name: str(getattr(model, name))
            for name in ("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "target_kl")
        },
        versions={name: version(name) for name in PACKAGES},
        commit=commit(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, 1 thread for each run",
    )
    if isinstance(model.policy, JepaPolicy):
        result["first_embedding_variance"] = float(model.policy.gauges["shared"].first_embedding_variance)
    unfinished = folder / "result.json.unfinished"
    unfinished.write_text(json.dumps(result, indent=2))
    unfinished.replace(folder / "result.json")


def commit() -> str | None:
    """The commit of this checkout, if it is one."""
    here = pathlib.Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def is_finished(settings: dict[str, Any], folder: pathlib.Path) -> bool:
    """Whether the folder holds a finished run of these settings."""
    result = folder / "result.json"
    return result.exists() and json.loads(result.read_text())["settings"] == settings


def run_missing(runs: dict[pathlib.Path, dict[str, Any]], n_jobs: int) -> None:
    """Train all that is not finished, ``n_jobs`` at a time, with a progress bar over all of it."""
    missing = {folder: settings for folder, settings in runs.items() if not is_finished(settings, folder)}
    context = get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(n_jobs, mp_context=context) as pool,
        tqdm(total=sum(settings["timesteps"] for settings in missing.values()), unit="step", unit_scale=True) as bar,
    ):
        queue = manager.Queue()
        futures = [pool.submit(run, settings, folder, queue) for folder, settings in missing.items()]
        while not all(future.done() for future in futures):
            time.sleep(1)
            while not queue.empty():
                bar.update(queue.get())
        for future in futures:
            future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["cartpole"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["1", "2", "3", "4", "default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/reproduction"))
    arguments = parser.parse_args()

    run_missing(
        {
            arguments.folder / task / arm / f"seed{seed}": make_settings(task, arm, seed, arguments.timesteps)
            for seed in arguments.seeds
            for task in arguments.tasks
            for arm in arguments.arms
        },
        arguments.jobs,
    )


if __name__ == "__main__":
    main()
