"""DQN and SAC from pixels: *CnnPolicy*, a JEPA that is trained in turn, and one that is trained jointly.

    python examples/off_policy/train.py --tasks cartpole --seeds 0 1 2
    python examples/off_policy/train.py --tasks pendulum --arms cnn joint --seeds 0 1 2

Each run writes its curves and its settings to a folder of its own. A run that is finished is not run again; one that
was interrupted, or that had other settings, starts again, alone.
"""

import argparse
import pathlib
import sys
from typing import Any

import numpy as np
import stable_baselines3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import sb3_jepa
from sb3_jepa import FrameReplayBuffer, JepaCallback, JepaExtractor

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import ReportSteps, add_run_arguments, make_training_env, run_missing, start_run, train, write_result

# The same for all arms; what is not said is the default of Stable-Baselines3. There is an update of 32 samples for each
# four steps, as rl-baselines3-zoo has it for Atari: a run is to take minutes on one thread
HYPERPARAMETERS: dict[str, Any] = dict(
    learning_rate=5e-4, batch_size=32, buffer_size=50_000, learning_starts=1_024, train_freq=1, gradient_steps=1
)
DQN: dict[str, Any] = dict(
    timesteps=50_000,
    # Raw rewards hide the ends of episodes: their errors are the largest, and DQN's loss cuts off what is above 1
    normalize_reward=True,
    algorithm="DQN",
    hyperparameters=dict(
        HYPERPARAMETERS,
        gamma=0.99,
        # A return of 100 needs as many copies of the target network: each passes it on by one step
        target_update_interval=200,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
    ),
)
TASKS: dict[str, dict[str, Any]] = {
    "cartpole": dict(DQN, environment=dict(env_id="CartPole-v1", n_envs=4)),
    # Each step costs 1 until the goal is reached, which chance does not do for thousands of steps
    "acrobot": dict(DQN, environment=dict(env_id="Acrobot-v1", n_envs=4, screen_size=128)),
    # The picture's size and the discount are those of the reproduction
    "pendulum": dict(
        timesteps=30_000,
        environment=dict(env_id="Pendulum-v1", n_envs=4, screen_size=128),
        normalize_reward=True,
        algorithm="SAC",
        # With a coefficient that starts at 1, entropy counts for more than normalised rewards until it has fallen
        hyperparameters=dict(HYPERPARAMETERS, gamma=0.9, ent_coef="auto_0.05"),
    ),
}


def cnn(alternating: bool = False, random_shift: int = 0) -> dict[str, Any]:
    """
    Stable-Baselines3's ``CnnPolicy`` and algorithm.

    :param alternating: Whether its encoder is a :class:`~sb3_jepa.JepaExtractor`, trained in turn
    :param random_shift: Pixels by which sampled frames are shifted at the most
    """
    return dict(policy="CnnPolicy", alternating=alternating, policy_kwargs={}, **shifted(random_shift))


def joint(random_shift: int = 0, **objective_kwargs: float) -> dict[str, Any]:
    """
    ``sb3_jepa``'s algorithm, whose encoder learns from critic and JEPA in one step.

    :param random_shift: Pixels by which sampled frames are shifted at the most
    :param objective_kwargs: Of the objective
    """
    policy_kwargs = dict(objective_kwargs=objective_kwargs)
    return dict(policy="JepaPolicy", alternating=False, policy_kwargs=policy_kwargs, **shifted(random_shift))


def shifted(pixels: int) -> dict[str, Any]:
    return dict(replay_buffer_kwargs=dict(random_shift=pixels) if pixels else {})


ARMS: dict[str, dict[str, Any]] = {
    "cnn": cnn(),
    "cnn-shift": cnn(random_shift=4),
    "alternating": cnn(alternating=True),
    # The same encoder, with nothing but the critic's loss
    "without-jepa": joint(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0),
    "joint": joint(),
    "joint-shift": joint(random_shift=4),
    "joint-steps-3": joint(steps_ahead=3),
    "joint-steps-5": joint(steps_ahead=5),
}


class EpisodeReturns(BaseCallback):
    """Collect the returns of all episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        self.returns += [float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True


def make_settings(task: str, arm: str, seed: int, timesteps: int | None) -> dict[str, Any]:
    """All that decides what a run computes, beside the defaults of the packages."""
    settings = dict(task=task, arm=arm, seed=seed, **TASKS[task], **ARMS[arm])
    return settings if timesteps is None else {**settings, "timesteps": timesteps}


def make_model(settings: dict[str, Any]) -> OffPolicyAlgorithm:
    """The untrained model of a run, with its environments."""
    package = sb3_jepa if settings["policy"] == "JepaPolicy" else stable_baselines3
    # SB3's algorithms may write into their policy_kwargs
    policy_kwargs = dict(settings["policy_kwargs"])
    if settings["alternating"]:
        policy_kwargs["features_extractor_class"] = JepaExtractor
    return getattr(package, settings["algorithm"])(
        settings["policy"],
        make_training_env(settings, settings["hyperparameters"]["gamma"]),
        seed=settings["seed"],
        device="cpu",
        policy_kwargs=policy_kwargs,
        # It samples what Stable-Baselines3's does, with a fraction of the memory
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs=dict(settings["replay_buffer_kwargs"]),
        **settings["hyperparameters"],
    )


def run(settings: dict[str, Any], folder: pathlib.Path, queue: Any) -> None:
    """Train once. The last thing that is written is ``result.json``: it says that the run is finished."""
    start_run(folder)
    episodes = EpisodeReturns()
    jepa: list[BaseCallback] = [JepaCallback()] if settings["alternating"] else []
    callbacks = [episodes, ReportSteps(queue), *jepa]
    result = train(make_model(settings), settings, folder, callbacks, [*settings["hyperparameters"]], log_interval=10)
    # In proportion to the area under the learning curve, episode by episode
    result["mean_return_of_all_episodes"] = float(np.mean(episodes.returns))
    write_result(folder, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--timesteps", type=int, help="(default: 50,000 with DQN, 30,000 with SAC)")
    add_run_arguments(parser, "runs/off_policy")
    arguments = parser.parse_args()

    # Seed by seed, so that an experiment that is cut off has as many of each arm
    settings = [
        make_settings(task, arm, seed, arguments.timesteps)
        for seed in arguments.seeds
        for task in arguments.tasks
        for arm in arguments.arms
    ]
    run_missing(
        run,
        {arguments.folder / one["task"] / one["arm"] / f"seed{one['seed']}": one for one in settings},
        arguments.jobs,
    )


if __name__ == "__main__":
    main()
