"""What imitation learns from: demonstrations, and what one update takes of them."""

from typing import Any, NamedTuple

import numpy as np

from sb3_jepa.common import checks
from sb3_jepa.common.observations import by_key
from sb3_jepa.data.fitting import check_finite
from sb3_jepa.data.recordings import Recordings
from sb3_jepa.imitation.actions import check_in_space


class Chunks(NamedTuple):
    """
    Observations, and what followed on them.

    :param observations: Of the present, ``(batch, *observation shape)``, or a dictionary of such
    :param actions: The next ones, ``(batch, horizon, *action shape)``
    :param has_action: ``(batch, horizon)``, 1 where there is one, before the end of the episode
    :param future: Observations of the predicted steps, ``(batch, n_predicted, *observation shape)``, or a dictionary of
        some keys; None if nothing is predicted
    :param follows: ``(batch, n_predicted)``, 1 where these exist
    """

    observations: Any
    actions: np.ndarray
    has_action: np.ndarray
    future: Any
    follows: np.ndarray | None


def take_chunks(
    recordings: Recordings, rows: np.ndarray, horizon: int, steps: np.ndarray | None, keys: list[str] | None = None
) -> Chunks:
    """
    :param recordings: With actions
    :param rows: Numbers of rows, ``(batch,)``
    :param horizon: Number of actions
    :param steps: Which of the next steps are predicted, from 1 to ``horizon``; None for none
    :param keys: Which observations of a ``Dict`` are predicted; all by default
    :return: Copies
    """
    taken, valid = recordings.window_rows(rows, horizon + 1)
    assert recordings.actions is not None
    assert recordings.has_action is not None
    # Copies of what is needed alone: images of steps that are not predicted are not read
    of_chunk = taken[:, :horizon]
    return Chunks(
        recordings.take(rows),
        np.asarray(recordings.actions[of_chunk]),
        np.asarray(recordings.has_action[of_chunk] * valid[:, :horizon], np.float32),
        None if steps is None else recordings.take(taken[:, steps], keys),
        None if steps is None else valid[:, steps].astype(np.float32),
    )


def check_demonstrations(name: str, recordings: Recordings, horizon: int) -> np.ndarray:
    """
    :param name: Of the argument
    :param recordings: Of the algorithm's spaces
    :param horizon: Number of actions of a chunk
    :return: The rows at which an action was taken
    :raises ValueError: If there is none, no episode is as long as the horizon, or a number is not finite or outside of
        the action space
    """
    assert recordings.has_action is not None
    assert recordings.actions is not None
    rows = np.flatnonzero(np.asarray(recordings.has_action) > 0)
    lengths = np.bincount(np.unique(recordings.episodes, return_inverse=True)[1])
    if len(rows) == 0 or lengths.max() <= horizon:
        raise ValueError(
            f"`horizon` must be smaller than the longest episode of `{name}`, of {lengths.max()} observations, got "
            f"{horizon}. (Shorter episodes are padded, but at least one must be longer)"
        )
    check_in_space(name, np.asarray(recordings.actions)[rows], recordings.action_space, rows)  # type: ignore[arg-type]
    for key, array in by_key(recordings.observations).items():
        if hasattr(array, "dtype") and np.issubdtype(array.dtype, np.floating) and isinstance(array, np.ndarray):
            check_finite(name, {key: array}, np.arange(len(array)))
    return rows


def hold_out(
    training: Recordings, rows: np.ndarray, validation: Recordings | None, validation_fraction: float, horizon: int
) -> tuple[np.ndarray, Recordings, np.ndarray]:
    """
    :param training: Demonstrations
    :param rows: Their rows at which an action was taken
    :param validation: Other demonstrations to hold out; None to take some of these
    :param validation_fraction: Which share of the rows then; 0 for none
    :param horizon: Number of actions of a chunk
    :return: The rows to learn from, and the demonstrations and rows that are held out
    :raises ValueError: If an episode is in both, or the other demonstrations do not fit
    """
    if validation is not None:
        held_out_rows = check_demonstrations("validation_demonstrations", validation, horizon)
        check_disjoint(training, validation)
        return rows, validation, held_out_rows
    # A single episode is not cut in two
    if validation_fraction == 0 or len(np.unique(training.episodes)) == 1:
        return rows, training, np.zeros(0, np.int64)
    learned, put_aside = training.split(validation_fraction, by_start=True)
    return np.intersect1d(rows, learned), training, np.intersect1d(rows, put_aside)


def check_disjoint(training: Recordings, validation: Recordings) -> None:
    """
    :param training: To learn from
    :param validation: To be evaluated on
    :raises ValueError: If an episode is in both
    """
    shared = set(_ids(training)) & set(_ids(validation))
    if shared:
        raise ValueError(
            f"`validation_demonstrations` must hold other episodes than `demonstrations`, got {len(shared)} that are "
            "in both. What is measured on episodes that were learned from says nothing"
        )


def _ids(recordings: Recordings) -> list[tuple[int, bytes]]:
    """Of each episode its length and its first and last actions: enough to tell episodes apart."""
    assert recordings.actions is not None
    order = np.argsort(recordings.episodes, kind="stable")
    _, starts = np.unique(recordings.episodes[order], return_index=True)
    found = []
    for rows in np.split(order, starts[1:]):
        actions = np.ascontiguousarray(np.asarray(recordings.actions[rows]))
        first = by_key(recordings.take(rows[:1]))
        found.append((len(rows), actions.tobytes() + b"".join(array.tobytes() for array in first.values())))
    return found


def measured_rows(rows: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """
    :param rows: Numbers of rows
    :param n: How many at most
    :param seed: Seed
    :return: As many of them, the same ones each time
    """
    n = checks.whole_number("n", n)
    return rows if len(rows) <= n else np.sort(np.random.default_rng(seed).choice(rows, n, replace=False))
