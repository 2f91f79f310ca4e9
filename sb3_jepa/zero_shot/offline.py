"""A replay buffer of recordings, for algorithms that learn from data alone."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.data.recordings import Recordings

# So many rows are read at once
ROWS_AT_ONCE = 4096


def check_recordings(
    recordings: Recordings, observation_space: spaces.Space, action_space: spaces.Space, longest_episode: int | None
) -> None:
    """
    :param recordings: To learn from
    :param observation_space: Of the algorithm
    :param action_space: Of the algorithm
    :param longest_episode: Steps that an episode of its environment may have; None if that is not known
    :raises ValueError: If they are of other spaces, have no actions, or do not say where episodes end
    """
    named = dict(observation=observation_space, action=action_space)
    if recordings.actions is None:
        raise ValueError("`data` must have actions, got recordings without: what an action leads to is to be learned")
    for name, own in named.items():
        given = getattr(recordings, f"{name}_space")
        if not _has_same_form(given, own):
            raise ValueError(
                f"`data` must have the {name} space of the environment, {own}, got {given}. Where a file does not "
                f"tell its space, say `read(path, {name}_space=env.{name}_space)`"
            )
    lengths = np.bincount(np.unique(recordings.episodes, return_inverse=True)[1])
    if longest_episode is not None and lengths.max() > longest_episode + 1:
        raise ValueError(
            f"`data` must say where episodes end: one has {lengths.max():,} observations, and an episode of the "
            f"environment has at most {longest_episode:,} steps. Give the file 'terminals' and 'timeouts', or "
            "'episodes', the number of each row's episode"
        )


def _has_same_form(given: spaces.Space | None, own: spaces.Space) -> bool:
    """A file does not tell the bounds of a box, nor always its type."""
    if isinstance(own, spaces.Dict):
        return isinstance(given, spaces.Dict) and all(
            key in given.spaces and _has_same_form(given[key], one) for key, one in own.items()
        )
    if isinstance(own, spaces.Box):
        kinds = [np.issubdtype(space.dtype, np.floating) for space in (given, own) if space is not None]
        return isinstance(given, spaces.Box) and given.shape == own.shape and len(set(kinds)) == 1
    if isinstance(own, spaces.Discrete):
        # The largest number may not occur
        return isinstance(given, spaces.Discrete) and given.start == own.start and given.n <= own.n
    return given == own


def replay_buffer_of(
    recordings: Recordings,
    buffer_class: type[ReplayBuffer],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    **buffer_kwargs: Any,
) -> ReplayBuffer:
    """
    :param recordings: Of these spaces
    :param buffer_class: Class of the buffer
    :param observation_space: Observation space
    :param action_space: Action space
    :param buffer_kwargs: Its further parameters
    :return: A buffer that holds all steps of the recordings, and no other
    :raises ValueError: If there is none, or a number is NaN or infinite
    """
    assert recordings.has_action is not None
    order = np.lexsort(
        (recordings.times, recordings.episodes) if recordings.times is not None else (recordings.episodes,)
    )
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = recordings.episodes[order][1:] != recordings.episodes[order][:-1]
    # What the last action of an episode led to may not be known
    rows = order[~is_last & (recordings.has_action[order] > 0)]
    if len(rows) == 0:
        raise ValueError("`data` must hold at least one step: an observation, an action, and the next observation")
    ends = np.zeros(len(recordings), dtype=bool)
    # The last of these rows of each episode
    episodes = recordings.episodes[rows]
    ends[rows[np.append(episodes[1:] != episodes[:-1], True)]] = True
    buffer = buffer_class(len(rows), observation_space, action_space, n_envs=1, **buffer_kwargs)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        taken = rows[start : start + ROWS_AT_ONCE]
        windows = recordings.windows(taken, 2)
        observations = {key: array[:, :1] for key, array in by_key(windows.observations).items()}
        next_observations = {key: array[:, 1:] for key, array in by_key(windows.observations).items()}
        assert windows.actions is not None
        actions = _scaled(windows.actions[:, :1], action_space)
        rewards = np.zeros((len(taken), 1)) if windows.rewards is None else windows.rewards[:, :1]
        is_terminal = np.zeros(len(taken)) if windows.terminated is None else windows.terminated[:, 0]
        for name, array in (*by_key(windows.observations).items(), ("actions", windows.actions)):
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                bad = taken[np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0]]
                raise ValueError(
                    f"`data` must be finite, and row {bad} or the next has NaN or infinite {name or 'observations'}"
                )
        for index, row in enumerate(taken):
            done = bool(ends[row] or is_terminal[index])
            buffer.add(
                as_observations({key: array[index] for key, array in observations.items()}),
                as_observations({key: array[index] for key, array in next_observations.items()}),
                actions[index],
                rewards[index],
                np.array([done]),
                [{"TimeLimit.truncated": done and not is_terminal[index]}],
            )
    return buffer


def _scaled(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """As a policy scales them: boxes to [-1, 1]."""
    if not isinstance(space, spaces.Box):
        return actions
    return (2.0 * (actions - space.low) / (space.high - space.low) - 1.0).clip(-1.0, 1.0)
