"""Recordings in replay buffers, for algorithms that learn from these."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_jepa.common import checks
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.data.fitting import check_finite, read_for
from sb3_jepa.data.recordings import Recordings

# So many rows are read at once
ROWS_AT_ONCE = 4096


def add_to_replay_buffer(model: OffPolicyAlgorithm, demonstrations: Any, **kwargs: Any) -> int:
    """
    Put the steps of demonstrations into the replay buffer of a model, beside what it has collected itself.

    .. code-block:: python

        model = SAC("MlpPolicy", env)
        add_to_replay_buffer(model, read("demonstrations"))
        model.learn(100_000)

    :param model: Of an off-policy algorithm
    :param demonstrations: What :func:`~sb3_jepa.data.read` takes, with rewards, and without the normalisation of a
        ``VecNormalize``
    :param kwargs: The further parameters of :func:`~sb3_jepa.data.read`
    :return: How many steps these are
    :raises ValueError: If the model has no replay buffer, or one that is too small, or the demonstrations are of other
        spaces, or have no rewards
    """
    buffer = checks.instance("model", model, OffPolicyAlgorithm).replay_buffer
    if buffer is None:
        raise ValueError("`model` must have a replay buffer, got one that was loaded without an environment")
    recordings = read_for(demonstrations, model.observation_space, model.action_space, name="demonstrations", **kwargs)
    if recordings.rewards is None:
        raise ValueError("`demonstrations` must have rewards, got recordings without: a critic learns from these")
    rows = steps_of(recordings, "demonstrations")
    n_free = buffer.buffer_size * buffer.n_envs
    if len(rows) > n_free:
        raise ValueError(
            f"`demonstrations` must fit into the replay buffer, which has room for {n_free:,} steps, got "
            f"{len(rows):,}. Give the model a larger `buffer_size`"
        )
    _add(buffer, recordings, rows)
    return len(rows)


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
    rows = steps_of(recordings)
    buffer = buffer_class(len(rows), observation_space, action_space, n_envs=1, **buffer_kwargs)
    _add(buffer, recordings, rows)
    return buffer


def steps_of(recordings: Recordings, name: str = "data") -> np.ndarray:
    """
    :param recordings: With actions
    :param name: Of the argument that was given
    :return: The rows at which an action was taken that led to another row, episode by episode
    :raises ValueError: If there is none
    """
    assert recordings.has_action is not None
    order = np.lexsort(
        (recordings.times, recordings.episodes) if recordings.times is not None else (recordings.episodes,)
    )
    # What the last action of an episode led to may not be known
    rows = order[(recordings.next_rows(order)[1] > 0)]
    if len(rows) == 0:
        raise ValueError(f"`{name}` must hold at least one step: an observation, an action, and the next observation")
    return rows


def _add(buffer: ReplayBuffer, recordings: Recordings, rows: np.ndarray) -> None:
    # Of several environments, each gets a part, and the last ones begin again where the number does not divide
    n_envs = buffer.n_envs
    parts = np.resize(rows, (n_envs, -(-len(rows) // n_envs)))
    ends = np.zeros(parts.shape, dtype=bool)
    episodes = recordings.episodes[parts]
    ends[:, :-1] = episodes[:, 1:] != episodes[:, :-1]
    ends[:, -1] = True
    n_columns = max(1, ROWS_AT_ONCE // n_envs)
    for start in range(0, parts.shape[1], n_columns):
        taken = parts[:, start : start + n_columns].T
        _add_steps(buffer, recordings, taken, ends[:, start : start + n_columns].T)


def _add_steps(buffer: ReplayBuffer, recordings: Recordings, rows: np.ndarray, ends: np.ndarray) -> None:
    windows = recordings.windows(rows.reshape(-1), 2)
    check_finite("data", {**by_key(windows.observations), "actions": np.asarray(windows.actions)}, rows.reshape(-1))
    shape = rows.shape

    def step(array: np.ndarray, index: int) -> np.ndarray:
        return array[:, index].reshape(*shape, *array.shape[2:])

    now, then = ({key: step(array, index) for key, array in by_key(windows.observations).items()} for index in (0, 1))
    assert windows.actions is not None
    actions = step(_scaled(windows.actions, buffer.action_space), 0)
    rewards = np.zeros(shape) if windows.rewards is None else step(windows.rewards, 0)
    terminal = np.zeros(shape, bool) if windows.terminated is None else step(windows.terminated, 0) > 0
    for index in range(shape[0]):
        dones = ends[index] | terminal[index]
        buffer.add(
            as_observations({key: array[index] for key, array in now.items()}),
            as_observations({key: array[index] for key, array in then.items()}),
            actions[index],
            rewards[index],
            dones,
            [{"TimeLimit.truncated": bool(done and not end)} for done, end in zip(dones, terminal[index], strict=True)],
        )


def _scaled(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """As a policy scales them: boxes to [-1, 1]."""
    if not isinstance(space, spaces.Box):
        return actions
    return (2.0 * (actions - space.low) / (space.high - space.low) - 1.0).clip(-1.0, 1.0)
