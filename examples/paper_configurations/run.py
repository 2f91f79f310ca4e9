"""The four configurations of *JEPA for RL* (arXiv 2504.16591, figure 3) on pixel CartPole.

    python examples/paper_configurations/run.py --configurations 1 2 3 4 --seeds 0 1 2 --timesteps 100000

Each run writes its curves (``progress.csv``, and for TensorBoard) and its settings to a folder of its own. A run that
is finished is not run again; one that was interrupted starts again, alone.
"""

import argparse
import json
import os
import pathlib
import platform
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
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

# What the four have in common; everything else is the default of sb3_jepa
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


class ReportSteps(BaseCallback):
    """Tell another process how far the training is."""

    def __init__(self, queue: Any):
        super().__init__()
        self.queue = queue

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.queue.put(self.model.n_steps * self.training_env.num_envs)  # type: ignore[attr-defined]


def run(configuration: str, seed: int, timesteps: int, folder: pathlib.Path, queue: Any) -> dict[str, Any]:
    """
    Train one configuration with one seed.

    :return: What is also written to ``result.json`` when the run is finished
    """
    th.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    settings = dict(
        configuration=configuration,
        seed=seed,
        timesteps=timesteps,
        environment=ENVIRONMENT,
        policy_kwargs=CONFIGURATIONS[configuration],
        versions={name: version(name) for name in ("sb3-jepa", "stable-baselines3", "torch", "gymnasium", "numpy")},
        machine=f"{platform.machine()}, {os.cpu_count()} cores, 1 thread for each run",
    )
    (folder / "settings.json").write_text(json.dumps(settings, indent=2))

    env = make_pixel_vec_env(**ENVIRONMENT, seed=seed)
    model = PPO(JepaPolicy, env, seed=seed, device="cpu", policy_kwargs=CONFIGURATIONS[configuration])
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    start = time.perf_counter()
    model.learn(timesteps, callback=ReportSteps(queue))

    assert model.ep_info_buffer is not None
    result = dict(
        mean_return_of_last_100_episodes=float(np.mean([episode["r"] for episode in model.ep_info_buffer])),
        timesteps=model.num_timesteps,
        seconds=round(time.perf_counter() - start, 1),
    )
    # Last, and in one piece: it says that the run is finished
    unfinished = folder / "result.json.unfinished"
    unfinished.write_text(json.dumps(result, indent=2))
    unfinished.replace(folder / "result.json")
    return result


def is_finished(folder: pathlib.Path, timesteps: int) -> bool:
    """Whether the folder holds a finished run of that length."""
    if not (folder / "result.json").exists():
        return False
    return json.loads((folder / "settings.json").read_text())["timesteps"] == timesteps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/paper_configurations"))
    arguments = parser.parse_args()

    runs = {
        (configuration, seed): arguments.folder / f"configuration{configuration}_seed{seed}"
        for seed in arguments.seeds
        for configuration in arguments.configurations
    }
    missing = {key: folder for key, folder in runs.items() if not is_finished(folder, arguments.timesteps)}
    context = get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool,
        tqdm(total=len(runs) * arguments.timesteps, unit="step", unit_scale=True) as bar,
    ):
        bar.update((len(runs) - len(missing)) * arguments.timesteps)
        queue = manager.Queue()
        futures: list[Future] = [
            pool.submit(run, *key, arguments.timesteps, folder, queue) for key, folder in missing.items()
        ]
        while not all(future.done() for future in futures):
            time.sleep(1)
            while not queue.empty():
                bar.update(queue.get())
        for future in as_completed(futures):
            future.result()

    print(f"{'configuration':40s} seed  return  steps/s")
    for (configuration, seed), folder in runs.items():
        result = json.loads((folder / "result.json").read_text())
        name = f"{configuration} {DESCRIPTIONS[configuration]}"
        speed = result["timesteps"] / result["seconds"]
        print(f"{name:40s} {seed:4d} {result['mean_return_of_last_100_episodes']:7.1f} {speed:8.0f}")


if __name__ == "__main__":
    main()
