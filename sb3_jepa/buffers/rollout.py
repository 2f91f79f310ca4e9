"""Rollout buffers that know what came next, and store stacked frames once."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa.buffers.frames import FrameStacks, has_frames
from sb3_jepa.buffers.transitions import Transitions
from sb3_jepa.common.next_observations import has_terminated, terminal_observation
from sb3_jepa.common.observations import as_observations, by_key

# Next observations that are embedded at once, if their targets are kept
TARGET_BATCH_SIZE = 512


class StepsAhead(NamedTuple):
    """
    Of some rows of a rollout, the steps from there on: ``(batch,)`` for a horizon of 1, else ``(batch, horizon)``.

    :param rows: Of these steps; from the end of the episode or of the rollout on, the last row again
    :param valid: 1 where the next observation belongs to the same episode and is known, else 0
    :param rewards: What the steps brought, 0 after the end of the episode; None unless they are asked for and known
    :param ends: 1 where the step ended its episode, and not for want of time; None unless they are asked for and known
    """

    rows: np.ndarray
    valid: np.ndarray
    rewards: np.ndarray | None
    ends: np.ndarray | None


class NextObservationIndex:
    """
    Finds what came after each step of a rollout.

    The next observation is the next row, except where an episode ends (the true last observation, terminal or
    truncated) and in the last row. Only these are stored a second time. A pair never crosses the border of an episode.

    :param n_steps: Steps of the rollout in each environment
    :param n_envs: Number of parallel environments
    """

    def __init__(self, n_steps: int, n_envs: int):
        self.n_steps, self.n_envs = n_steps, n_envs
        self._stored_observations: list[dict[str, Any]] = []
        # Where the next observation of a row is stored; -1: it is not, being the next row
        self._stored_index = np.full((n_steps, n_envs), -1, dtype=np.int64)
        self._last_observations: Any = None
        # Rewards and ends of episodes, (2, steps, environments)
        self._outcomes: np.ndarray | None = None

    def record_step(
        self,
        row: int,
        observations: Any,
        new_obs: Any,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
        rewards: np.ndarray | None = None,
    ) -> None:
        """
        Note what a step led to.

        :param row: Number of the step
        :param observations: Of the rollout so far, ``(steps, environments, *observation shape)``
        :param new_obs: Observations after the step; where an episode ended, the first of the next one
        :param dones: Whether the step ended an episode
        :param infos: With the key ``"terminal_observation"`` where the step ended an episode
        :param rewards: What the step brought; None if that is not to be learned from
        """
        if rewards is not None:
            if self._outcomes is None:
                self._outcomes = np.zeros((2, self.n_steps, self.n_envs), dtype=np.float32)
            # Copy them: Stable-Baselines3 adds the value of what was truncated to the same array
            self._outcomes[:, row] = rewards, has_terminated(dones, infos)
        for env_index in np.flatnonzero(dones).tolist():
            last = terminal_observation(True, infos[env_index])
            if last is not None:
                self._stored_index[row, env_index] = len(self._stored_observations)
                self._store(observations, env_index, last)
        self._last_observations = new_obs
        self._last_dones = dones

    def _store(self, observations: Any, env_index: int, observation: Any) -> None:
        stored = dict(by_key(observation))
        for key, array in by_key(observations).items():
            if isinstance(array, FrameStacks):
                stored[key] = array.share(env_index, stored[key])
        self._stored_observations.append(stored)

    def link(self, observations: Any, episode_starts: np.ndarray, takes_nan: bool = False) -> None:
        """
        Number every row's next observation as a rollout buffer flattens the rows, and the stored ones after them.

        :param observations: Of the rollout, ``(steps, environments, *observation shape)``
        :param episode_starts: ``(steps, environments)``
        :param takes_nan: Whether NaN is a value like others
        :raises ValueError: If a last observation of an episode contains infinite values, or NaN
        """
        n_rows = self.n_steps * self.n_envs
        # Environment by environment, as swap_and_flatten() does
        row_index = np.arange(n_rows).reshape(self.n_envs, self.n_steps).T
        stored_index = self._stored_index
        is_last_of_episode = np.zeros((self.n_steps, self.n_envs), dtype=bool)
        is_last_of_episode[:-1] = episode_starts[1:] > 0
        is_last_of_episode[-1] = True
        if self._last_observations is not None:
            for env_index in np.flatnonzero(~self._last_dones.astype(bool)).tolist():
                stored_index[-1, env_index] = len(self._stored_observations)
                last = {key: array[env_index] for key, array in by_key(self._last_observations).items()}
                self._store(observations, env_index, last)
            self._last_observations = None
        is_stored = stored_index >= 0
        is_unknown = is_last_of_episode & ~is_stored
        next_index = np.where(is_stored, n_rows + stored_index, np.where(is_unknown, row_index, row_index + 1))
        self._next_index = RolloutBuffer.swap_and_flatten(next_index).flatten()
        # The last row of the episode, in this rollout, that a row belongs to
        last_rows = np.flatnonzero(RolloutBuffer.swap_and_flatten(is_last_of_episode))
        self._last_row = last_rows[np.searchsorted(last_rows, np.arange(n_rows))]
        if self._outcomes is not None:
            self._outcomes = np.stack([RolloutBuffer.swap_and_flatten(array).flatten() for array in self._outcomes])
        # 1 where the next observation is known
        self.valid = 1.0 - RolloutBuffer.swap_and_flatten(is_unknown).flatten().astype(np.float32)
        self._stored_arrays = {}
        for key, array in by_key(observations).items():
            rows = [observation[key] for observation in self._stored_observations]
            stored: Any = (
                array.collect(rows)
                if isinstance(array, FrameStacks)
                else np.array(rows, array.dtype).reshape(-1, *array.shape[2:])
            )
            # The policy sees all the others when it acts, and objects to them there
            if array.dtype.kind == "f" and not (np.isfinite(stored) | (takes_nan & np.isnan(stored))).all():
                raise ValueError(
                    "The last observations of episodes contain NaN or infinite values; check the environment"
                )
            self._stored_arrays[key] = stored

    def take(self, observations: Any, batch_inds: np.ndarray) -> Any:
        """
        :param observations: Of the rollout, flattened: ``(steps * environments, *observation shape)``
        :param batch_inds: Some rows of them
        :return: The next observations of these rows
        """
        next_index = self._next_index[batch_inds]
        is_stored = next_index >= len(self._next_index)
        row_index = np.where(is_stored, batch_inds, next_index)
        stored_index = next_index[is_stored] - len(self._next_index)
        taken = {}
        for key, array in by_key(observations).items():
            taken[key] = array[row_index]
            taken[key][is_stored] = self._stored_arrays[key][stored_index]
        return as_observations(taken)

    def look_ahead(self, batch_inds: np.ndarray, horizon: int, with_rewards: bool) -> StepsAhead:
        """
        :param batch_inds: Some rows, ``(batch,)``
        :param horizon: Number of steps from each of them on
        :param with_rewards: Whether rewards and ends of episodes are asked for
        :return: These steps, and which of them belong to the row's episode
        """
        rows, is_inside = batch_inds, np.ones(batch_inds.shape, dtype=bool)
        if horizon > 1:
            last = self._last_row[batch_inds][:, None]
            rows = batch_inds[:, None] + np.arange(horizon)
            rows, is_inside = np.minimum(rows, last), rows <= last
        outcomes: Any = (None, None)
        if with_rewards and self._outcomes is not None:
            outcomes = self._outcomes[:, rows] * is_inside
        return StepsAhead(rows, self.valid[rows] * is_inside, *outcomes)


class NextObservations(RolloutBuffer):
    """
    Makes the samples of a rollout buffer carry the next observation of every step, in the place of the observations: a
    :class:`Transitions`, which :class:`~sb3_jepa.JepaPolicy` unpacks.

    The ends of episodes and of the rollout are reported by :class:`~sb3_jepa.JepaCallback`; without it these rows are
    marked as not valid.

    The frames of stacked images are stored once, see :class:`~sb3_jepa.frames.FrameStacks`: ``observations[rows]`` and
    ``numpy.asarray(observations)`` are arrays, and ``observations`` itself is none. Target embeddings are kept,
    if they are not to be computed for every minibatch: the buffer is told how in ``embed_targets``.
    """

    # From next observations to their target embeddings by the name of the encoder; None to leave that to the policy
    embed_targets: Callable[[PyTorchObs], dict[str, th.Tensor]] | None = None
    # Whether NaN in an observation is a value like others
    takes_nan = False
    # Whether the target embeddings hold for one pass over the rollout; else for all
    renews_targets_each_epoch = False
    # How many steps from each row on the samples have; for more than 1 they are windows
    horizon = 1
    # Whether the samples have the rewards and ends of episodes that record_step() was told
    keeps_rewards = False

    def reset(self) -> None:
        """Reset the buffer."""
        spaces_of_frames = {key: space for key, space in by_key(self.observation_space).items() if has_frames(space)}
        obs_shape = self.obs_shape
        # An array of the whole stacks is not even to be asked for
        self.obs_shape = as_observations({**by_key(obs_shape), **dict.fromkeys(spaces_of_frames, (0,))})
        super().reset()
        self.obs_shape = obs_shape
        stacks = {
            key: FrameStacks(self.buffer_size, self.n_envs, space.shape, space.dtype)
            for key, space in spaces_of_frames.items()
        }
        self.observations = as_observations({**by_key(self.observations), **stacks})
        self._next = NextObservationIndex(self.buffer_size, self.n_envs)
        self._targets: dict[str, th.Tensor] | None = None

    def record_step(
        self, new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]], rewards: np.ndarray | None = None
    ) -> None:
        """
        Note what a step led to. To be called before the step is added, as ``BaseCallback.on_step`` is.

        :param new_obs: Observations after the step; where an episode ended, the first of the next one
        :param dones: Whether the step ended an episode
        :param infos: With the key ``"terminal_observation"`` where the step ended an episode, and
            ``"TimeLimit.truncated"`` where it did for want of time
        :param rewards: What the step brought; None if that is not to be learned from
        """
        self._next.record_step(self.pos, self.observations, new_obs, dones, infos, rewards)

    @staticmethod
    def swap_and_flatten(arr: Any) -> Any:
        """
        :param arr: ``(steps, environments, ...)``
        :return: ``(environments * steps, ...)``
        """
        return arr.swap_and_flatten() if isinstance(arr, FrameStacks) else RolloutBuffer.swap_and_flatten(arr)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """
        :param batch_size: Number of steps in a batch; ``None`` for all
        :return: Batches whose ``observations`` are :class:`Transitions`
        """
        if not self.generator_ready:
            self._next.link(self.observations, self.episode_starts, self.takes_nan)
        if self.renews_targets_each_epoch:
            self._targets = None
        yield from super().get(batch_size)

    def to_torch(self, array: np.ndarray, copy: bool = True) -> th.Tensor:
        """
        :param array: Samples
        :param copy: Without effect: samples are copies of what is stored already
        :return: The same as a tensor
        """
        return super().to_torch(array, copy=False)

    def _get_samples(self, batch_inds: np.ndarray, *args: Any) -> RolloutBufferSamples:  # type: ignore[override]
        samples = super()._get_samples(batch_inds, *args)
        mask = getattr(samples, "mask", None)
        if mask is not None:
            # Of a recurrent policy. sb3-contrib leaves MultiBinary actions whole numbers, which no distribution takes
            mask = mask > 0
            samples = samples._replace(actions=samples.actions.float())
        actions = samples.actions if mask is None else samples.actions[mask]
        ahead = self._next.look_ahead(batch_inds, self.horizon, self.keeps_rewards)
        if self.horizon > 1:
            actions = self.to_torch(self.actions[ahead.rows]).to(actions.dtype)
        targets = None
        if self.embed_targets is not None:
            if self._targets is None:
                self._targets = self._embed_all_targets(self.embed_targets)
            targets = {name: embeddings[ahead.rows] for name, embeddings in self._targets.items()}
        transitions = Transitions(
            samples.observations,
            actions,
            self._take_next(ahead.rows.flatten()) if targets is None else None,
            self.to_torch(ahead.valid),
            mask,
            targets,
            *(None if outcomes is None else self.to_torch(outcomes) for outcomes in (ahead.rewards, ahead.ends)),
        )
        return samples._replace(observations=transitions)  # type: ignore[arg-type]

    def _take_next(self, batch_inds: np.ndarray) -> PyTorchObs:
        return obs_as_tensor(self._next.take(self.observations, batch_inds), self.device)

    def _embed_all_targets(self, embed: Callable[[PyTorchObs], dict[str, th.Tensor]]) -> dict[str, th.Tensor]:
        rows = np.arange(self.buffer_size * self.n_envs)
        parts = [embed(self._take_next(some)) for some in np.split(rows, rows[TARGET_BATCH_SIZE::TARGET_BATCH_SIZE])]
        return {name: th.cat([part[name] for part in parts]) for name in parts[0]}


class JepaRolloutBuffer(NextObservations):
    """
    Rollout buffer whose samples carry next observations, see :class:`NextObservations`. Pass it as
    ``rollout_buffer_class``. The parameters are those of ``RolloutBuffer``.

    :raises ValueError: If the observations are a ``Dict``
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"JepaRolloutBuffer takes observations of a single array, got {observation_space}: "
                "use JepaDictRolloutBuffer"
            )
        super().__init__(buffer_size, observation_space, *args, **kwargs)


class JepaDictRolloutBuffer(NextObservations, DictRolloutBuffer):  # type: ignore[misc]
    """
    Rollout buffer for ``Dict`` observations whose samples carry next observations, see :class:`NextObservations`. Pass
    it as ``rollout_buffer_class``. The parameters are those of ``DictRolloutBuffer``.
    """
