"""What one update of zero-shot learning learns from."""

from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa.buffers.replay_transitions import sample_transitions


class Samples(NamedTuple):
    """
    What the replay buffer gives.

    :param observations: As they are stored
    :param actions: ``(batch, action_dim)``
    :param next_observations: As they are stored
    :param dones: ``(batch, 1)``, 1 where the episode terminated
    :param data_actions: Which actions the data took next, if these count, and where it took one, ``(batch,)``
    """

    observations: Any
    actions: th.Tensor
    next_observations: Any
    dones: th.Tensor
    data_actions: tuple[th.Tensor, th.Tensor] | None = None


class Batch(NamedTuple):
    """
    What one update learns from.

    :param inputs: Preprocessed observations
    :param actions: ``(batch, action_dim)``, or of discrete ones the numbers, ``(batch,)``
    :param next_inputs: Preprocessed next observations
    :param discounts: ``(batch, 1)``, 0 where the episode terminated
    :param tasks: Task vectors ``(batch, task_dim)``
    :param data_actions: Which actions the data took next, if these count, and where it took one, ``(batch,)``
    """

    inputs: Any
    actions: th.Tensor
    next_inputs: Any
    discounts: th.Tensor
    tasks: th.Tensor
    data_actions: tuple[th.Tensor, th.Tensor] | None = None

    @property
    def weights(self) -> th.Tensor | None:
        """``(batch,)``, 0 for what does not count; None if all do."""
        return None if self.data_actions is None else self.data_actions[1]


def draw_samples(
    buffer: ReplayBuffer, batch_size: int, env: VecNormalize | None, with_data_actions: bool = False
) -> Samples:
    """
    :param buffer: Replay buffer
    :param batch_size: Number of samples
    :param env: What normalises observations
    :param with_data_actions: Whether actions that the data took next are wanted
    :return: Samples of the replay buffer
    """
    samples, transitions = sample_transitions(buffer, batch_size, env, horizon=2 if with_data_actions else 1)
    data_actions = None
    if with_data_actions:
        # There is nothing to bootstrap where the episode terminated
        counts = th.maximum(transitions.valid[:, 1], samples.dones.flatten())
        data_actions = transitions.actions[:, 1], counts
    return Samples(samples.observations, samples.actions, samples.next_observations, samples.dones, data_actions)
