"""Observations of episodes, and what was done at them where that is known."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.digests import digest
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.spaces import ARRAY_SPACES, spaces_by_key

# The ID of recordings is computed from so many observations, spread evenly
ROWS_OF_ID = 256


class Windows(NamedTuple):
    """
    Consecutive steps of episodes. Where a window reaches over the begin or the end of its episode, it is padded with
    copies of the first or the last row.

    :param observations: ``(batch, n_steps, *observation shape)``, or a dictionary of such
    :param valid: ``(batch, n_steps)``, 1 where the step exists in the episode, 0 where it is padding
    :param has_action: ``(batch, n_steps)``, 1 where an action was taken at a valid step; None if nothing is known of it
    :param actions: ``(batch, n_steps, *action shape)``; of no meaning where ``has_action`` is 0
    :param rewards: Of these actions, ``(batch, n_steps)``; None if not known
    :param terminated: ``(batch, n_steps)``, 1 where the action ended the episode, and not a time limit; None if not
        known
    """

    observations: Any
    valid: np.ndarray
    has_action: np.ndarray | None = None
    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None


class _Order(NamedTuple):
    """
    The rows episode by episode, ``rows``; where among these each row, and the first and last of its episode are; and
    the rows of the longest episode.
    """

    rows: np.ndarray
    position: np.ndarray
    first: np.ndarray
    last: np.ndarray
    longest: int


class Recordings:
    """
    Observations of episodes, and the actions, rewards and terminations that followed on them where these are known.
    They stay where they are: arrays that are mapped into memory are never read as a whole, and the observations of a
    buffer are not copied.

    :param observation_space: As a Stable-Baselines3 policy sees it: images have their channels first
    :param observations: ``(rows, *observation shape)``, or a dictionary of such: arrays, also memory-mapped ones, or
        :class:`~sb3_jepa.buffers.frames.FrameStacks`
    :param episodes: The number of each row's episode, ``(rows,)``. The rows of one may lie between those of others.
    :param action_space: A ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``; None if ``actions`` is
    :param actions: What was done at each row's observation, as the environment executed it, ``(rows, *action shape)``;
        None if that is not known
    :param rewards: What each row's action was rewarded with, ``(rows,)``; None if not known
    :param terminated: Whether each row's action ended the episode, and not a time limit, ``(rows,)``; None if not known
    :param has_action: Whether an action was taken at a row, ``(rows,)``. At the last observation of an episode there
        was none, and the other arrays have no meaning there. By default, one was taken at every row.
    :param times: Whole numbers that order the rows of an episode, ``(rows,)``. By default they are in order already.
    :raises ValueError: If the observations or actions are none of their space, or the arrays do not have the same
        number of rows
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        observations: Any,
        episodes: np.ndarray,
        action_space: spaces.Space | None = None,
        actions: np.ndarray | None = None,
        rewards: np.ndarray | None = None,
        terminated: np.ndarray | None = None,
        has_action: np.ndarray | None = None,
        times: np.ndarray | None = None,
    ):
        episodes = np.asarray(episodes)
        if episodes.ndim != 1 or episodes.dtype.kind not in "iu":
            raise ValueError(
                "`episodes` must hold a whole number for each row, (rows,), "
                f"got an array of shape {episodes.shape} and type {episodes.dtype}"
            )
        self.observation_space = checks.instance("observation_space", observation_space, spaces.Space)
        self.observations = observations
        self.episodes = episodes.astype(np.int64, copy=False)
        keyed = spaces_by_key(observation_space)
        arrays = by_key(observations)
        if arrays.keys() != keyed.keys():
            raise ValueError(
                f"`observations` must have the keys of `observation_space`, {sorted(keyed)}, got {sorted(arrays)}"
            )
        for key, space in keyed.items():
            name = f"observations[{key!r}]" if key else "observations"
            _check_array(name, arrays[key], space, len(episodes), "observation_space")
        self.action_space = checks.optional(checks.instance, "action_space", action_space, cls=spaces.Space)
        if (action_space is None) != (actions is None):
            given, missing = ("actions", "action_space") if action_space is None else ("action_space", "actions")
            raise ValueError(f"`{missing}` must be given with `{given}`, got None")
        if action_space is not None:
            _check_array("actions", actions, action_space, len(episodes), "action_space")
        _check_numbers("times", times, len(episodes), "iu")
        for name, array in dict(rewards=rewards, terminated=terminated, has_action=has_action).items():
            _check_numbers(name, array, len(episodes), "biuf")
        if has_action is None and any(array is not None for array in (actions, rewards, terminated)):
            has_action = np.ones(len(episodes), dtype=bool)
        self.actions, self.rewards, self.terminated, self.has_action = actions, rewards, terminated, has_action
        self.times = times

    def __len__(self) -> int:
        return len(self.episodes)

    def take(self, rows: np.ndarray, keys: Sequence[str] | None = None) -> Any:
        """
        :param rows: Numbers of rows
        :param keys: Which observations of a ``Dict`` to take; all by default
        :return: A copy of their observations, ``(*rows, *observation shape)``, or a dictionary of such
        :raises ValueError: If the observations have no such keys
        """
        rows = np.asarray(rows)
        keyed, arrays = spaces_by_key(self.observation_space), by_key(self.observations)
        keys = checks.optional(checks.texts, "keys", keys)
        if keys is not None and not (isinstance(self.observation_space, spaces.Dict) and set(keys) <= arrays.keys()):
            checks.refuse("keys", f"None or some of the keys of {self.observation_space}", keys)
        return as_observations(
            {
                key: np.ascontiguousarray(array[rows], dtype=keyed[key].dtype)
                for key, array in arrays.items()
                if keys is None or key in keys
            }
        )

    def next_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param rows: Numbers of rows, ``(batch,)``
        :return: The rows after them in their episodes, or the same at the end of one; and ``(batch,)``, 1 where an
            action led to another one
        """
        rows, order = np.asarray(rows), self._order
        position = order.position[rows]
        follows = position < order.last[rows]
        if self.has_action is not None:
            follows = follows & (np.asarray(self.has_action[rows]) > 0)
        return order.rows[position + follows], follows.astype(np.float32)

    def windows(
        self,
        rows: np.ndarray,
        n_steps: int,
        n_before: int = 0,
        with_actions: bool = True,
        keys: Sequence[str] | None = None,
    ) -> Windows:
        """
        Consecutive steps of the same episode. A chunk of the future begins at its row, ``windows(rows, n_steps)``; a
        history ends there, ``windows(rows, n_steps, n_before=n_steps - 1)``; and a transition is a window of two steps.

        :param rows: Numbers of rows, ``(batch,)``
        :param n_steps: Steps of each window
        :param n_before: How many of them lie before the row
        :param with_actions: Whether actions are needed; if not, ``actions`` is None
        :param keys: Which observations of a ``Dict`` to take, such as states without images; all by default
        :return: Copies of what is known of these steps
        :raises ValueError: If there are no such rows, no episode has so many steps, or actions are needed and not known
        """
        if checks.flag("with_actions", with_actions) and self.actions is None:
            raise ValueError(
                "`with_actions` must be False for recordings without actions, got True. Folders that were recorded by "
                "earlier versions have none, nor have files without the array 'actions': record once more with "
                "`record_env` in another folder, or add them to the file"
            )
        taken, valid = self.window_rows(rows, n_steps, n_before)
        actions = None
        if with_actions:
            assert self.actions is not None
            assert self.action_space is not None
            actions = np.ascontiguousarray(self.actions[taken], dtype=self.action_space.dtype)
        has_action, rewards, terminated = (
            None if array is None else np.asarray(array[taken], dtype=np.float32)
            for array in (self.has_action, self.rewards, self.terminated)
        )
        return Windows(
            self.take(taken, keys),
            valid.astype(np.float32),
            None if has_action is None else has_action * valid,
            actions,
            rewards,
            terminated,
        )

    def window_rows(self, rows: np.ndarray, n_steps: int, n_before: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """
        Which rows a window consists of, see :meth:`windows`.

        :param rows: Numbers of rows, ``(batch,)``
        :param n_steps: Steps of each window
        :param n_before: How many of them lie before the row
        :return: Numbers of rows ``(batch, n_steps)``, and which of them are no padding, ``(batch, n_steps)``
        :raises ValueError: If there are no such rows, or no episode has so many steps
        """
        n_steps = checks.whole_number("n_steps", n_steps)
        n_before = checks.whole_number("n_before", n_before, 0, n_steps - 1)
        rows, n_rows = np.asarray(rows), len(self)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or np.any((rows < 0) | (rows >= n_rows)):
            checks.refuse("rows", f"whole numbers from 0 to {n_rows - 1}, (batch,)", rows)
        order = self._order
        if n_steps > order.longest:
            raise ValueError(
                f"`n_steps` must be at most {order.longest}, the rows of the longest episode, got {n_steps}"
            )
        wanted = order.position[rows][:, None] + np.arange(-n_before, n_steps - n_before)
        positions = wanted.clip(order.first[rows][:, None], order.last[rows][:, None])
        return order.rows[positions], positions == wanted

    @cached_property
    def _order(self) -> _Order:
        # Stable: rows of the same time stay in their order
        keys = (self.episodes,) if self.times is None else (self.times, self.episodes)
        rows = np.lexsort(keys)
        _, starts, lengths = np.unique(self.episodes[rows], return_index=True, return_counts=True)
        position, first, last = (np.empty_like(rows) for _ in range(3))
        position[rows] = np.arange(len(rows))
        first[rows] = np.repeat(starts, lengths)
        last[rows] = np.repeat(starts + lengths - 1, lengths)
        return _Order(rows, position, first, last, int(lengths.max(initial=0)))

    def split(
        self, validation_fraction: float = 0.1, seed: int = 0, by_start: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Put whole episodes aside, about as many rows as asked for. A single episode is split in time, with a warning:
        its last rows are put aside.

        :param validation_fraction: Which part of the rows to put aside, between 0 and 1
        :param seed: Seed of the choice of episodes
        :param by_start: Whether episodes that begin with the same observation stay together, so that no start of the
            rows that are put aside is known; without effect where starts are too few for that
        :return: The rows to learn from and those that were put aside, both in ascending order
        :raises ValueError: If the fraction is not between 0 and 1, or there are fewer than two rows
        """
        validation_fraction = checks.number("validation_fraction", validation_fraction, above=0, below=1)
        seed = checks.seed("seed", seed)
        if len(self) < 2:
            raise ValueError(f"To be split, recordings must hold at least 2 observations, got {len(self)}")
        n_wanted = validation_fraction * len(self)
        episodes = self.episodes
        numbers, n_rows = np.unique(episodes, return_counts=True)
        if checks.flag("by_start", by_start):
            of_start, n_of_start = np.unique(self._starts, return_counts=True)
            # Where starts are few, the rows of one are too many to put aside
            if n_of_start.min() <= 2 * n_wanted:
                episodes, numbers, n_rows = self._starts, of_start, n_of_start
        if len(numbers) == 1:
            warnings.warn(
                "The recordings are a single episode, or do not say where one ends: their last part is put aside for "
                "validation, and follows directly on the rows to learn from",
                UserWarning,
                stacklevel=2,
            )
            n_training = len(self) - max(1, round(n_wanted))
            rows = np.arange(len(self))
            return rows[: max(1, n_training)], rows[max(1, n_training) :]
        chosen, n_chosen = [], 0
        for index in np.random.default_rng(seed).permutation(len(numbers)):
            if n_chosen + n_rows[index] <= n_wanted:
                chosen.append(numbers[index])
                n_chosen += n_rows[index]
        # If every episode is longer than what was asked for, the shortest is taken
        is_validation = np.isin(episodes, chosen or [numbers[np.argmin(n_rows)]])
        return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)

    @cached_property
    def _starts(self) -> np.ndarray:
        """A number for each row, ``(rows,)``, that is the same for episodes with the same first observation."""
        order = self._order
        first_rows = order.rows[order.first]
        starts = np.unique(first_rows)
        keyed = by_key(self.take(starts))
        flat = [np.ascontiguousarray(array).reshape(len(starts), -1).view(np.uint8) for array in keyed.values()]
        _, numbers = np.unique(np.concatenate(flat, axis=1), axis=0, return_inverse=True)
        return numbers.reshape(-1)[np.searchsorted(starts, first_rows)]

    @property
    def id(self) -> str:
        """A digest of the episodes and of some observations, of eight hexadecimal digits."""
        rows = np.linspace(0, len(self) - 1, min(len(self), ROWS_OF_ID)).astype(np.int64)
        arrays = sorted(by_key(self.take(rows)).items())
        observations = (part for key, array in arrays for part in (key.encode(), array.tobytes()))
        return digest([self.episodes.tobytes(), *observations])

    def describe(self, rows: np.ndarray | None = None) -> str:
        """
        :param rows: Numbers of rows, such as one of the two parts of :meth:`split`; all of them by default
        :return: How many observations of how many episodes these are, in words
        """
        episodes = self.episodes if rows is None else self.episodes[rows]
        return f"{len(episodes):,} observations of {len(np.unique(episodes)):,} episodes"


def _check_array(name: str, array: Any, space: spaces.Space, n_rows: int, space_name: str) -> None:
    if not isinstance(space, ARRAY_SPACES):
        also = ", or a Dict of these" if space_name == "observation_space" else ""
        raise ValueError(
            f"`{space_name}` must be a Box, Discrete, MultiDiscrete or MultiBinary{also}, got {space} for {name}"
        )
    if not hasattr(array, "shape"):
        checks.refuse(name, "an array", array)
    expected = (n_rows, *(space.shape or ()))
    if tuple(array.shape) != expected:
        raise ValueError(
            f"{name} must have the shape {expected}, a row for each of `episodes` and the rest as {space} has it, "
            f"got {tuple(array.shape)}"
        )
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise ValueError(f"{name} must be of type {space.dtype}, as {space} is, got {array.dtype}")


def _check_numbers(name: str, array: Any, n_rows: int, kinds: str) -> None:
    if array is not None and not (
        isinstance(array, np.ndarray) and array.shape == (n_rows,) and array.dtype.kind in kinds
    ):
        given = f"shape {array.shape} and type {array.dtype}" if isinstance(array, np.ndarray) else repr(array)
        number = "number" if "f" in kinds else "whole number"
        raise ValueError(f"`{name}` must be None or an array of a {number} for each row, ({n_rows},), got {given}")
