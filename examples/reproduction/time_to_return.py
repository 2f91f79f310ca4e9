"""How long each arm takes until its last 100 episodes return so much on average, against others in the same minutes.

    python examples/reproduction/time_to_return.py --arms default cnn-sb3 --seeds 0 1 2 3 4

Every arm has a process of its own, and they take turns, rollout by rollout: whatever else the machine does slows all of
them. Only an arm's own turns count. Results are written seed by seed; a seed that is finished is not run again.
"""

import argparse
import json
import pathlib
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import torch as th
from arms import ARMS
from run import make_model, make_settings
from stable_baselines3.common.callbacks import BaseCallback

from sb3_jepa.common.files import replace_when_complete


class TakeTurns(BaseCallback):
    """
    After each rollout and what was learned from it, tell how it went, and wait until it is this training's turn again.

    :param connection: To the process that gives the turns
    """

    def __init__(self, connection: Connection):
        super().__init__()
        self.connection = connection
        self.is_first = True

    def _on_training_start(self) -> None:
        self.connection.recv()
        self.start = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if not self.is_first:
            self._report()
            self.connection.recv()
            self.start = time.perf_counter()
        self.is_first = False

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._report()

    def _report(self) -> None:
        episodes = self.model.ep_info_buffer
        mean_return = float(np.mean([episode["r"] for episode in episodes])) if episodes else -np.inf
        self.connection.send((time.perf_counter() - self.start, self.num_timesteps, mean_return))


def train(settings: dict[str, Any], connection: Connection) -> None:
    """One training, in a process of its own."""
    th.set_num_threads(1)
    make_model(settings).learn(settings["timesteps"], callback=TakeTurns(connection))
    connection.send(None)


def compete(arms: list[str], seed: int, wanted: float, timesteps: int) -> dict[str, dict[str, Any]]:
    """
    :param arms: That take turns
    :param seed: Of all of them
    :param wanted: Mean return of the last 100 episodes that ends a training
    :param timesteps: That end it too
    :return: For each arm ``seconds``, ``timesteps`` and ``mean_return`` at its end
    """
    context = get_context("spawn")
    ends = {arm: context.Pipe() for arm in arms}
    processes = {
        arm: context.Process(
            target=train, args=(make_settings("cartpole", arm, seed, timesteps), ends[arm][1]), daemon=True
        )
        for arm in arms
    }
    for process in processes.values():
        process.start()
    results: dict[str, dict[str, Any]] = {arm: dict(seconds=0.0) for arm in arms}
    running = list(arms)
    while running:
        for arm in list(running):
            connection, result = ends[arm][0], results[arm]
            connection.send("go on")
            while not connection.poll(1.0):
                if not processes[arm].is_alive():
                    raise RuntimeError(f"The training of {arm!r} has failed")
            report = connection.recv()
            if report is not None:
                seconds, result["timesteps"], result["mean_return"] = report
                result["seconds"] += seconds
            if report is None or result["mean_return"] >= wanted or result["timesteps"] >= timesteps:
                running.remove(arm)
                processes[arm].kill()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["default", "cnn-sb3", "cnn-sb3-raw-reward"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--wanted", type=float, default=80.0, help="mean return (default: %(default)s)")
    parser.add_argument("--timesteps", type=int, default=100_000, help="at most (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/time_to_return.json"))
    arguments = parser.parse_args()

    finished = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    settings = dict(arms=arguments.arms, wanted=arguments.wanted, timesteps=arguments.timesteps)
    for seed in arguments.seeds:
        if not any(one["settings"] == settings and one["seed"] == seed for one in finished):
            results = compete(arguments.arms, seed, arguments.wanted, arguments.timesteps)
            finished.append(dict(settings=settings, seed=seed, results=results))
            with replace_when_complete(arguments.out) as unfinished:
                unfinished.write_text(json.dumps(finished, indent=2))
    chosen = [one for one in finished if one["settings"] == settings and one["seed"] in arguments.seeds]
    for one in chosen:
        for arm, result in one["results"].items():
            reached = "" if result["mean_return"] >= arguments.wanted else " (not reached)"
            print(f"seed {one['seed']}  {arm:20} {result['seconds']:6.1f} s, {result['timesteps']:6} steps{reached}")
    ours = arguments.arms[0]
    for arm in arguments.arms[1:]:
        ratios = [one["results"][arm]["seconds"] / one["results"][ours]["seconds"] for one in chosen]
        print(f"{arm} / {ours}: time {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
