"""PPO on pixel CartPole from a pretrained encoder, frozen and fine-tuned, against PPO from scratch.

    python examples/pretraining/cartpole.py --seeds 0 1 2

For each seed a random policy is recorded once, and each method pretrains an encoder on that. The recorded steps count:
the curve of a pretrained encoder begins where they end. Each run is a row of cartpole.csv, its curve of "steps:return"
included; what is there already is not run again, and a pretraining that was cut off goes on.
"""

import argparse
import os
import pathlib
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

# One thread for each run, and no window: set before torch and pygame are imported
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import numpy as np
import torch as th
from experiments import FinishedRuns, markdown_table, mean_and_seeds
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_jepa import PPO, DmtJepa, JepaPolicy, MaskedPrediction, load_encoder, pretrain, pretrain_salt
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.pretrain import record_env

KEYS = ("arm", "seed")
METHODS = ("i-jepa", "salt", "dmt-jepa")
# Each use of a pretrained encoder, after the arm that is the same without pretraining
ARMS = ["scratch", *(f"{method}, fine-tuned" for method in METHODS)]
ARMS += ["untrained, frozen", *(f"{method}, frozen" for method in METHODS)]
# Nothing in masked prediction asks a class token to tell states apart. Where it cannot learn that from the rewards, all
# tokens are the features.
OUTPUT = {"frozen": "flat", "fine-tuned": "class_token"}


class ReturnCurve(BaseCallback):
    """Mean return of the last 100 episodes, after each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert self.model.ep_info_buffer is not None
        if self.model.ep_info_buffer:
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            self.points.append((self.num_timesteps, float(np.mean(returns))))


def make_env(seed: int) -> VecEnv:
    """The environments of the README's example."""
    return make_pixel_vec_env("CartPole-v1", n_envs=8, seed=seed)


def pretrained(method: str, seed: int, n_recorded: int, n_updates: int, folder: pathlib.Path) -> pathlib.Path:
    """
    :param method: Of ``METHODS``
    :param seed: Seed
    :param n_recorded: Steps of a random policy
    :param n_updates: Updates of the encoder, the teacher's included
    :param folder: Where recordings and encoders are kept
    :return: The encoder's file
    """
    env = make_env(1_000 + seed)
    recordings = record_env(env, n_recorded, folder / "recordings", seed=1_000 + seed, progress_bar=False)
    env.close()
    # The probe that decides which encoder is kept reads the mean of the tokens
    kwargs: dict[str, Any] = dict(
        features_extractor_kwargs=dict(output="mean"), n_updates=n_updates, seed=seed, device="cpu"
    )
    if method == "salt":
        return pretrain_salt(recordings, folder / method, **kwargs)
    objective_class = DmtJepa if method == "dmt-jepa" else MaskedPrediction
    return pretrain(recordings, folder / method, objective_class, **kwargs)


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """
    :param arm: Of ``ARMS``
    :param seed: Seed
    :param options: The command line's
    :return: A row of the results
    """
    th.set_num_threads(1)
    method, _, use = arm.partition(", ")
    start = time.perf_counter()
    n_recorded, path = 0, None
    if method in METHODS:
        n_recorded = options.recorded
        path = pretrained(method, seed, n_recorded, options.updates, options.folder / f"seed{seed}")
    seconds = time.perf_counter() - start
    env = VecNormalize(make_env(seed), norm_obs=False)
    extractor_kwargs = dict(output=OUTPUT[use or "fine-tuned"], frozen=use == "frozen")
    policy_kwargs = dict(features_extractor_kwargs=extractor_kwargs)
    model = PPO(JepaPolicy, env, policy_kwargs=policy_kwargs, seed=seed, device="cpu")
    if path is not None:
        load_encoder(model, path, freeze=use == "frozen")
    curve = ReturnCurve()
    start = time.perf_counter()
    model.learn(options.timesteps - n_recorded, callback=curve)
    points = [(steps + n_recorded, value) for steps, value in curve.points]
    reached = [steps for steps, value in points if value >= 100]
    return dict(
        arm=arm,
        seed=seed,
        return_halfway=round(next(value for steps, value in points if steps >= options.timesteps / 2), 1),
        return_at_end=round(points[-1][1], 1),
        steps_to_100=reached[0] if reached else "",
        pretraining_seconds=round(seconds),
        ppo_seconds=round(time.perf_counter() - start),
        curve=" ".join(f"{steps}:{value:.1f}" for steps, value in points),
    )


def write_report(folder: pathlib.Path) -> None:
    """
    :param folder: With the results. A table to read and a figure are added.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    runs = FinishedRuns(folder / "cartpole.csv", KEYS).rows
    rows = sorted(runs, key=lambda row: (ARMS.index(row["arm"]), int(row["seed"])))
    lines = []
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        reached = ", ".join(row["steps_to_100"] or "never" for row in of_arm)
        halfway, end = ([float(row[f"return_{when}"]) for row in of_arm] for when in ("halfway", "at_end"))
        lines.append([arm, mean_and_seeds(halfway), mean_and_seeds(end), reached])
        curves = [np.array([point.split(":") for point in row["curve"].split()], dtype=float) for row in of_arm]
        n_points = min(map(len, curves))
        steps, returns = np.stack([curve[:n_points] for curve in curves]).transpose(2, 0, 1)
        is_frozen = arm.endswith("frozen")
        is_baseline = arm in ("scratch", "untrained, frozen")
        (line,) = axes[int(is_frozen)].plot(
            steps[0], returns.mean(axis=0), label=arm, color="black" if is_baseline else None
        )
        axes[int(is_frozen)].fill_between(
            steps[0], returns.min(axis=0), returns.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0
        )
    header = ["encoder", "return halfway", "return at the end", "steps to a return of 100"]
    (folder / "cartpole.md").write_text(markdown_table(header, lines))
    for one, title in zip(axes, ("fine-tuned", "frozen"), strict=True):
        one.set(title=title, xlabel="environment steps, recorded ones included", ylim=(0, None))
        one.legend(loc="upper left")
        one.grid(alpha=0.3)
    axes[0].set_ylabel("mean return of the last 100 episodes")
    figure.savefig(folder / "cartpole.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, default=40_000, help="recorded ones included (default: %(default)s)")
    parser.add_argument("--recorded", type=int, default=8_000, help="steps of a random policy (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=600, help="of an encoder (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/pretraining/cartpole"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pretraining"), help="results")
    options = parser.parse_args()

    runs = FinishedRuns(options.out / "cartpole.csv", KEYS)
    missing = [(arm, seed) for seed in options.seeds for arm in options.arms if not runs.has(arm=arm, seed=seed)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(run, arm, seed, options) for arm, seed in missing]:
            runs.add(**future.result())
    write_report(options.out)


if __name__ == "__main__":
    main()
