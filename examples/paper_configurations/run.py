"""The four configurations of *JEPA for RL* (arXiv 2504.16591, figure 3) on pixel CartPole.

    python examples/paper_configurations/run.py --seeds 0 1 2 3 4 --timesteps 100000
    python examples/paper_configurations/run.py --variants strong-predictor --configurations 2 3 4

Each run writes its curves (``progress.csv``, and for TensorBoard) and its settings to a folder of its own. A run that
is finished is not run again; one that was interrupted, or that had other settings, starts again, alone.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

# One thread for each run, and no window: to be said before torch and pygame are imported
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from tqdm import tqdm

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.envs import make_pixel_vec_env

# Everything that is not said here is the default of sb3_jepa
ENVIRONMENT: dict[str, Any] = dict(env_id="CartPole-v1", n_envs=8)
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "1": dict(objective_kwargs=dict(prediction_coef=0.0, variance_coef=0.0), rl_gradient=True),
    "2": dict(objective_kwargs=dict(prediction_coef=1.0, variance_coef=0.0), rl_gradient=True),
    "3": dict(objective_kwargs=dict(prediction_coef=1.0, variance_coef=0.0), rl_gradient=False),
    "4": dict(objective_kwargs=dict(prediction_coef=1.0, variance_coef=1.0), rl_gradient=False),
}
DESCRIPTIONS = {
    "1": "RL only",
    "2": "JEPA + RL gradient",
    "3": "JEPA, no RL gradient",
    "4": "JEPA + variance, no RL gradient",
}
# What the paper leaves open, and what decides whether configuration 3 collapses
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    # The paper's layout: each patch of each frame is a token. The default makes one token of the three.
    "frames-as-tokens": dict(features_extractor_kwargs=dict(frames_as="tokens")),
    # A predictor that begins with more gain than PyTorch's initialisation gives it
    "strong-predictor": dict(objective_kwargs=dict(predictor_gain=1.85)),
    # Frames that are divided by 255, as Stable-Baselines3 does, and not standardised
    "raw-input": dict(features_extractor_kwargs=dict(standardize_frames=0)),
}


class ReportSteps(BaseCallback):
    """Tell another process how far the training is."""

    def __init__(self, queue: Any):
        super().__init__()
        self.queue = queue

    def _on_step(self) -> bool:
        self.queue.put(self.training_env.num_envs)
        return True


def make_settings(configuration: str, variant: str, seed: int, timesteps: int) -> dict[str, Any]:
    """All that decides what a run computes."""
    policy_kwargs = dict(CONFIGURATIONS[configuration])
    for name, kwargs in VARIANTS[variant].items():
        policy_kwargs[name] = {**policy_kwargs.get(name, {}), **kwargs}
    return dict(
        configuration=configuration,
        variant=variant,
        seed=seed,
        timesteps=timesteps,
        environment=ENVIRONMENT,
        policy_kwargs=policy_kwargs,
    )


def run(settings: dict[str, Any], folder: pathlib.Path, queue: Any) -> None:
    """Train once. The last thing that is written is ``result.json``: it says that the run is finished."""
    th.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    env = make_pixel_vec_env(**settings["environment"], seed=settings["seed"])
    # SB3's algorithms may write into their policy_kwargs
    policy_kwargs = dict(settings["policy_kwargs"])
    model = PPO(JepaPolicy, env, seed=settings["seed"], device="cpu", policy_kwargs=policy_kwargs)
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    start = time.perf_counter()
    model.learn(settings["timesteps"], callback=ReportSteps(queue))

    assert model.ep_info_buffer is not None
    result = dict(
        mean_return_of_last_100_episodes=float(np.mean([episode["r"] for episode in model.ep_info_buffer])),
        first_embedding_variance=float(model.policy.first_embedding_variance),  # type: ignore[arg-type]
        timesteps=model.num_timesteps,
        seconds=round(time.perf_counter() - start, 1),
        settings=settings,
        versions={name: version(name) for name in ("sb3-jepa", "stable-baselines3", "torch", "gymnasium", "numpy")},
        machine=f"{platform.machine()}, {os.cpu_count()} cores, 1 thread for each run",
    )
    unfinished = folder / "result.json.unfinished"
    unfinished.write_text(json.dumps(result, indent=2))
    unfinished.replace(folder / "result.json")


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


def last_embedding_variance(folder: pathlib.Path) -> float:
    """The embedding variance after the last update."""
    table = np.genfromtxt(folder / "progress.csv", delimiter=",", names=True, deletechars="")
    return float(table["jepa/embedding_variance"][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/paper_configurations"))
    arguments = parser.parse_args()

    runs = {
        arguments.folder / f"configuration{configuration}_{variant}_seed{seed}": make_settings(
            configuration, variant, seed, arguments.timesteps
        )
        for seed in arguments.seeds
        for variant in arguments.variants
        for configuration in arguments.configurations
    }
    run_missing(runs, arguments.jobs)

    print("| configuration | variant | seed | return | embedding variance, first and last update | steps/s |")
    print("|---|---|---|---|---|---|")
    for folder in runs:
        result = json.loads((folder / "result.json").read_text())
        settings = result["settings"]
        print(
            f"| {settings['configuration']} {DESCRIPTIONS[settings['configuration']]} | {settings['variant']} "
            f"| {settings['seed']} | {result['mean_return_of_last_100_episodes']:.1f} "
            f"| {result['first_embedding_variance']:.1e} → {last_embedding_variance(folder):.1e} "
            f"| {result['timesteps'] / result['seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
