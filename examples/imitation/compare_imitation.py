"""
ACT-JEPA beside the same without its JEPA, and its ablations, on five tasks of Meta-World at once, from images.

    .venv-metaworld/bin/python examples/imitation/metaworld_tasks.py --folder build/demonstrations
    .venv-metaworld/bin/python examples/imitation/metaworld_tasks.py --seed 1 --episodes 8 --folder build/held_out
    python examples/imitation/compare_imitation.py train --seeds 0 1 2 3 4
    .venv-metaworld/bin/python examples/imitation/compare_imitation.py evaluate --seeds 0 1 2 3 4
    python examples/imitation/compare_imitation.py table

Models learn from 40 demonstrations of each task. Probes are measured on episodes with other starts, and successes in
100 more episodes of each task with yet other starts.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from metaworld_tasks import TASKS, MetaWorldTasks
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_jepa import ACTJEPA, Recordings, load_encoder
from sb3_jepa.common.observations import by_key
from sb3_jepa.data import read
from sb3_jepa.diagnostics.probes import ridge_predictions

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import bootstrap_interval

HORIZON = 30
SETTINGS: dict[str, Any] = dict(horizon=HORIZON, batch_size=64, random_shift=2)
ARMS: dict[str, dict[str, Any]] = {
    "act-jepa": {},
    "chunks": dict(prediction_coef=0.0),
    "raw-state": dict(latent_target="raw_state"),
    "observation": dict(latent_target="observation"),
    "two-stage": dict(prediction_coef=0.0),
    "behavior-cloning": dict(prediction_coef=0.0, horizon=1),
}
# Starts of the evaluation: 50 of each seed
EVALUATION_SEEDS = (1000, 1001)
N_ROWS_OF_PROBES = 6_000


class Spaces(gym.Env):
    """Has spaces, and no steps: what a training from data needs of an environment."""

    def __init__(self, recordings: Recordings):
        self.observation_space, action_space = recordings.observation_space, recordings.action_space
        assert action_space is not None
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return self.observation_space.sample(), {}


def make_model(arm: str, recordings: Recordings, seed: int, **changes: Any) -> ACTJEPA:
    """
    :param arm: Name
    :param recordings: Demonstrations
    :param seed: Seed
    :param changes: Other arguments
    :return: A model that has not learned
    """
    settings = {**SETTINGS, **changes, **ARMS[arm]}
    return ACTJEPA("MultiInputPolicy", DummyVecEnv([lambda: Spaces(recordings)]), seed=seed, **settings)


def first_episodes(recordings: Recordings, n: int) -> Recordings:
    """
    :param recordings: Demonstrations, the tasks in turn
    :param n: How many of each task to take
    :return: The first ones
    """
    kept = recordings.episodes < n * len(TASKS)
    arrays = {key: array[kept] for key, array in by_key(recordings.observations).items()}
    of_steps = {
        name: np.asarray(getattr(recordings, name))[kept] for name in ("actions", "rewards", "terminated", "has_action")
    }
    return Recordings(
        recordings.observation_space,
        arrays,
        recordings.episodes[kept],
        recordings.action_space,
        **of_steps,
    )


def train(
    arm: str, recordings: Recordings, seed: int, n_updates: int, other: Recordings | None, **changes: Any
) -> ACTJEPA:
    """
    :param arm: Name
    :param recordings: Demonstrations
    :param seed: Seed
    :param n_updates: Of each stage
    :param other: Episodes whose actions are not imitated
    :param changes: Other arguments
    :return: A model that has learned
    """
    model = make_model(arm, recordings, seed, **changes)
    arguments: dict[str, Any] = dict(n_updates=n_updates, validation_fraction=0.0)
    if arm == "two-stage":
        first = make_model("act-jepa", recordings, seed, action_coef=0.0, **changes)
        first.learn(recordings, other_episodes=other, **arguments)
        load_encoder(model, first, freeze=True)
        return model.learn(recordings, **arguments)
    return model.learn(recordings, other_episodes=None if ARMS[arm] else other, **arguments)


@th.no_grad()
def embed(model: ACTJEPA, recordings: Recordings, rows: np.ndarray) -> np.ndarray:
    """
    :param model: That has learned
    :param recordings: Whose observations are embedded
    :param rows: Their numbers
    :return: Class token and mean of all tokens, ``(rows, 2 * embed_dim)``
    """
    policy = model.policy
    policy.set_training_mode(False)
    parts = []
    for some in np.array_split(rows, max(1, len(rows) // 256)):
        tensors, _ = policy.obs_to_tensor(recordings.take(some))
        context = policy.context(policy.inputs(tensors))
        parts.append(th.cat((context[:, 0], context.mean(dim=1)), dim=1).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def probe_errors(model: ACTJEPA, training: Recordings, held_out: Recordings) -> dict[str, float]:
    """
    Ridge regression from the frozen encoder to the states of the next steps, fitted on the demonstrations and measured
    on episodes with other starts.

    :param model: That has learned
    :param training: Demonstrations
    :param held_out: Others
    :return: Root mean squared error in deviations of the states, of all steps and of the last one; and the mean
        Euclidean distance between true and read states in metres
    """
    inputs, targets, is_held_out = [], [], []
    for number, recordings in enumerate((training, held_out)):
        assert recordings.has_action is not None
        rows = np.flatnonzero(recordings.has_action)
        if len(rows) > N_ROWS_OF_PROBES:
            rows = np.random.default_rng(0).choice(rows, N_ROWS_OF_PROBES, replace=False)
        taken, exists = recordings.window_rows(rows, HORIZON + 1)
        # Only rows after which as many steps follow
        taken = taken[exists.all(axis=1)]
        inputs.append(embed(model, recordings, taken[:, 0]))
        targets.append(by_key(recordings.take(taken[:, 1:], ["state"]))["state"].astype(np.float64))
        is_held_out.append(np.full(len(taken), number == 1))
    x, y, out = np.concatenate(inputs), np.concatenate(targets), np.concatenate(is_held_out)
    flat = y.reshape(len(y), -1)
    scale = flat[~out].std(axis=0) + 1e-9
    errors = (ridge_predictions(x, flat, out) - flat[out]) / scale
    metres = (errors * scale).reshape(-1, HORIZON, y.shape[2])
    return dict(
        rmse=float(np.sqrt(np.square(errors).mean())),
        rmse_last=float(np.sqrt(np.square(errors.reshape(metres.shape)[:, -1]).mean())),
        distance=float(np.linalg.norm(metres[..., :3], axis=2).mean()),
    )


def evaluate(
    model: ACTJEPA, n_action_steps: int, n_episodes: int, coefficient: float | None = None
) -> dict[str, float]:
    """
    :param model: That has learned
    :param n_action_steps: How many actions of a chunk are executed
    :param n_episodes: Of each task
    :param coefficient: Of temporal ensembling, if that is wanted
    :return: Share of successes of each task
    """
    model.n_action_steps = min(n_action_steps, model.horizon)
    model.temporal_ensemble_coef = coefficient
    render_every = model.n_action_steps if coefficient is None else 1
    successes: dict[str, list[bool]] = {name: [] for name in TASKS}
    for seed in EVALUATION_SEEDS:
        env = MetaWorldTasks(seed=seed, render_every=render_every)
        for _ in range(-(-n_episodes // len(EVALUATION_SEEDS)) * len(TASKS)):
            observation, _ = env.reset()
            state, done, start = None, False, np.ones(1, bool)
            info: dict[str, Any] = {}
            while not done:
                channels_first = dict(observation, image=observation["image"].transpose(2, 0, 1))
                action, state = model.predict(channels_first, state, start, deterministic=True)
                observation, _, terminated, truncated, info = env.step(action)
                done, start = terminated or truncated, np.zeros(1, bool)
            successes[env.names[env.number]].append(info["is_success"])
        env.close()
    return {name: float(np.mean(one)) for name, one in successes.items()}


def cell(values: list[float], digits: int = 3) -> str:
    """
    :param values: One for each seed
    :param digits: After the point
    :return: Mean and 95 % bootstrap interval
    """
    low, high = bootstrap_interval(np.array(values), lambda resampled: resampled.mean(axis=-1))
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_table(folder: pathlib.Path) -> None:
    """
    :param folder: Of results
    """
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/seed*.json")):
        runs.setdefault(path.parent.name, {})[int(path.stem.removeprefix("seed"))] = json.loads(path.read_text())
    if "chunks" in runs:
        print("Probe error of each arm, divided by that of `chunks` with the same seed, minus 1")
    for arm, of_seed in runs.items():
        columns = [cell([run["probe"][name] for run in of_seed.values()]) for name in ("rmse", "distance")]
        base = runs.get("chunks", {})
        pairs = [of_seed[seed]["probe"]["rmse"] / base[seed]["probe"]["rmse"] - 1 for seed in of_seed if seed in base]
        columns.append(cell(pairs) if pairs else "")
        evaluated = sorted({key for run in of_seed.values() for key in run.get("success", {})})
        for key in evaluated:
            means = [
                np.mean(list(run["success"][key].values())) for run in of_seed.values() if key in run.get("success", {})
            ]
            columns.append(f"{key}: {cell([100 * float(mean) for mean in means], 1)}")
        print(f"| {arm} | {' | '.join(columns)} | {len(of_seed)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("train", "evaluate", "table"))
    parser.add_argument("--arms", nargs="+", default=["act-jepa", "chunks"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--demonstrations", type=pathlib.Path, default=pathlib.Path("build/demonstrations"))
    parser.add_argument("--held-out", type=pathlib.Path, default=pathlib.Path("build/held_out"))
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/imitation"))
    parser.add_argument("--updates", type=int, default=4_000)
    parser.add_argument("--episodes", type=int, default=None, help="demonstrations of each task; all by default")
    parser.add_argument("--other", type=pathlib.Path, default=None, help="episodes that are not imitated")
    parser.add_argument("--n-action-steps", nargs="+", type=int, default=[30])
    parser.add_argument("--ensemble", type=float, default=None)
    parser.add_argument("--evaluation-episodes", type=int, default=100, help="of each task")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--changes", default="{}", help="other arguments of ACTJEPA, as JSON")
    arguments = parser.parse_args()
    if arguments.mode == "table":
        return print_table(arguments.folder)
    changes = json.loads(arguments.changes)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            folder = arguments.folder / arm
            result_file = folder / f"seed{seed}.json"
            if arguments.mode == "train" and not result_file.exists():
                training, held_out = read(arguments.demonstrations), read(arguments.held_out)
                other = None if arguments.other is None else read(arguments.other)
                if arguments.episodes is not None:
                    training = first_episodes(training, arguments.episodes)
                start = time.time()
                model = train(arm, training, seed, arguments.updates, other, device=arguments.device, **changes)
                seconds = time.time() - start
                result: dict[str, Any] = dict(probe=probe_errors(model, training, held_out), seconds=seconds)
                model.save(folder / f"seed{seed}")
                result_file.write_text(json.dumps(result))
                print(arm, seed, result, flush=True)
            if arguments.mode == "evaluate" and result_file.exists():
                result = json.loads(result_file.read_text())
                model = ACTJEPA.load(folder / f"seed{seed}", device="cpu")
                for n in arguments.n_action_steps:
                    key = str(n) if arguments.ensemble is None else f"ensemble {arguments.ensemble}"
                    if key in result.setdefault("success", {}):
                        continue
                    result["success"][key] = evaluate(model, n, arguments.evaluation_episodes, arguments.ensemble)
                    result_file.write_text(json.dumps(result))
                    print(arm, seed, key, result["success"][key], flush=True)


if __name__ == "__main__":
    main()
