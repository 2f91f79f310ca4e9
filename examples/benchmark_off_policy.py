"""How fast off-policy algorithms train with a JEPA, jointly and in turn, beside Stable-Baselines3's own policies.

    python examples/benchmark_off_policy.py
    python examples/benchmark_off_policy.py --algorithms DQN SAC --inputs pixels

The trainings of an algorithm have one process and take turns, so that whatever else the machine does slows all of them:
what counts are the ratios. All have four environments, and one update of 64 samples whenever each has made a step.
"""

import argparse
import importlib
import time
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch as th
from benchmark_training import spread
from pixel_runs import make_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa import FrameReplayBuffer, JepaCallback, JepaExtractor

N_ENVS, LEARNING_STARTS = 4, 1_024
SETTINGS: dict[str, Any] = dict(
    learning_starts=LEARNING_STARTS,
    buffer_size=10_000,
    batch_size=64,
    train_freq=1,
    gradient_steps=1,
    seed=0,
    device="cpu",
)
# The task of each algorithm, and the side of the picture that it draws (None for its own)
TASKS: dict[str, tuple[str, int | None]] = {
    "DQN": ("CartPole-v1", None),
    "SAC": ("Pendulum-v1", 128),
    "TD3": ("Pendulum-v1", 128),
}
# They need sb3-contrib
CONTRIB_TASKS: dict[str, tuple[str, int | None]] = {"QRDQN": ("CartPole-v1", None), "TQC": ("Pendulum-v1", 128)}
ALL_TASKS = {**TASKS, **CONTRIB_TASKS} if find_spec("sb3_contrib") else TASKS
ARMS = ("stock", "alternating", "joint")


def make_inputs(algorithm: str, inputs: str) -> VecEnv:
    """
    :param algorithm: Its name
    :param inputs: ``"pixels"`` or ``"vector"``
    :return: The environments of its task
    """
    env_id, screen_size = ALL_TASKS[algorithm]
    if inputs == "pixels":
        return make_env(env_id, N_ENVS, seed=0, screen_size=screen_size)
    return make_vec_env(env_id, N_ENVS, seed=0)


def make_model(algorithm: str, inputs: str, arm: str) -> OffPolicyAlgorithm:
    """
    :param algorithm: Its name
    :param inputs: ``"pixels"`` or ``"vector"``
    :param arm: Stable-Baselines3's policy as it is, or one with a JEPA
    """
    package = "sb3_jepa" if arm == "joint" else "sb3_contrib" if algorithm in CONTRIB_TASKS else "stable_baselines3"
    policy = "JepaPolicy" if arm == "joint" else "CnnPolicy" if inputs == "pixels" else "MlpPolicy"
    return getattr(importlib.import_module(package), algorithm)(
        policy,
        make_inputs(algorithm, inputs),
        policy_kwargs=dict(features_extractor_class=JepaExtractor) if arm == "alternating" else {},
        replay_buffer_class=FrameReplayBuffer if inputs == "pixels" else None,
        **SETTINGS,
    )


class Training:
    """
    A training that goes on some steps at a time.

    :param model: To be trained
    :param callback: Of the training
    """

    def __init__(self, model: OffPolicyAlgorithm, callback: JepaCallback | None):
        self.model, self.callback = model, callback
        # Until the inputs are measured, and a little further
        model.learn(LEARNING_STARTS + 16 * N_ENVS, callback=callback)
        self.steps_per_second: list[float] = []

    def go_on(self, steps: int) -> None:
        """
        :param steps: How many, of all environments together
        """
        before, start = self.model.num_timesteps, time.perf_counter()
        self.model.learn(steps, callback=self.callback, reset_num_timesteps=False)
        self.steps_per_second.append((self.model.num_timesteps - before) / (time.perf_counter() - start))


def compare(algorithm: str, inputs: str, arms: list[str], steps: int, repeats: int) -> None:
    """
    Print the steps per second of an algorithm's trainings, and their ratios turn by turn.

    :param algorithm: Its name
    :param inputs: ``"pixels"`` or ``"vector"``
    :param arms: That take turns
    :param steps: Of each turn
    :param repeats: Turns of each arm
    """
    trainings = {
        arm: Training(make_model(algorithm, inputs, arm), JepaCallback() if arm == "alternating" else None)
        for arm in arms
    }
    for _ in range(repeats):
        for training in trainings.values():
            training.go_on(steps)
    for arm, training in trainings.items():
        ratio = ""
        if arm != "stock" and "stock" in trainings:
            pairs = zip(training.steps_per_second, trainings["stock"].steps_per_second, strict=True)
            ratio = f"  / stock: {spread([one / stock for one, stock in pairs])}"
        print(f"{algorithm:6}{inputs:8}{arm:12}{median(training.steps_per_second):6.0f}/s{ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=ALL_TASKS, default=list(ALL_TASKS))
    parser.add_argument("--inputs", nargs="+", choices=("vector", "pixels"), default=["vector", "pixels"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=400, help="of a turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each arm (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    arguments = parser.parse_args()

    th.set_num_threads(arguments.threads)
    print("Steps per second, median; ratios turn by turn: median [smallest, largest]")
    for inputs in arguments.inputs:
        for algorithm in arguments.algorithms:
            compare(algorithm, inputs, arguments.arms, arguments.steps, arguments.repeats)


if __name__ == "__main__":
    main()
