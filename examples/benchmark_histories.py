"""
What memory costs: the time of one action and the memory of a rollout, with histories of 8 views and without.

    python examples/benchmark_histories.py --repeats 5

Both policies take turns. Vectors are compared with the same encoder of views, without a history.
"""

import argparse
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_jepa import PPO, JepaExtractor, MlpExtractor, SequenceExtractor, SequencePrediction
from sb3_jepa.envs import VecHistory

N_ENVS, LENGTH, N_STEPS = 8, 8, 64
SPACES: dict[str, tuple[Any, type]] = {
    "pixels 1 x 64 x 96": (spaces.Box(0, 255, (1, 64, 96), np.uint8), JepaExtractor),
    "vectors of 16, MlpExtractor": (spaces.Box(-1.0, 1.0, (16,), np.float32), MlpExtractor),
    "vectors of 16, JepaExtractor": (spaces.Box(-1.0, 1.0, (16,), np.float32), JepaExtractor),
}


class Noise(gym.Env):
    """Draws observations, so that no two frames are the same."""

    def __init__(self, observation_space: spaces.Box):
        self.observation_space, self.action_space = observation_space, spaces.Discrete(2)
        rng = np.random.default_rng(0)
        if observation_space.dtype == np.uint8:
            self._drawn = rng.integers(0, 256, (N_STEPS, *observation_space.shape), dtype=np.uint8)
        else:
            self._drawn = rng.uniform(-1, 1, (N_STEPS, *observation_space.shape)).astype(np.float32)
        self._n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin."""
        return self._drawn[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Show the next one."""
        self._n_steps += 1
        return self._drawn[self._n_steps % N_STEPS], 0.0, False, False, {}


def make(space: spaces.Box, extractor: type, with_history: bool) -> tuple[Any, VecEnv]:
    """
    :param space: Of a view
    :param extractor: Encoder of a view
    :param with_history: Whether there is a history
    :return: A model that has not learned, and its environments
    """
    env: VecEnv = DummyVecEnv([lambda: Noise(space)] * N_ENVS)
    policy_kwargs: dict[str, Any] = dict(features_extractor_class=extractor)
    if with_history:
        env = VecHistory(env, LENGTH)
        policy_kwargs = dict(
            features_extractor_class=SequenceExtractor,
            features_extractor_kwargs=dict(view_extractor_class=extractor),
            objective_class=SequencePrediction,
        )
    return PPO("JepaPolicy", env, n_steps=N_STEPS, n_epochs=1, policy_kwargs=policy_kwargs, device="cpu"), env


def time_of_action(model: Any, env: VecEnv) -> float:
    """
    :param model: Whose policy acts
    :param env: Its environments
    :return: Median time of one action of all environments, in milliseconds
    """
    model.policy.set_training_mode(False)
    observations: Any = env.reset()
    times = []
    for step in range(N_STEPS):
        start = time.perf_counter()
        with th.no_grad():
            model.policy(obs_as_tensor(observations, th.device("cpu")))
        times.append(time.perf_counter() - start)
        observations, *_ = env.step(np.full(N_ENVS, step % 2))
    return 1_000 * float(np.median(times[LENGTH:]))


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    th.set_num_threads(1)
    for name, (space, extractor) in SPACES.items():
        (with_history, histories), (without, plain) = (make(space, extractor, one) for one in (True, False))
        pairs = [
            (time_of_action(with_history, histories), time_of_action(without, plain)) for _ in range(options.repeats)
        ]
        ratios = sorted(one / other for one, other in pairs)
        median = ratios[len(ratios) // 2]
        times = " and ".join(f"{milliseconds:.2f} ms" for milliseconds in np.median(pairs, axis=0))
        interval = f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        print(f"{name}: one action takes {median:.2f} {interval} times as long with a history of {LENGTH} ({times})")
        with_history.learn(N_STEPS * N_ENVS)
        stored = with_history.rollout_buffer.observations["views"]
        n_bytes = N_STEPS * N_ENVS * LENGTH * int(np.prod(space.shape)) * np.dtype(space.dtype).itemsize
        print(f"{name}: a rollout's views take {stored.nbytes / n_bytes:.3f} of the memory of copies")


if __name__ == "__main__":
    main()
