"""
Four rooms whose cells look like random codes: does it see how far each cell is, and can it reach any?

    python examples/zero_shot/four_rooms.py --gradient-steps 4000 --arms td-jepa one-step

Scores are discounted returns of the zero-shot policies, for every fourth cell as the goal, from all cells, divided by
those of the best policies. (No goal is told while it learns: it sees episodes from evenly drawn cells.)
"""

import argparse
import pathlib
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from methods import ARMS, make_model, write_result

from sb3_jepa import Recordings

MAP = """
###########
#    #    #
#         #
#    #    #
#    #    #
## ######-#
#    #    #
#    #    #
#         #
#    #    #
###########
""".strip().splitlines()
CELLS = [(row, column) for row, line in enumerate(MAP) for column, mark in enumerate(line) if mark != "#"]
# Up, down, left, right, stay
MOVES = [(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)]
N_CELLS, CODE_DIM, GAMMA, EPISODE_STEPS = len(CELLS), 64, 0.95, 10
# Where each action leads from each cell
NEXT_CELLS = np.array(
    [
        [CELLS.index(to) if (to := (r + dr, c + dc)) in CELLS else cell for dr, dc in MOVES]
        for cell, (r, c) in enumerate(CELLS)
    ]
)
CODES = np.random.default_rng(0).normal(size=(N_CELLS, CODE_DIM)).astype(np.float32)


class FourRooms(gym.Env):
    """
    Observations are the code of the cell that one is in; the reward is 1 in the goal's cell.

    :param goal: Number of a cell; None for rewards of 0
    :param episode_steps: After which an episode is truncated
    """

    def __init__(self, goal: int | None = None, episode_steps: int = EPISODE_STEPS):
        self.observation_space = spaces.Box(-np.inf, np.inf, (CODE_DIM,), np.float32)
        self.action_space = spaces.Discrete(len(MOVES))
        self.goal, self.episode_steps = goal, episode_steps
        self._cell = self._n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin in any cell."""
        super().reset(seed=seed)
        self._cell, self._n_steps = int(self.np_random.integers(N_CELLS)), 0
        return CODES[self._cell], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move, if there is no wall."""
        self._cell = int(NEXT_CELLS[self._cell, int(action)])
        self._n_steps += 1
        return CODES[self._cell], float(self._cell == self.goal), False, self._n_steps >= self.episode_steps, {}


def draw_episodes(n_steps: int, seed: int, drift: float = 0.0) -> Recordings:
    """
    :param n_steps: How many steps, in episodes of 10 that begin in evenly drawn cells
    :param seed: Seed
    :param drift: Which share of the actions goes up or left, whatever the cell; the others are drawn evenly
    :return: What was seen and done
    """
    rng = np.random.default_rng(seed)
    n_episodes = n_steps // EPISODE_STEPS
    cells, all_actions = [rng.integers(N_CELLS, size=n_episodes)], []
    for _ in range(EPISODE_STEPS):
        actions = rng.integers(len(MOVES), size=n_episodes)
        drifting = rng.random(n_episodes) < drift
        actions[drifting] = rng.choice([0, 2], size=int(drifting.sum()))
        all_actions.append(actions)
        cells.append(NEXT_CELLS[cells[-1], actions])
    # At the last observation of an episode nothing is done
    done = np.stack([*all_actions, np.zeros_like(all_actions[0])], axis=1)
    env = FourRooms()
    return Recordings(
        env.observation_space,
        CODES[np.stack(cells, axis=1).ravel()],
        np.repeat(np.arange(n_episodes), EPISODE_STEPS + 1),
        env.action_space,
        done.ravel(),
        has_action=np.tile(np.arange(EPISODE_STEPS + 1) < EPISODE_STEPS, n_episodes),
    )


def returns_of(actions: np.ndarray, goal: int) -> float:
    """
    :param actions: What the policy does in each cell, ``(cells,)``
    :param goal: Number of a cell
    :return: Discounted return, the mean over all cells to start in
    """
    moves = np.zeros((N_CELLS, N_CELLS))
    moves[np.arange(N_CELLS), NEXT_CELLS[np.arange(N_CELLS), actions]] = 1.0
    rewards = moves[:, goal]
    return float(np.linalg.solve(np.eye(N_CELLS) - GAMMA * moves, rewards).mean())


def best_returns(goal: int) -> float:
    """
    :param goal: Number of a cell
    :return: Of the best policy, by value iteration
    """
    values = np.zeros(N_CELLS)
    for _ in range(500):
        q = (goal == NEXT_CELLS) + GAMMA * values[NEXT_CELLS]
        values = q.max(axis=1)
    return float(values.mean())


GOALS = range(0, N_CELLS, 4)
BEST = {goal: best_returns(goal) for goal in GOALS}


def score(model: Any, infer: bool = True) -> float:
    """
    :param model: What has learned
    :param infer: Whether each goal's task is inferred; if not, it is drawn at random
    :return: Return over the best, the mean over goals
    """
    shares = []
    for goal in GOALS:
        rewards = (np.arange(N_CELLS) == goal).astype(np.float32)
        # Each cell ten times: fewer rewarded observations would be warned of
        task = (
            model.infer(rewards=np.repeat(rewards, 10), observations=np.repeat(CODES, 10, axis=0))
            if infer
            else model.random_task()
        )
        actions, _ = model.policy_for(task).predict(CODES, deterministic=True)
        shares.append(returns_of(actions, goal) / BEST[goal])
    return float(np.mean(shares))


SETTINGS: dict[str, Any] = dict(
    gamma=GAMMA,
    state_orthonormality_coef=0.1,
    task_orthonormality_coef=0.1,
    policy_kwargs=dict(task_dim=32),
)


def train(arm: str, seed: int, gradient_steps: int, drift: float, folder: pathlib.Path) -> None:
    """
    Train and evaluate, unless that is done already, and write a result.

    :param arm: Name
    :param seed: Of networks and data
    :param gradient_steps: Number of updates
    :param drift: Of the data
    :param folder: Where to write
    """
    path = folder / arm / f"seed{seed}.json"
    if path.is_file():
        return
    model = make_model(arm, FourRooms(), seed, **SETTINGS)
    start = time.process_time()
    model.learn_offline(draw_episodes(50_000, seed, drift), gradient_steps)
    result = dict(
        score=score(model),
        random_task=score(model, infer=False),
        gauges={name: float(value) for name, value in model.embedding_gauges().items()},
        cpu_seconds=time.process_time() - start,
        gradient_steps=gradient_steps,
        drift=drift,
    )
    write_result(path, result)
    print(f"{arm}, seed {seed}: {result}")


def main() -> None:
    """Train what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--gradient-steps", type=int, default=4_000)
    parser.add_argument("--drift", type=float, default=0.0, help="share of the data's actions that go up or left")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/four_rooms"))
    options = parser.parse_args()
    th.set_num_threads(1)
    for seed in options.seeds:
        for arm in options.arms:
            train(arm, seed, options.gradient_steps, options.drift, options.folder)


if __name__ == "__main__":
    main()
