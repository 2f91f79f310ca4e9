"""
The queue of actions that a policy of chunks acts from, as the ``state`` of ``predict``: each environment's runs at a
place of its own, and begins anew with an episode.
"""

from collections.abc import Callable

import numpy as np

# Decodes the chunks of the environments with these numbers, (len(numbers), horizon, decoded)
Decide = Callable[[np.ndarray], np.ndarray]
State = tuple[np.ndarray, ...]


def from_queue(
    state: State | None, starts: np.ndarray, n_action_steps: int, shape: tuple[int, int], decide: Decide
) -> tuple[np.ndarray, State]:
    """
    Executes the first actions of a chunk, one after the other, and then decides on the next chunk.

    :param state: The chunks ``(n_envs, horizon, decoded)``, and how many of their actions were executed,
        ``(n_envs,)``; None at the start
    :param starts: Where an episode begins, ``(n_envs,)``
    :param n_action_steps: How many actions of a chunk are executed
    :param shape: ``(horizon, decoded)``
    :param decide: Decides on chunks
    :return: What the next actions are chosen from, ``(n_envs, decoded)``, and the next state
    """
    n_envs = len(starts)
    if state is None:
        chunks, done = np.zeros((n_envs, *shape), np.float32), np.full(n_envs, n_action_steps)
    else:
        chunks, done = check_state(state, 2, n_envs)
    empty = np.flatnonzero(starts | (done >= n_action_steps))
    if len(empty) > 0:
        # Copy: the state that was given belongs to who gave it
        chunks, done = chunks.copy(), done.copy()
        chunks[empty], done[empty] = decide(empty), 0
    return chunks[np.arange(n_envs), done], (chunks, done + 1)


def from_ensemble(
    state: State | None, starts: np.ndarray, coefficient: float, shape: tuple[int, int], decide: Decide
) -> tuple[np.ndarray, State]:
    r"""
    Temporal ensembling (*ACT*, Zhao et al. 2023, arXiv 2304.13705, section IV-A): decides at each step, and executes
    the mean of all that was ever decided for this step, with weights :math:`\exp(-m i)`, where :math:`i = 0` is the
    oldest decision.

    :param state: For the next ``horizon`` steps, the weighted sums of the decisions ``(n_envs, horizon, decoded)``, the
        sums of the weights ``(n_envs, horizon)``, and how many they are, ``(n_envs, horizon)``; None at the start
    :param starts: Where an episode begins, ``(n_envs,)``
    :param coefficient: ``m``; 0 for equal weights
    :param shape: ``(horizon, decoded)``
    :param decide: Decides on chunks
    :return: What the next actions are chosen from, ``(n_envs, decoded)``, and the next state
    """
    n_envs = len(starts)
    if state is None:
        sums, weights = np.zeros((n_envs, *shape), np.float32), np.zeros((n_envs, shape[0]), np.float32)
        counts = np.zeros((n_envs, shape[0]), np.int64)
    else:
        sums, weights, counts = (array.copy() for array in check_state(state, 3, n_envs))
    for array in (sums, weights, counts):
        array[starts] = 0
    weight = np.exp(-coefficient * counts).astype(np.float32)
    sums += weight[..., None] * decide(np.arange(n_envs))
    weights += weight
    counts += 1
    decoded = sums[:, 0] / weights[:, :1]
    later = []
    for array in (sums, weights, counts):
        array[:, :-1] = array[:, 1:]
        array[:, -1] = 0
        later.append(array)
    return decoded, tuple(later)


def check_state(state: State, n_arrays: int, n_envs: int) -> State:
    """
    :param state: That was given
    :param n_arrays: How many arrays it has
    :param n_envs: Number of environments
    :return: The same
    :raises ValueError: If it is another policy's, or of another number of environments
    """
    if not isinstance(state, tuple) or len(state) != n_arrays or any(len(array) != n_envs for array in state):
        shapes = [np.shape(array) for array in state] if isinstance(state, tuple) else state
        raise ValueError(
            f"`state` must be None, or what `predict` returned for the same {n_envs} environments and the same way of "
            f"executing chunks, got {shapes}"
        )
    return state
