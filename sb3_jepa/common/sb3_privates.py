"""What this package uses of Stable-Baselines3's private names from outside: a new release breaks one file."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer


def progress_remaining(model: BaseAlgorithm) -> float:
    """From 1 to 0. (At the start of a second ``learn()``, the model's own number is still the first one's.)"""
    return max(0.0, (model._total_timesteps - model.num_timesteps) / max(1, model._total_timesteps))


def n_episodes(model: OffPolicyAlgorithm) -> int:
    """How many episodes have ended."""
    return model._episode_num


def last_observations(model: BaseAlgorithm) -> Any:
    """What the model acts on next; within a step, what it has just acted on."""
    return model._last_obs


def last_observations_as_stored(model: OffPolicyAlgorithm) -> Any:
    """What the model acts on next, as a replay buffer stores it: not normalised."""
    return model._last_obs if model._vec_normalize_env is None else model._last_original_obs


def add_episodes(model: BaseAlgorithm, infos: list[dict[str, Any]]) -> None:
    """Add the infos of the last steps of episodes to the means that are logged."""
    model._update_info_buffer(infos, np.ones(len(infos), dtype=bool))


def last_lstm_states(model: Any) -> Any:
    """The states of a ``RecurrentPPO`` after the last step."""
    return model._last_lstm_states


def set_last_lstm_states(model: Any, states: Any) -> None:
    """Let a ``RecurrentPPO`` go on with these states."""
    model._last_lstm_states = states


def vec_normalize_of(model: BaseAlgorithm) -> VecNormalize | None:
    """What normalises the observations and rewards of the model's environment."""
    return model._vec_normalize_env


def normalize_observations(buffer: BaseBuffer, observations: Any, env: VecNormalize | None) -> Any:
    """Observations of a buffer, which stores them as they were, as a policy is given them."""
    return buffer._normalize_obs(observations, env)


def normalize_rewards(buffer: BaseBuffer, rewards: np.ndarray, env: VecNormalize | None) -> np.ndarray:
    """Rewards of a buffer, which stores them as they were, as an algorithm is given them."""
    return buffer._normalize_reward(rewards, env)


def sample_with_rows(
    buffer: ReplayBuffer, batch_size: int, env: VecNormalize | None
) -> tuple[ReplayBufferSamples, np.ndarray, np.ndarray]:
    """
    What a replay buffer samples, with the random numbers that it always takes, and from which rows and environments,
    each ``(batch,)``. Of a buffer that takes its samples in a way of its own, they are too few.
    """
    noted: list[tuple[np.ndarray, np.ndarray]] = []

    def noting(name: str) -> Any:
        method = getattr(buffer, name)

        def get(rows: np.ndarray, *args: Any, **kwargs: Any) -> Any:
            if name == "_get_samples":
                # The method draws the environments itself, before all else
                state = np.random.get_state()  # noqa: NPY002
                envs = np.random.randint(0, high=buffer.n_envs, size=(len(rows),))  # noqa: NPY002
                np.random.set_state(state)  # noqa: NPY002
            else:
                envs = args[0]
            noted.append((rows, envs))
            return method(rows, *args, **kwargs)

        return get

    of_her = ("_get_real_samples", "_get_virtual_samples")
    wrapped = {name: noting(name) for name in (of_her if isinstance(buffer, HerReplayBuffer) else ("_get_samples",))}
    vars(buffer).update(wrapped)
    try:
        samples = buffer.sample(batch_size, env=env)
    finally:
        for name in wrapped:
            del vars(buffer)[name]
    nothing = np.zeros(0, dtype=np.int64)
    rows, envs = (np.concatenate([nothing, *(pair[index] for pair in noted)]) for index in (0, 1))
    return samples, rows, envs


def wrap_env(env: gym.Env | VecEnv, monitor_wrapper: bool = True) -> VecEnv:
    """As an algorithm makes it: vectorised, and with the channels of images first."""
    return BaseAlgorithm._wrap_env(env, verbose=0, monitor_wrapper=monitor_wrapper)


def best_actions(policy: BasePolicy, observation: PyTorchObs) -> th.Tensor:
    """The deterministic actions of a policy, which may be scaled, for observations ``(batch, *observation shape)``."""
    return policy._predict(observation, deterministic=True)


def observation_space_of(extractor: BaseFeaturesExtractor) -> gym.Space:
    """What a features extractor was made for."""
    return extractor._observation_space
