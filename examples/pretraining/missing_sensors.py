"""Control with sensors that fail: policies that act on what they have, with and without T-JEPA (arXiv 2410.05016).

    python examples/pretraining/missing_sensors.py

CartPole, of which the last four observations are seen: 16 columns. In each episode, each of the four sensors may be
missing; its numbers are NaN then. With positions, velocities can be inferred; where a position is missing, less. All
arms have the same PPO, and the steps of random play that the encoders are pretrained on count as theirs. A run that is
finished is not run again. Needs ``pip install "sb3-jepa[examples,plot]"``.
"""

import argparse
import os
import pathlib
import time
from typing import Any

# Set before torch is imported
os.environ["OMP_NUM_THREADS"] = "1"

import gymnasium as gym
import numpy as np
import torch as th
from experiments import FinishedRuns, markdown_table, mean_and_seeds, values_of
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, FrameStackObservation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

try:
    import matplotlib

    matplotlib.use("agg")

    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError('This example needs matplotlib: pip install "sb3-jepa[plot]"') from error

from sb3_jepa import PPO, Recordings, TJepa, load_encoder, pretrain
from sb3_jepa.pretrain import record_env

LABELS = {
    "zeros": "MlpPolicy, 0 for what is missing",
    "flags": "MlpPolicy, 0 and which are missing",
    "scratch": "JepaPolicy",
    "objective": "JepaPolicy with T-JEPA as objective",
    "finetuned": "pretrained by T-JEPA, learns on",
    "frozen": "pretrained by T-JEPA, frozen",
    "frozen-flat": "pretrained by T-JEPA, frozen, all tokens",
    "untrained-flat": "untrained, frozen, all tokens",
}
PRETRAINED = ("finetuned", "frozen", "frozen-flat")
N_FRAMES, N_ENVS = 4, 8
# The defaults of sb3_jepa.PPO for a JepaPolicy, for all
PPO_KWARGS: dict[str, Any] = dict(
    n_steps=128, batch_size=128, n_epochs=5, learning_rate=LinearSchedule(1e-3, 1e-4, 1.0), target_kl=0.05
)
# Observations that the inputs are standardised by, in all arms
N_MEASURED = 1024
EXTRACTOR = dict(embed_dim=32, num_heads=2, missing_as_nan=True, standardize_frames=N_MEASURED)
# In an encoder that is pretrained, what was recorded counts for that
N_RECORDED = 4096
PREDICTOR = dict(predictor_dim=16, predictor_depth=1, predictor_heads=2)
PROBABILITIES = (0.0, 0.3, 0.5)


class MissingSensors(gym.ObservationWrapper):
    """
    Sensors fail: at the start of each episode some are chosen at random, and their numbers are NaN until its end. At
    least one works.

    :param env: Its observations are vectors, a sensor for each number
    :param probability: That a sensor fails
    """

    def __init__(self, env: gym.Env, probability: float = 0.3):
        super().__init__(env)
        if not 0 <= probability <= 1:
            raise ValueError(f"`probability` must lie in [0, 1], got {probability}")
        if not isinstance(env.observation_space, spaces.Box) or len(env.observation_space.shape) != 1:
            raise ValueError(f"`env` must have vectors as observations, got {env.observation_space}")
        self.probability = probability
        self.is_missing = np.zeros(env.observation_space.shape, dtype=bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.is_missing = self.np_random.random(len(self.is_missing)) < self.probability
        if self.is_missing.all():
            self.is_missing[self.np_random.integers(len(self.is_missing))] = False
        return self.observation(observation), info

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.where(self.is_missing, np.nan, observation).astype(np.float32)


class Zeros(gym.ObservationWrapper):
    """
    What a network needs that knows no missing numbers: all are standardised, and the missing ones are 0.

    :param env: Its observations may be NaN
    :param mean: Of each number
    :param deviation: Of each number
    :param with_flags: Whether to append which are missing
    """

    def __init__(self, env: gym.Env, mean: np.ndarray, deviation: np.ndarray, with_flags: bool):
        super().__init__(env)
        self.mean, self.deviation, self.with_flags = mean, deviation, with_flags
        n_numbers = len(mean) * (1 + with_flags)
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_numbers,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        numbers = np.nan_to_num((observation - self.mean) / self.deviation).astype(np.float32)
        return np.concatenate((numbers, np.isnan(observation)), dtype=np.float32) if self.with_flags else numbers


def make_env(probability: float) -> gym.Env:
    """
    :param probability: That a sensor fails
    :return: CartPole, seen through its last observations
    """
    env = MissingSensors(gym.make("CartPole-v1"), probability)
    return FlattenObservation(FrameStackObservation(env, N_FRAMES))


def make_vec(arm: str, probability: float, seed: int, recordings: Recordings | None = None) -> VecEnv:
    """
    :param arm: Name of the arm
    :param probability: That a sensor fails
    :param seed: Of the environments
    :param recordings: Random play, by which is standardised what is not standardised by a JepaExtractor; None for none
    """

    def make() -> gym.Env:
        env = make_env(probability)
        if recordings is None or arm not in ("zeros", "flags"):
            return env
        numbers = np.asarray(recordings.observations)
        return Zeros(env, np.nanmean(numbers, axis=0), np.nanstd(numbers, axis=0) + 1e-8, arm == "flags")

    return make_vec_env(make, n_envs=N_ENVS, seed=seed)


def make_model(arm: str, env: VecEnv, seed: int, n_updates: int, recordings: Recordings, folder: pathlib.Path) -> PPO:
    """The untrained model of an arm; its encoder may be pretrained."""
    kwargs = dict(PPO_KWARGS, seed=seed, device="cpu")
    # A critic that predicts returns in the hundreds would dominate the gradient of a shared encoder
    env = VecNormalize(env, norm_obs=False)
    if arm in ("zeros", "flags"):
        return PPO("MlpPolicy", env, **kwargs)
    output = "flat" if arm.endswith("flat") else "class_token"
    extractor_kwargs = dict(EXTRACTOR, output=output, frozen=arm == "untrained-flat")
    policy_kwargs: dict[str, Any] = dict(features_extractor_kwargs=extractor_kwargs)
    if arm == "objective":
        policy_kwargs.update(objective_class=TJepa, objective_kwargs=PREDICTOR)
    model = PPO("JepaPolicy", env, policy_kwargs=policy_kwargs, **kwargs)
    if arm in PRETRAINED:
        path = pretrain(
            recordings,
            folder / f"pretrained_seed{seed}",
            TJepa,
            PREDICTOR,
            EXTRACTOR,
            n_updates=n_updates,
            batch_size=64,
            eval_freq=max(1, n_updates // 5),
            seed=seed,
            device="cpu",
        )
        load_encoder(model, path, freeze=arm != "finetuned")
    return model


def mean_return(model: BaseAlgorithm, env: VecEnv, n_episodes: int) -> float:
    """
    :param model: Trained
    :param env: Where to play
    :param n_episodes: How many episodes
    """
    returns, _ = evaluate_policy(model, env, n_eval_episodes=n_episodes)
    env.close()
    return float(np.mean(returns))


def run(arm: str, seed: int, timesteps: int, n_updates: int, n_episodes: int, folder: pathlib.Path) -> dict[str, Any]:
    """One run: its row of results."""
    start = time.perf_counter()
    is_pretrained = arm in PRETRAINED
    n_recorded = min(N_RECORDED, timesteps // 4) if is_pretrained else N_MEASURED
    # All others measure their inputs in the first steps of the training
    counted = n_recorded if is_pretrained or arm in ("zeros", "flags") else 0
    probability = PROBABILITIES[1]
    recordings = record_env(make_vec(arm, probability, seed + 100), n_recorded, seed=seed, progress_bar=False)
    model = make_model(arm, make_vec(arm, probability, seed, recordings), seed, n_updates, recordings, folder)
    model.learn(timesteps - counted)
    assert model.ep_info_buffer is not None
    returns = {
        f"return_{one:g}": mean_return(model, make_vec(arm, one, 10_000 + seed, recordings), n_episodes)
        for one in PROBABILITIES
    }
    return dict(
        arm=arm,
        seed=seed,
        timesteps=timesteps,
        **returns,
        training_return=float(np.mean([episode["r"] for episode in model.ep_info_buffer])),
        seconds=round(time.perf_counter() - start, 1),
    )


def report(rows: list[dict[str, str]], out: pathlib.Path) -> str:
    """Write table and figure of all rows that are there; the table is returned."""
    arms = [arm for arm in LABELS if any(row["arm"] == arm for row in rows)]
    columns = [f"return_{probability:g}" for probability in PROBABILITIES]
    lines = []
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for index, arm in enumerate(arms):
        values = [values_of(rows, column, arm=arm) for column in columns]
        lines.append([LABELS[arm], *map(mean_and_seeds, values)])
        places = np.arange(len(columns)) + (index - (len(arms) - 1) / 2) * 0.11
        axes.bar(places, [one.mean() for one in values], width=0.1, color=f"C{index}", alpha=0.5, label=LABELS[arm])
        for place, one in zip(places, values, strict=True):
            axes.scatter([place] * len(one), one, color=f"C{index}", s=12)
    axes.set_xticks(range(len(columns)), [f"{probability:g}" for probability in PROBABILITIES])
    axes.set_xlabel("probability that a sensor is missing")
    axes.set_ylabel("mean return")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(out / "missing_sensors.png", dpi=80)
    plt.close(figure)
    header = ["arm", *(f"return, {probability:g} missing" for probability in PROBABILITIES)]
    text = markdown_table(header, lines)
    (out / "missing_sensors.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, default=40_000, help="of an arm, all counted (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=500, help="of a pretraining (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=48, help="to evaluate (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/pretraining/missing_sensors"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pretraining"), help="results")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    runs = FinishedRuns(arguments.out / "missing_sensors.csv", ("arm", "seed", "timesteps"))
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if not runs.has(arm=arm, seed=seed, timesteps=arguments.timesteps):
                row = run(arm, seed, arguments.timesteps, arguments.updates, arguments.episodes, arguments.folder)
                runs.add(**row)
    finished = [row for row in runs.rows if row["timesteps"] == str(arguments.timesteps)]
    print(report(finished, arguments.out))


if __name__ == "__main__":
    main()
