"""Recordings of the buffers of Stable-Baselines3."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer

from sb3_jepa.buffers.frames import FrameStacks
from sb3_jepa.common.actions import unscale_actions
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.spaces import ARRAY_SPACES, spaces_by_key
from sb3_jepa.data.recordings import Recordings


def read_buffer(buffer: ReplayBuffer | RolloutBuffer) -> Recordings:
    """
    The observations, actions and rewards of a buffer of Stable-Baselines3, sb3-contrib or sb3_jepa, as an algorithm has
    filled it. Observations are not copied: what the buffer overwrites later is overwritten here. Under
    ``VecNormalize``, a rollout buffer has observations and rewards as they were normalised, and a replay buffer as they
    were before.

    Continuous actions become what the environment executed: those of a replay buffer are scaled back from [-1, 1], and
    those of a rollout buffer are clipped (a policy with ``squash_output`` would scale them instead, which its buffer
    does not tell). A rollout buffer does not know a termination from a time limit, and where there was a time limit its
    rewards include the value of what would have followed. Terminations of a replay buffer are known with
    ``handle_timeout_termination``.

    :param buffer: Replay buffer or rollout buffer, full or not
    :return: The recordings, in the order in which the buffer has its rows. The last observation of an episode is no row
        of it. An episode of a replay buffer that another call of ``learn()`` broke off counts as one with the next,
        also in windows, for no step has ended it.
    :raises ValueError: If it is no such buffer, or empty
    """
    if not isinstance(buffer, (ReplayBuffer, RolloutBuffer)):
        raise ValueError(f"`buffer` must be a ReplayBuffer or a RolloutBuffer, got {type(buffer).__name__}")
    n_steps = buffer.size()
    if n_steps == 0:
        raise ValueError("`buffer` must hold observations, and is empty")
    by_step = _replay_arrays(buffer) if isinstance(buffer, ReplayBuffer) else _rollout_arrays(buffer)
    # Once samples were drawn from it, a rollout buffer has its rows environment by environment
    is_flat = isinstance(buffer, RolloutBuffer) and buffer.generator_ready
    arrays: dict[str, Any] = {name: (array.T if is_flat else array).reshape(-1) for name, array in by_step.items()}
    keyed = spaces_by_key(buffer.observation_space)
    observations = {
        key: _flatten(array, n_steps, is_flat, keyed[key]) for key, array in by_key(buffer.observations).items()
    }
    action_space = buffer.action_space if isinstance(buffer.action_space, ARRAY_SPACES) else None
    if action_space is not None:
        actions = _flatten(buffer.actions, n_steps, is_flat, action_space)
        if isinstance(action_space, spaces.Box):
            actions = _executed(actions, action_space, is_scaled=isinstance(buffer, ReplayBuffer))
        arrays["actions"] = np.asarray(actions, action_space.dtype)
    return Recordings(buffer.observation_space, as_observations(observations), action_space=action_space, **arrays)


def _executed(actions: np.ndarray, space: spaces.Box, is_scaled: bool) -> np.ndarray:
    if is_scaled and space.is_bounded():
        return unscale_actions(actions, space.low, space.high)
    return np.clip(actions, space.low, space.high)


def _flatten(array: Any, n_steps: int, is_flat: bool, space: spaces.Space) -> Any:
    if isinstance(array, FrameStacks):
        return array if is_flat else array.first_rows(n_steps)
    # Buffers give a number an axis, which a policy does not
    return (array if is_flat else array[:n_steps]).reshape(-1, *(space.shape or ()))


def _replay_arrays(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """Each ``(steps, environments)``"""
    n_steps = buffer.size()
    rows = np.arange(n_steps)
    is_overwritten = buffer.full and buffer.optimize_memory_usage
    if buffer.full:
        # From the oldest on. To save memory it has been overwritten, by what followed on the newest.
        rows = (rows + buffer.pos + int(buffer.optimize_memory_usage)) % buffer.buffer_size
    starts = np.ones((n_steps, buffer.n_envs), dtype=bool)
    starts[1:] = buffer.dones[rows[:-1]] > 0
    if is_overwritten:
        starts[-1] = False
    arrays = dict(episodes=np.empty(starts.shape, dtype=np.int64), rewards=buffer.rewards[:n_steps])
    arrays["episodes"][rows] = count_episodes(starts)
    if buffer.handle_timeout_termination:
        arrays["terminated"] = (buffer.dones[:n_steps] > 0) & (buffer.timeouts[:n_steps] == 0)
    if buffer.full:
        arrays["times"] = np.repeat(np.argsort(rows)[:, None], buffer.n_envs, axis=1)
    if is_overwritten:
        arrays["has_action"] = np.ones(starts.shape, dtype=bool)
        arrays["has_action"][rows[-1]] = False
    return arrays


def _rollout_arrays(buffer: RolloutBuffer) -> dict[str, np.ndarray]:
    """Each ``(steps, environments)``"""
    starts = buffer.episode_starts > 0
    if len(starts) != buffer.buffer_size:
        # RecurrentPPO's are flattened too
        starts = starts.reshape(buffer.n_envs, -1).T
    n_steps = buffer.size()
    starts = starts[:n_steps].copy()
    starts[0] = True
    return dict(episodes=count_episodes(starts), rewards=buffer.rewards[:n_steps])


def count_episodes(starts: np.ndarray) -> np.ndarray:
    """
    :param starts: Whether an episode begins, ``(steps, environments)``; at the first step one does
    :return: The number of each step's episode, shaped likewise
    """
    return starts.T.cumsum().reshape(starts.T.shape).T - 1
