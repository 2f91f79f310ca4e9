"""
Collect episodes without rewards, one file each, as ExoRL has them.

    python examples/zero_shot/collect.py --domain point_mass --policy random --episodes 1000
    python examples/zero_shot/collect.py --domain cheetah --policy novelty --episodes 1000

``random`` holds an action for a while and then draws another. ``novelty`` is SAC with a JEPA, rewarded by what its own
predictor did not expect. Episodes that are there are kept: after an interruption ``random`` goes on with those that are
missing, and ``novelty`` with a new agent.
"""

import argparse
import os
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from dmc import TASKS, ControlEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import SAC, VecSurprise

# The chance that a random action is followed by another one
CHANGE = 0.2


class SavedEpisodes(gym.Wrapper):
    """
    Writes each episode that ends to a file of its own.

    :param env: The environment
    :param folder: Where to write
    """

    def __init__(self, env: ControlEnv, folder: pathlib.Path):
        super().__init__(env)
        self._folder, self._control = folder, env
        self._rows: list[tuple[Any, ...]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def reset(self, **kwargs: Any) -> Any:
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        self._rows = [(observation, np.zeros(self.action_space.shape or (), np.float32), 0.0, 1.0, self._state())]
        return observation, info

    def step(self, action: Any) -> Any:
        """Act, and write the episode if it has ended."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._rows.append((observation, action, 0.0, 1.0 - terminated, self._state()))
        if terminated or truncated:
            self._write()
        return observation, reward, terminated, truncated, info

    def _state(self) -> np.ndarray:
        return self._control.physics.get_state()

    def _write(self) -> None:
        number = 0
        while (path := self._folder / f"episode_{number:06d}_{len(self._rows) - 1}.npz").exists():
            number += 1
        names = ("observation", "action", "reward", "discount", "physics")
        columns = zip(*self._rows, strict=True)
        arrays = {name: np.array(column, np.float32) for name, column in zip(names, columns, strict=True)}
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        unfinished.rename(path)


def count(folder: pathlib.Path) -> int:
    """
    :param folder: Of episodes
    :return: How many there are
    """
    return len(list(folder.glob("episode_*.npz")))


def collect_randomly(domain: str, folder: pathlib.Path, n_episodes: int, seed: int) -> None:
    """
    :param domain: Of :mod:`dmc`
    :param folder: Where to write
    :param n_episodes: How many there are to be
    :param seed: Seed
    """
    for number in range(count(folder), n_episodes):
        rng = np.random.default_rng((seed, number))
        env = SavedEpisodes(ControlEnv(domain, seed=int(rng.integers(2**31))), folder)
        env.reset()
        low, high = -1.0, 1.0
        shape = env.action_space.shape
        action, is_over = rng.uniform(low, high, shape), False
        while not is_over:
            if rng.random() < CHANGE:
                action = rng.uniform(low, high, shape)
            is_over = env.step(action.astype(np.float32))[3]


class StopAfterEpisodes(BaseCallback):
    """
    :param folder: Of episodes
    :param n_episodes: How many there are to be
    """

    def __init__(self, folder: pathlib.Path, n_episodes: int):
        super().__init__()
        self._folder, self._n_episodes = folder, n_episodes

    def _on_step(self) -> bool:
        return not any(self.locals["dones"]) or count(self._folder) < self._n_episodes


def collect_novelty(domain: str, folder: pathlib.Path, n_episodes: int, seed: int) -> None:
    """
    :param domain: Of :mod:`dmc`
    :param folder: Where to write
    :param n_episodes: How many there are to be
    :param seed: Seed
    """
    n_there = count(folder)
    if n_there >= n_episodes:
        return
    env = make_vec_env(lambda: SavedEpisodes(ControlEnv(domain), folder), n_envs=4, seed=seed + n_there)
    model = SAC("JepaPolicy", VecSurprise(env, reward_coef=1.0), seed=seed + n_there, learning_starts=2_000)
    model.learn(10**9, callback=StopAfterEpisodes(folder, n_episodes))


def main() -> None:
    """Collect what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=TASKS, default="point_mass")
    parser.add_argument("--policy", choices=("random", "novelty"), default="random")
    parser.add_argument("--episodes", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/zero_shot/data"))
    options = parser.parse_args()
    th.set_num_threads(1)
    folder = options.folder / f"{options.domain}_{options.policy}"
    collect = collect_randomly if options.policy == "random" else collect_novelty
    collect(options.domain, folder, options.episodes, options.seed)
    print(f"{count(folder)} episodes in {folder}")


if __name__ == "__main__":
    main()
