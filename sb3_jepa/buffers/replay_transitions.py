"""Transitions of a replay buffer."""

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa.buffers.transitions import Transitions


def sample_transitions(
    buffer: ReplayBuffer,
    batch_size: int,
    env: VecNormalize | None = None,
    horizon: int = 1,
    with_rewards: bool = False,
) -> tuple[ReplayBufferSamples, Transitions]:
    """
    :param buffer: Of any class
    :param batch_size: Number of samples
    :param env: What normalises observations and rewards
    :param horizon: Steps of the window of each sample
    :param with_rewards: Whether the transitions have rewards and ends of episodes
    :return: What the buffer samples, and the transitions that begin with these observations
    """
    samples = buffer.sample(batch_size, env=env)
    # To save memory the buffer forgets the last observation of an episode, and gives the next one's first
    ends = samples.dones.flatten() if buffer.optimize_memory_usage else th.zeros_like(samples.dones).flatten()
    return samples, Transitions(samples.observations, samples.actions, samples.next_observations, 1.0 - ends)
