"""What experiments with many runs from pixels share: environments, one run, all that are missing, and intervals."""

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

# One thread for each run, and no window: set before a process of runs imports torch and pygame
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm import tqdm

from sb3_jepa.common.files import replace_when_complete
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


def make_training_env(settings: dict[str, Any], gamma: float) -> VecEnv:
    """
    The environments that a run is trained in.

    :param settings: Of the run: ``environment``, ``seed`` and ``normalize_reward``
    :param gamma: The algorithm's discount
    """
    env = make_env(**settings["environment"], seed=settings["seed"])
    # A critic that predicts returns in the hundreds would dominate the gradient of a shared encoder
    return VecNormalize(env, norm_obs=False, gamma=gamma) if settings["normalize_reward"] else env


def evaluate(model: BaseAlgorithm, settings: dict[str, Any]) -> list[float]:
    """
    Returns of the most likely actions in environments of their own.

    :param model: The trained model
    :param settings: Of the run
    """
    env = make_env(**settings["environment"], seed=EVALUATION_SEED)
    returns, _ = evaluate_policy(model, env, EVALUATION_EPISODES, deterministic=True, return_episode_rewards=True)
    env.close()
    return [float(one) for one in returns]  # type: ignore[union-attr]


def train(
    model: BaseAlgorithm,
    settings: dict[str, Any],
    folder: pathlib.Path,
    callbacks: list[BaseCallback],
    hyperparameters: Sequence[str],
    log_interval: int = 1,
) -> dict[str, Any]:
    """
    Train once, and measure what came of it.

    :param model: Untrained
    :param settings: Of the run
    :param folder: For its curves (``progress.csv``, and for TensorBoard)
    :param callbacks: For the training
    :param hyperparameters: Names of the model's attributes that are noted
    :param log_interval: Rollouts (off-policy: episodes) between two rows of the curves
    :return: What :func:`write_result` is to write
    """
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    start, cpu_start = time.perf_counter(), time.process_time()
    model.learn(settings["timesteps"], callback=callbacks, log_interval=log_interval)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start

    assert model.ep_info_buffer is not None
    return dict(
        mean_return_of_last_100_episodes=float(np.mean([episode["r"] for episode in model.ep_info_buffer])),
        deterministic_returns=evaluate(model, settings),
        timesteps=model.num_timesteps,
        seconds=round(seconds, 1),
        cpu_seconds=round(cpu_seconds, 1),
        settings=settings,
        hyperparameters={name: str(getattr(model, name)) for name in hyperparameters},
        versions={name: version(name) for name in PACKAGES},
        commit=commit(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, 1 thread for each run",
    )


def start_run(folder: pathlib.Path) -> None:
    """
    Forget what an earlier run has left.

    :param folder: Of the run
    """
    th.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)


def write_result(folder: pathlib.Path, result: dict[str, Any]) -> None:
    """
    Write what is written last: it says that the run is finished.

    :param folder: Of the run
    :param result: What was measured
    """
    with replace_when_complete(folder / "result.json") as unfinished:
        unfinished.write_text(json.dumps(result, indent=2))


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


def run_missing(
    run: Callable[[dict[str, Any], pathlib.Path, Any], None], runs: dict[pathlib.Path, dict[str, Any]], n_jobs: int
) -> None:
    """
    Train all that is not finished, with a progress bar over all of it.

    :param run: Trains once: it is given settings, a folder, and a queue for the steps that were made
    :param runs: Settings of each run, by its folder
    :param n_jobs: Runs at a time
    """
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


def add_run_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """
    The options that all experiments have.

    :param parser: Of the command line
    :param folder: Where the runs go, if nothing else is said
    """
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(folder))


def finished_results(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, Any]]:
    """
    :param folder: Of an arm; it holds a folder for each seed
    :return: What the finished runs measured, by their folders
    """
    return {path.parent: json.loads(path.read_text()) for path in sorted(folder.glob("seed*/result.json"))}


def bootstrap_interval(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """
    95 % bootstrap interval over runs.

    :param values: ``(..., runs)``
    :param statistic: Of the last axis
    :return: Lower and upper end, ``(2, ...)``
    """
    n_runs = values.shape[-1]
    picked = np.random.default_rng(0).integers(n_runs, size=(2_000, n_runs))
    return np.percentile(statistic(values[..., picked]), (2.5, 97.5), axis=-1)
