"""Observations of episodes, and nothing else: what an encoder is pretrained on."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.digests import digest
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.spaces import spaces_by_key

# So many observations, spread evenly, tell recordings from others
ROWS_OF_ID = 256


class Recordings:
    """
    Observations of episodes. They stay where they are: arrays that are mapped into memory are never read as a whole,
    and those of a buffer are not copied.

    :param observation_space: As a Stable-Baselines3 policy sees it: images have their channels first
    :param observations: ``(rows, *observation shape)``, or a dictionary of such: arrays, also memory-mapped ones, or
        :class:`~sb3_jepa.frames.FrameStacks`
    :param episodes: The number of each row's episode, ``(rows,)``. The rows of one may lie between those of others.
    :raises ValueError: If the observations are none of this space, or the arrays do not have the same number of rows
    """

    def __init__(self, observation_space: spaces.Space, observations: Any, episodes: np.ndarray):
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
            _check_array(f"observations[{key!r}]" if key else "observations", arrays[key], space, len(episodes))

    def __len__(self) -> int:
        return len(self.episodes)

    def take(self, rows: np.ndarray) -> Any:
        """
        :param rows: Numbers of rows
        :return: A copy of their observations, ``(len(rows), *observation shape)``, or a dictionary of such
        """
        rows = np.asarray(rows)
        keyed = spaces_by_key(self.observation_space)
        return as_observations(
            {
                key: np.ascontiguousarray(array[rows], dtype=keyed[key].dtype)
                for key, array in by_key(self.observations).items()
            }
        )

    def split(self, validation_fraction: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """
        Put whole episodes aside, about as many rows as asked for. A single episode is split in time, with a warning:
        its last rows are put aside.

        :param validation_fraction: Which part of the rows to put aside, between 0 and 1
        :param seed: Seed of the choice of episodes
        :return: The rows to learn from and those that were put aside, both in ascending order
        :raises ValueError: If the fraction is not between 0 and 1, or there are fewer than two rows
        """
        validation_fraction = checks.number("validation_fraction", validation_fraction, above=0, below=1)
        seed = checks.seed("seed", seed)
        if len(self) < 2:
            raise ValueError(f"To be split, recordings must hold at least 2 observations, got {len(self)}")
        n_wanted = validation_fraction * len(self)
        numbers, n_rows = np.unique(self.episodes, return_counts=True)
        if len(numbers) == 1:
            warnings.warn(
                "The recordings are a single episode, or do not say where one ends: the last part of them is put aside "
                "for validation, and begins right after what is learned from",
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
        # All are longer than what was asked for
        is_validation = np.isin(self.episodes, chosen or [numbers[np.argmin(n_rows)]])
        return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that tell them from others: a digest of the episodes and of some observations."""
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


def _check_array(name: str, array: Any, space: spaces.Space, n_rows: int) -> None:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(
            "`observation_space` must be a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of these, "
            f"got {space} for {name}"
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
