"""What buffers of stacked frames take beside those of Stable-Baselines3: pixel CartPole, played by a random policy.

python examples/benchmark_memory.py
"""

import argparse
import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import numpy as np
import torch as th
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa import FrameReplayBuffer, JepaRolloutBuffer
from sb3_jepa.envs.pixels import make_pixel_vec_env


def play(env: VecEnv, n_steps: int) -> Iterator[tuple[Any, ...]]:
    """Steps of a random policy: observations, next ones, actions, rewards, dones, infos."""
    observations: Any = env.reset()
    for _ in range(n_steps):
        actions = np.array([env.action_space.sample() for _ in range(env.num_envs)])
        new_obs, rewards, dones, infos = env.step(actions)
        yield observations, new_obs, actions, rewards, dones, infos
        observations = new_obs


def fill_rollout(buffer: RolloutBuffer, env: VecEnv, n_steps: int) -> None:
    unknown, episode_starts = th.zeros(env.num_envs), np.ones(env.num_envs)
    for observations, new_obs, actions, rewards, dones, infos in play(env, n_steps):
        if isinstance(buffer, JepaRolloutBuffer):
            buffer.record_step(new_obs, dones, infos)
        buffer.add(observations, actions[:, None], rewards, episode_starts, unknown, unknown)
        episode_starts = dones


def fill_replay(buffer: ReplayBuffer, env: VecEnv, n_steps: int) -> None:
    for observations, new_obs, actions, rewards, dones, infos in play(env, n_steps):
        # What comes after the end of an episode is the next one's first observation: here the algorithm knows better
        next_observations = new_obs.copy()
        for index in np.flatnonzero(dones):
            next_observations[index] = infos[index]["terminal_observation"]
        buffer.add(observations, next_observations, actions, rewards, dones, infos)


def held_bytes(buffer_class: type[BaseBuffer], fill: Callable[..., None], env: VecEnv, n_steps: int) -> int:
    """What a buffer holds when it is full."""
    # A replay buffer counts the steps of all environments, and a rollout buffer those of each
    size = n_steps * env.num_envs if issubclass(buffer_class, ReplayBuffer) else n_steps
    gc.collect()
    tracemalloc.start()
    buffer = buffer_class(size, env.observation_space, env.action_space, "cpu", n_envs=env.num_envs)
    fill(buffer, env, n_steps)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[3, 4], help="stacked (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=512, help="of 8 environments (default: %(default)s)")
    arguments = parser.parse_args()

    for frames in arguments.frames:
        env = make_pixel_vec_env("CartPole-v1", n_envs=8, seed=0, frames=frames)
        for fill, stock, own in (
            (fill_rollout, RolloutBuffer, JepaRolloutBuffer),
            (fill_replay, ReplayBuffer, FrameReplayBuffer),
        ):
            before, after = (held_bytes(buffer_class, fill, env, arguments.steps) for buffer_class in (stock, own))
            print(
                f"{stock.__name__}, {frames} frames: {before / 1e6:.1f} MB, {own.__name__} {after / 1e6:.1f} MB: "
                f"{after / before:.3f}, {after / before * frames:.2f} / {frames}"
            )


if __name__ == "__main__":
    main()
