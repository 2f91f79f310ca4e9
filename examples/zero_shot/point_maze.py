"""
The point mazes of OGBench (Park et al. 2024, arXiv 2410.20092) with their own five tasks, each from a place to another.

    pip install -e ".[zero-shot]"
    python examples/zero_shot/point_maze.py --paths long --arms td-jepa forward-backward --seeds 0 1 2
    python examples/zero_shot/point_maze.py --paths short

OGBench's package has no script that collects its data, so the episodes are made here: of its shortest-path oracle with
noise, to one goal after the other (``long``), or in episodes of so few steps that no one shows a way from a task's
start to its goal (``short``: the way has to be stitched). A goal is told by its observation. ``random-actions`` is what
an untrained agent does.
"""

import argparse
import json
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import ogbench  # noqa: F401
import torch as th
from methods import ARMS, make_model, write_result
from stable_baselines3.common.utils import set_random_seed

from sb3_jepa import TDJEPA, Recordings

# An action lasts five steps, so that it matters
ACTION_REPEAT, MAX_ACTIONS = 5, 200
EPISODE_ACTIONS = {"long": 200, "short": 16}
N_TASKS, NOISE = 5, 0.5


class RepeatedActions(gym.Wrapper):
    """Each action lasts for five steps, or until the goal is reached."""

    def step(self, action: np.ndarray) -> Any:
        """Act."""
        for _ in range(ACTION_REPEAT):
            observation, reward, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                break
        return np.asarray(observation, np.float32), reward, terminated, truncated, info

    def reset(self, **kwargs: Any) -> Any:
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        return np.asarray(observation, np.float32), info


def make_maze(size: str, ends_at_goal: bool = True) -> gym.Env:
    """
    :param size: ``"medium"``, ``"large"`` or ``"giant"``
    :param ends_at_goal: Whether an episode ends there
    :return: A maze whose observations are of 32 bits
    """
    env = gym.make(f"pointmaze-{size}-v0", terminate_at_goal=ends_at_goal)
    space: Any = env.observation_space
    cast = gym.wrappers.TransformObservation(
        env, lambda observation: observation, gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    )
    return RepeatedActions(cast)


def collect(size: str, paths: str, n_transitions: int, seed: int) -> Recordings:
    """
    :param size: Of the maze
    :param paths: ``"long"`` or ``"short"``
    :param n_transitions: How many, of five steps each
    :param seed: Seed
    :return: Episodes of the oracle
    """
    env, rng = make_maze(size, ends_at_goal=False), np.random.default_rng(seed)
    maze: Any = env.unwrapped
    # OGBench draws from NumPy's global generator
    set_random_seed(seed)
    free = [maze.ij_to_xy(cell) for cell in np.argwhere(maze.maze_map == 0)]
    length = EPISODE_ACTIONS[paths]
    observations, actions = [], []
    for number in range(n_transitions // length):
        env.reset(seed=seed + number, options=dict(task_id=1))
        maze.set_xy(free[rng.integers(len(free))] + rng.uniform(-1, 1, 2))
        goal, observation = free[rng.integers(len(free))], maze.get_ob()
        for _ in range(length):
            position = maze.get_xy()
            if np.linalg.norm(position - goal) < 1.0:
                goal = free[rng.integers(len(free))]
            direction = maze.get_oracle_subgoal(position, goal)[0] - position
            action = direction / max(float(np.linalg.norm(direction)), 1e-6) + rng.normal(0.0, NOISE, 2)
            action = np.clip(action, -1.0, 1.0).astype(np.float32)
            observations.append(np.asarray(observation, np.float32))
            actions.append(action)
            observation = env.step(action)[0]
        observations.append(np.asarray(observation, np.float32))
        actions.append(np.zeros(2, np.float32))
    n_episodes = len(observations) // (length + 1)
    has_action = np.tile(np.arange(length + 1) < length, n_episodes)
    number_of_episode = np.repeat(np.arange(n_episodes), length + 1)
    return Recordings(
        env.observation_space,
        np.stack(observations),
        number_of_episode,
        env.action_space,
        np.stack(actions),
        has_action=has_action,
    )


def run_tasks(model: TDJEPA, size: str, n_episodes: int) -> tuple[dict[str, float], dict[str, list[np.ndarray]]]:
    """
    :param model: What has learned, or has not and then acts at random
    :param size: Of the maze
    :param n_episodes: Of each task
    :return: In how many of a hundred episodes each task's goal was reached within 1,000 steps, and the first episode's
        path, with the goal as its last place
    """
    env = make_maze(size)
    rates: dict[str, float] = {}
    paths: dict[str, list[np.ndarray]] = {}
    for task_id in range(1, N_TASKS + 1):
        n_successes = 0
        for episode in range(n_episodes):
            set_random_seed(1_000 + episode)
            observation, info = env.reset(seed=1_000 + episode, options=dict(task_id=task_id))
            env.action_space.seed(1_000 + episode)
            goal, path = info["goal"].astype(np.float32), [observation]
            policy = model.policy_for(model.infer(goal=goal)) if model.has_learned else None
            for _ in range(MAX_ACTIONS):
                action = (
                    env.action_space.sample() if policy is None else policy.predict(path[-1], deterministic=True)[0]
                )
                observation, _, terminated, truncated, info = env.step(action)
                path.append(observation)
                if terminated or truncated:
                    break
            n_successes += int(info["success"])
            paths.setdefault(f"task{task_id}", [*path, goal])
        rates[f"task{task_id}"] = 100 * n_successes / n_episodes
    return rates, paths


def draw(model: TDJEPA, paths: dict[str, list[np.ndarray]], file: pathlib.Path) -> None:
    """
    :param model: What has learned
    :param paths: Of each task, with the goal as its last place
    :param file: Where to write what each task vector wants of the places in the data, and the way that its policy goes
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(paths), 3), dpi=100, layout="constrained")
    places = model.inference_sample()
    for axes, (name, path) in zip(figure.subplots(1, len(paths)), paths.items(), strict=True):
        wanted = model.predicted_rewards(model.infer(goal=path[-1]), places)
        axes.scatter(*places.T, c=wanted, s=3, cmap="viridis")
        axes.plot(*np.array(path[:-1]).T, color="white", linewidth=2.5)
        axes.plot(*np.array(path[:-1]).T, color="#cc3311", linewidth=1.2)
        axes.plot(*path[0], "o", color="#cc3311", markeredgecolor="white")
        axes.plot(*path[-1], "*", color="#cc3311", markeredgecolor="white", markersize=14)
        axes.set_title(name)
        axes.set_aspect("equal")
        axes.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("medium", "large", "giant"), default="medium")
    parser.add_argument("--paths", choices=EPISODE_ACTIONS, default="long")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, "random-actions"], default=["td-jepa"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--transitions", type=int, default=100_000)
    parser.add_argument("--gradient-steps", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--picture", type=pathlib.Path, help="file for what the last model's task vectors want")
    parser.add_argument("--settings", default="{}", help="other arguments of the algorithm, as JSON")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/zero_shot/point_maze"))
    options = parser.parse_args()
    th.set_num_threads(1)
    for seed in options.seeds:
        missing = {
            arm: path
            for arm in options.arms
            if not (path := options.folder / f"{options.size}_{options.paths}" / arm / f"seed{seed}.json").is_file()
        }
        data = collect(options.size, options.paths, options.transitions, seed) if missing else None
        for arm, path in missing.items():
            changes = json.loads(options.settings)
            model = make_model(arm if arm in ARMS else "td-jepa", make_maze(options.size), seed, **changes)
            if arm in ARMS:
                model.learn_offline(data, options.gradient_steps)
            rates, paths = run_tasks(model, options.size, options.episodes)
            if options.picture is not None and arm in ARMS:
                draw(model, paths, options.picture)
            print(f"{options.size} {options.paths} {arm} {seed}: {rates}", flush=True)
            write_result(path, dict(returns=rates, gradient_steps=options.gradient_steps))


if __name__ == "__main__":
    main()
