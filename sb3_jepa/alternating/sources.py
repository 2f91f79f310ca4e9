"""Where the transitions come from that encoders learn from in turn with an algorithm."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.her import HerReplayBuffer

from sb3_jepa.buffers.replay_transitions import sample_transitions
from sb3_jepa.buffers.rollout import NextObservationIndex
from sb3_jepa.buffers.transitions import Transitions
from sb3_jepa.common.actions import forget_graphs
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.sb3_privates import normalize_observations, vec_normalize_of
from sb3_jepa.extractors.preprocessing import takes_nan


class RolloutSource:
    """Minibatches of the latest rollout of an on-policy algorithm."""

    def __init__(self, model: OnPolicyAlgorithm):
        self.model = model
        self._next: NextObservationIndex | None = None
        self.is_ready = False

    def on_step(self, row_locals: dict[str, Any]) -> None:
        """Note what a step led to, before it is added to the buffer."""
        if self.model.use_sde:
            # New noise comes with a graph
            forget_graphs(self.model.policy)
        buffer = self.model.rollout_buffer
        if self._next is None or buffer.pos == 0:
            self._next = NextObservationIndex(buffer.buffer_size, buffer.n_envs)
        self._next.record_step(
            buffer.pos,
            buffer.observations,
            *(row_locals[name] for name in ("new_obs", "dones", "infos", "rewards")),
        )

    def on_rollout_end(self) -> None:
        """Keep the rollout: the algorithm is about to learn from it, and to forget it then."""
        buffer = self.model.rollout_buffer
        assert self._next is not None
        self._next.link(buffer.observations, buffer.episode_starts, takes_nan(self.model.policy))
        # No copies of the arrays: the buffer's next reset makes new ones
        self._observations = dict(by_key(buffer.observations))
        self._actions = buffer.actions
        self.is_ready = True

    def minibatches(
        self, n_updates: int | None, batch_size: int, horizon: int = 1, with_rewards: bool = False
    ) -> Iterator[Transitions]:
        """
        :param n_updates: Number of minibatches; by default one pass over the rollout
        :param batch_size: Size of a minibatch
        :param horizon: Number of steps from each row on; for more than 1, windows of them
        :param with_rewards: Whether the transitions have rewards and ends of episodes
        :return: Every row once before any of them twice
        """
        assert self._next is not None
        flatten = RolloutBuffer.swap_and_flatten
        observations = {key: flatten(array) for key, array in self._observations.items()}
        actions, device = flatten(self._actions), self.model.device
        n_rows = len(actions)
        batch_size = min(batch_size, n_rows)
        order = np.zeros(0, dtype=np.int64)
        for _ in range(-(-n_rows // batch_size) if n_updates is None else n_updates):
            if len(order) < batch_size:
                # The generator that Stable-Baselines3 seeds
                order = np.concatenate((order, np.random.permutation(n_rows)))  # noqa: NPY002
            rows, order = order[:batch_size], order[batch_size:]
            taken = {key: array[rows] for key, array in observations.items()}
            ahead = self._next.look_ahead(rows, horizon, with_rewards)
            rewards, ends = (
                None if outcomes is None else th.as_tensor(outcomes, device=device)
                for outcomes in (ahead.rewards, ahead.ends)
            )
            yield Transitions(
                obs_as_tensor(as_observations(taken), device),
                th.as_tensor(actions[ahead.rows], dtype=th.float32, device=device),
                obs_as_tensor(self._next.take(observations, ahead.rows.flatten()), device),
                th.as_tensor(ahead.valid, device=device),
                rewards=rewards,
                ends=ends,
            )
        self.is_ready = False


class ReplaySource:
    """Minibatches of the replay buffer of an off-policy algorithm."""

    def __init__(self, model: OffPolicyAlgorithm):
        self.model = model
        self._n_new_steps = self._n_rollout_steps = 0
        self._is_new = False

    @property
    def is_ready(self) -> bool:
        """Whether there is a new rollout, and the algorithm itself learns already."""
        return self._is_new and self.has_samples

    @property
    def has_samples(self) -> bool:
        """Whether the algorithm itself learns already, from samples that there are."""
        buffer = self.model.replay_buffer
        # That of a model that was loaded is empty, and one for goals in hindsight needs an episode that has ended
        has_samples = buffer is not None and buffer.size() > 0
        if has_samples and isinstance(buffer, HerReplayBuffer):
            has_samples = bool((buffer.ep_length > 0).any())
        return has_samples and self.model.num_timesteps > self.model.learning_starts

    def latest(self, n_observations: int) -> Any:
        """
        :param n_observations: How many observations are wanted
        :return: The latest ones, as many as there are, ``(samples, *observation shape)``
        """
        buffer = self.model.replay_buffer
        assert isinstance(buffer, ReplayBuffer)
        n_rows = min(buffer.size(), -(-n_observations // buffer.n_envs))
        rows = np.arange(buffer.pos - n_rows, buffer.pos)
        arrays = {key: np.concatenate(array[rows]) for key, array in by_key(buffer.observations).items()}
        return normalize_observations(buffer, as_observations(arrays), vec_normalize_of(self.model))

    def on_step(self, row_locals: dict[str, Any]) -> None:
        """Count. The replay buffer knows next observations."""
        if self.model.use_sde:
            forget_graphs(self.model.policy)
        self._n_new_steps += self.model.n_envs

    def on_rollout_end(self) -> None:
        """Note how long the rollout was. The replay buffer forgets nothing."""
        self._n_rollout_steps, self._n_new_steps = self._n_new_steps, 0
        self._is_new = True

    def minibatches(
        self, n_updates: int | None, batch_size: int, horizon: int = 1, with_rewards: bool = False
    ) -> Iterator[Transitions]:
        """
        :param n_updates: Number of minibatches; by default the algorithm's ``gradient_steps``
        :param batch_size: Size of a minibatch
        :param horizon: Number of steps from each row on; for more than 1, windows of them
        :param with_rewards: Whether the transitions have rewards and ends of episodes
        :return: Minibatches, each drawn with replacement
        """
        buffer = self.model.replay_buffer
        assert isinstance(buffer, ReplayBuffer)
        if n_updates is None:
            # Negative for as many as there were steps, as in Stable-Baselines3
            n_updates = self.model.gradient_steps if self.model.gradient_steps >= 0 else self._n_rollout_steps
        for _ in range(n_updates):
            yield sample_transitions(buffer, batch_size, vec_normalize_of(self.model), horizon, with_rewards)[1]
        self._is_new = False
