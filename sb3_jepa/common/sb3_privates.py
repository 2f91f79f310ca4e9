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


def progress_remaining(model: BaseAlgorithm) -> float:
    """
    :param model: That is being trained
    :return: From 1 to 0. (At the start of a second ``learn()``, the model's own number is still the first one's.)
    """
    return max(0.0, (model._total_timesteps - model.num_timesteps) / max(1, model._total_timesteps))


def n_episodes(model: OffPolicyAlgorithm) -> int:
    """
    :param model: That is being trained
    :return: How many episodes have ended
    """
    return model._episode_num


def last_observations(model: BaseAlgorithm) -> Any:
    """
    :param model: That is being trained
    :return: What it acts on next, or has just acted on
    """
    return model._last_obs


def add_episodes(model: BaseAlgorithm, infos: list[dict[str, Any]]) -> None:
    """
    :param model: That is being trained
    :param infos: Of the last steps of episodes, for the means that are logged
    """
    model._update_info_buffer(infos, np.ones(len(infos), dtype=bool))


def last_lstm_states(model: Any) -> Any:
    """
    :param model: A ``RecurrentPPO``
    :return: The states of its LSTM after the last step
    """
    return model._last_lstm_states


def set_last_lstm_states(model: Any, states: Any) -> None:
    """
    :param model: A ``RecurrentPPO``
    :param states: With which it goes on
    """
    model._last_lstm_states = states


def vec_normalize_of(model: BaseAlgorithm) -> VecNormalize | None:
    """
    :param model: Of any algorithm
    :return: What normalises the observations and rewards of its environment
    """
    return model._vec_normalize_env


def normalize_observations(buffer: BaseBuffer, observations: Any, env: VecNormalize | None) -> Any:
    """
    :param buffer: That stores observations as they were
    :param observations: Some of them
    :param env: What normalises them, if anything does
    :return: As a policy is given them
    """
    return buffer._normalize_obs(observations, env)


def samples_of_one_step(buffer: ReplayBuffer, rows: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
    """
    :param buffer: Which may be an ``NStepReplayBuffer``
    :param rows: Of it
    :param env: What normalises the samples, if anything does
    :return: Samples whose next observation is a single step away
    """
    return ReplayBuffer._get_samples(buffer, rows, env)


def wrap_env(env: gym.Env | VecEnv, monitor_wrapper: bool = True) -> VecEnv:
    """
    :param env: An environment, or several
    :param monitor_wrapper: Whether a single one gets a ``Monitor``
    :return: As an algorithm would make it: vectorised, and with the channels of images first
    """
    return BaseAlgorithm._wrap_env(env, verbose=0, monitor_wrapper=monitor_wrapper)


def best_actions(policy: BasePolicy, observation: PyTorchObs) -> th.Tensor:
    """
    :param policy: Of any algorithm
    :param observation: ``(batch, *observation shape)``
    :return: Its deterministic actions, which may be scaled
    """
    return policy._predict(observation, deterministic=True)


def observation_space_of(extractor: BaseFeaturesExtractor) -> gym.Space:
    """
    :param extractor: Any
    :return: What it was made for
    """
    return extractor._observation_space
