"""*JepaPolicy*, the four configurations of *JEPA for RL* (arXiv 2504.16591, figure 3) and *CnnPolicy*, from pixels.

    python examples/reproduction/run.py --arms 1 2 3 4 default --seeds 0 1 2 3 4
    python examples/reproduction/run.py --tasks acrobot pendulum --arms default cnn-ours

Each run writes its curves (``progress.csv``, and for TensorBoard), its models and its settings to a folder of its own.
A run that is finished is not run again; one that was interrupted, or that had other settings, starts again, alone.
"""

import argparse
import pathlib
import sys
from typing import Any

from arms import ARMS, TASKS
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_jepa import PPO, JepaPolicy

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import ReportSteps, add_run_arguments, make_training_env, run_missing, start_run, train, write_result

HYPERPARAMETERS = ("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "target_kl")


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


def make_settings(task: str, arm: str, seed: int, timesteps: int) -> dict[str, Any]:
    """All that decides what a run computes, beside the defaults of the packages."""
    settings = dict(task=task, arm=arm, seed=seed, timesteps=timesteps, environment=TASKS[task]["environment"])
    return {**settings, **ARMS[arm], "ppo": {**ARMS[arm]["ppo"], **TASKS[task]["ppo"]}}


def make_model(settings: dict[str, Any]) -> PPO:
    """The untrained model of a run, with its environments."""
    ppo = dict(settings["ppo"])
    env = make_training_env(settings, ppo.get("gamma", 0.99))
    if "learning_rate_falls" in ppo:
        start, end = ppo.pop("learning_rate_falls")
        ppo["learning_rate"] = LinearSchedule(start, end, 1.0)
    # SB3's algorithms may write into their policy_kwargs
    policy_kwargs = dict(settings["policy_kwargs"])
    return PPO(settings["policy"], env, seed=settings["seed"], device="cpu", policy_kwargs=policy_kwargs, **ppo)


def run(settings: dict[str, Any], folder: pathlib.Path, queue: Any) -> None:
    """Train once. The last thing that is written is ``result.json``: it says that the run is finished."""
    start_run(folder)
    model = make_model(settings)
    checkpoints = CheckpointCallback(settings["timesteps"] // 4 // model.n_envs, str(folder / "models"))
    first_success = FirstSuccess()
    result = train(model, settings, folder, [checkpoints, first_success, ReportSteps(queue)], HYPERPARAMETERS)
    result["first_success"] = first_success.timestep if settings["task"] == "acrobot" else None
    if isinstance(model.policy, JepaPolicy):
        result["first_embedding_variance"] = float(model.policy.gauges["shared"].first_embedding_variance)
    write_result(folder, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["cartpole"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["1", "2", "3", "4", "default"])
    parser.add_argument("--timesteps", type=int, default=100_000)
    add_run_arguments(parser, "runs/reproduction")
    arguments = parser.parse_args()

    run_missing(
        run,
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
