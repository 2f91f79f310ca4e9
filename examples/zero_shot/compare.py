"""
Zero-shot returns on point mass, cheetah and walker, of TD-JEPA and of what it is to be compared with.

    python examples/zero_shot/collect.py --domain point_mass --policy random
    python examples/zero_shot/compare.py --domain point_mass --arms td-jepa forward-backward --seeds 0 1 2 3 4

Each run learns from the collected episodes, without rewards, and is then given the tasks: a task vector from 10,000
observations and their rewards, computed from the recorded states. Returns are the means over episodes with seeds of
their own, out of 1,000. A run that is finished is not run again.
"""

import argparse
import functools
import json
import pathlib
import time
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import torch as th
from collect import count
from dmc import ACTION_REPEAT, TASKS, ControlEnv, rewards_of
from methods import ARMS, make_model, write_result
from stable_baselines3 import SAC

# Found with seed 100
ORTHONORMALITY = {"point_mass": 1.0, "cheetah": 0.01, "walker": 1.0}
N_INFERENCE, N_ENVS = 10_000, 40


def rewarded_observations(domain: str, folder: pathlib.Path, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """
    :param domain: Of :mod:`dmc`
    :param folder: Of its episodes
    :param seed: Seed of the choice
    :return: Observations that were arrived at, and the rewards of each task for that
    """
    files = sorted(folder.glob("episode_*.npz"))
    rng = np.random.default_rng(seed)
    per_episode = -(-N_INFERENCE // len(files))
    parts: list[tuple[np.ndarray, ...]] = []
    for file in files:
        with np.load(file) as episode:
            steps = np.arange(1, len(episode["observation"]))
            rows = rng.choice(steps, min(per_episode, len(steps)), replace=False)
            parts.append(tuple(episode[name][rows] for name in ("observation", "physics", "action")))
    observations, states, actions = (np.concatenate(part)[:N_INFERENCE] for part in zip(*parts, strict=True))
    return observations, rewards_of(domain, states, actions)


@functools.cache
def evaluation_envs(domain: str) -> list[ControlEnv]:
    """
    :param domain: Of :mod:`dmc`
    :return: Environments, which take longer to make than an episode lasts
    """
    return [ControlEnv(domain) for _ in range(N_ENVS)]


def evaluate(policy: Any, domain: str, tasks: np.ndarray | None, n_episodes: int) -> dict[str, np.ndarray]:
    """
    :param policy: With Stable-Baselines3's ``predict``
    :param domain: Of :mod:`dmc`
    :param tasks: Task vectors ``(tasks, task_dim)`` to act for, each in episodes that start alike; None for a policy
        that has one task
    :param n_episodes: Of each task
    :return: Mean return of each vector, by the name of the reward
    """
    rows = np.repeat(np.arange(1 if tasks is None else len(tasks)), n_episodes)
    returns = {name: np.zeros(len(rows)) for name in TASKS[domain]}
    for first in range(0, len(rows), N_ENVS):
        envs = evaluation_envs(domain)[: len(rows) - first]
        chunk = slice(first, first + len(envs))
        observations = np.stack([env.reset(seed=1_000 + i % n_episodes)[0] for i, env in enumerate(envs, first)])
        if tasks is not None:
            policy.act_for(th.as_tensor(tasks[rows[chunk]], device=policy.device))
        is_over = False
        while not is_over:
            actions, _ = policy.predict(observations, deterministic=True)
            steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
            observations, is_over = np.stack([step[0] for step in steps]), steps[0][3]
            for name, reward in TASKS[domain].items():
                returns[name][chunk] += [ACTION_REPEAT * reward(env.physics) for env in envs]
    if tasks is not None:
        policy.act_for(None)
    return {name: values.reshape(-1, n_episodes).mean(axis=1) for name, values in returns.items()}


def train(arm: str, domain: str, data: pathlib.Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """
    :param arm: Name
    :param domain: Of :mod:`dmc`
    :param data: Folder of its episodes
    :param seed: Seed
    :param options: As given to this script
    :return: What was measured
    """
    settings: dict[str, Any] = {
        "state_orthonormality_coef": ORTHONORMALITY[domain],
        "task_orthonormality_coef": ORTHONORMALITY[domain],
        "device": options.device,
        **json.loads(options.settings),
    }
    model = make_model(arm, ControlEnv(domain), seed, **settings)
    model.set_data(data)
    observations, rewards = rewarded_observations(domain, data, seed)
    curve: dict[int, dict[str, float]] = {}
    seconds = 0.0
    for n_steps in range(options.eval_freq, options.gradient_steps + 1, options.eval_freq):
        start = time.process_time()
        model.learn_offline(None, options.eval_freq, reset_num_timesteps=not curve)
        seconds += time.process_time() - start
        found = {name: model.infer(rewards=values, observations=observations) for name, values in rewards.items()}
        vectors = np.stack([task.vector for task in found.values()])
        returns = evaluate(model.policy, domain, vectors, options.episodes)
        curve[n_steps] = {name: float(returns[name][i]) for i, name in enumerate(found)}
        print(f"{domain} {arm} {seed} {n_steps}: {curve[n_steps]}", flush=True)
    random_returns: dict[str, np.ndarray] = {}
    if options.random_tasks:
        random_vectors = np.stack([model.random_task().vector for _ in range(options.random_tasks)])
        random_returns = evaluate(model.policy, domain, random_vectors, 2)
    return dict(
        returns=curve[max(curve)],
        curve=curve,
        r2={name: None if task.fit is None else task.fit.r2 for name, task in found.items()},
        gauges={name: float(value) for name, value in model.embedding_gauges().items()},
        random_tasks={name: values.tolist() for name, values in random_returns.items()},
        milliseconds_per_update=1_000 * seconds / options.gradient_steps,
        gradient_steps=options.gradient_steps,
        settings={name: repr(value) for name, value in settings.items()},
    )


def train_sac(domain: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """
    :param domain: Of :mod:`dmc`
    :param seed: Seed
    :param options: As given to this script
    :return: The return of an agent for each task, which was trained with its reward
    """
    returns = {}
    for name in TASKS[domain]:
        model = SAC("MlpPolicy", ControlEnv(domain, name, seed=seed), seed=seed, device="cpu", learning_starts=1_000)
        model.learn(options.sac_steps)
        returns[name] = float(evaluate(model, domain, None, options.episodes)[name][0])
        print(f"{domain} sac {seed}: {name} {returns[name]:.1f}", flush=True)
    return dict(returns=returns, timesteps=options.sac_steps)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=TASKS, default="point_mass")
    parser.add_argument("--policy", choices=("random", "novelty"), default="random", help="whose episodes")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, "sac"], default=["td-jepa"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--gradient-steps", type=int, default=30_000)
    parser.add_argument("--eval-freq", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--random-tasks", type=int, default=100, help="how many random vectors are tried")
    parser.add_argument("--sac-steps", type=int, default=50_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--settings", default="{}", help="other arguments of the algorithm, as JSON")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("runs/zero_shot/data"))
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/zero_shot/results"))
    options = parser.parse_args()
    th.set_num_threads(1)
    # A poor fit is in the results
    warnings.filterwarnings("ignore", "The task vector reproduces")
    data = options.data / f"{options.domain}_{options.policy}"
    if count(data) == 0:
        parser.error(f"there are no episodes in {data}: run collect.py first")
    for seed in options.seeds:
        for arm in options.arms:
            path = options.folder / options.domain / arm / f"seed{seed}.json"
            if path.is_file():
                continue
            if arm == "sac":
                result = train_sac(options.domain, seed, options)
            else:
                result = train(arm, options.domain, data, seed, options)
            result["versions"] = {name: version(name) for name in ("sb3-jepa", "torch", "dm-control", "mujoco")}
            write_result(path, result)


if __name__ == "__main__":
    main()
