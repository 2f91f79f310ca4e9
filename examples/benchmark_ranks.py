"""Steps per second of a training in one process, and of one in several.

    python examples/benchmark_ranks.py

All arms take turns, each run in processes of its own, so that whatever else the machine does slows all of them: what
counts are the ratios. Pixel CartPole with PPO's defaults. First the same training for all, whose environments and
minibatches the processes share (8 environments, minibatches of 128 rows); then as much for each process as for one.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from statistics import median

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.envs.pixels import make_pixel_vec_env

N_ENVS, BATCH_SIZE = 8, 128


def measure(n_envs: int, batch_size: int, timesteps: int) -> None:
    """
    In each process of a run.

    :param n_envs: Of this process
    :param batch_size: Of this process
    :param timesteps: To be timed, of all processes
    """
    th.set_num_threads(1)
    env = VecNormalize(make_pixel_vec_env("CartPole-v1", n_envs=n_envs), norm_obs=False)
    # Every update of the same length
    model = PPO(JepaPolicy, env, batch_size=batch_size, target_kl=None, seed=0)
    # Until the inputs are measured, nothing is timed
    model.learn(1_024)
    n_before, start = model.num_timesteps, time.perf_counter()
    model.learn(timesteps, reset_num_timesteps=False)
    rate = (model.num_timesteps - n_before) / (time.perf_counter() - start)
    if os.environ.get("RANK", "0") == "0":
        print(f"{rate:.1f} steps/s")


def run(n_processes: int, n_envs: int, batch_size: int, timesteps: int) -> float:
    """Steps per second of a run of its own."""
    launch = [sys.executable]
    if n_processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    arguments = ["--measure", str(n_envs), str(batch_size), "--timesteps", str(timesteps)]
    output = subprocess.run([*launch, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"^([\d.]+) steps/s$", output, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError(f"The run told no steps per second: {output}")
    return float(found.group(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="of the other arms (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--timesteps", type=int, default=16_384, help="of each run (default: %(default)s)")
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        n_envs, batch_size = arguments.measure
        measure(n_envs, batch_size, arguments.timesteps)
        return

    n = arguments.processes
    if n < 2 or N_ENVS % n != 0:
        parser.error(f"--processes must be 2, 4 or 8, for they share {N_ENVS} environments, got {n}")
    arms = {
        "1 process": (1, N_ENVS, BATCH_SIZE),
        f"{n} processes, the same training": (n, N_ENVS // n, BATCH_SIZE // n),
        f"{n} processes, as much for each": (n, N_ENVS, BATCH_SIZE),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(arguments.repeats):
        for name, work in arms.items():
            rates[name].append(run(*work, arguments.timesteps))
            print(f"{name:36}{rates[name][-1]:8.0f} steps/s", flush=True)
    print("Ratios, run by run: median [smallest, largest]")
    alone, *others = arms
    for name in others:
        ratios = [a / b for a, b in zip(rates[name], rates[alone], strict=True)]
        print(f"{name} / {alone}: {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
