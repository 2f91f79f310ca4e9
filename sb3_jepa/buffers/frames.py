"""Stacked frames, each of which is stored once."""

import copy
import sys
from typing import Any

import numpy as np
from gymnasium import spaces

# A smaller frame is not worth what it takes to refer to it
MIN_FRAME_BYTES = 1024


def has_frames(space: spaces.Space) -> bool:
    """
    :param space: Of one observation, or of one key of a ``Dict``
    :return: Whether its observations are images that :class:`FrameStacks` stores with less memory: channels first,
        ``(frames * channels, height, width)``, or Gymnasium's ``(frames, height, width, channels)``
    """
    if not isinstance(space, spaces.Box) or len(space.shape) not in (3, 4):
        return False
    # The first axis of an image counts its channels only if they come first, that of a stack its frames
    if len(space.shape) == 3 and space.shape[0] > min(space.shape[1:]):
        return False
    return int(np.prod(space.shape[1:])) * np.dtype(space.dtype).itemsize >= MIN_FRAME_BYTES


class FrameStacks:
    """
    Looks to the buffers of Stable-Baselines3 like their array of observations, ``(rows, environments, *observation
    shape)``, and gives them back bit by bit, but stores each frame once: a row refers to its frames, and those that the
    latest rows of the same environment had already are not stored again. A frame is what the first axis of an
    observation counts, one channel of an image or one picture of Gymnasium's stack. Nothing is assumed about how
    observations are stacked, padded or follow on each other; what does not repeat itself is stored as it is.

    :param n_rows: Number of rows
    :param n_envs: Number of parallel environments
    :param obs_shape: Of one observation
    :param dtype: Of the observations
    :param beside: Other observations of the same environments, such as those before, whose frames are shared
    """

    def __init__(
        self,
        n_rows: int,
        n_envs: int,
        obs_shape: tuple[int, ...],
        dtype: np.typing.DTypeLike,
        beside: "FrameStacks | None" = None,
    ):
        self.obs_shape, self.dtype = tuple(obs_shape), np.dtype(dtype)
        # What was never set is zero, as in an array of Stable-Baselines3
        self._blank = bytes(int(np.prod(obs_shape[1:])) * self.dtype.itemsize)
        # Frames are objects that Python frees with the last reference to them
        self._frames = np.empty((n_rows, n_envs, obs_shape[0]), dtype=object)
        self._frames[...] = self._blank
        # Of the last two observations of each environment. (One is not enough: a terminal observation may be told
        # before the observation that led to it.)
        self._latest: list[tuple[list[bytes], list[bytes]]] = [([], [])] * n_envs if beside is None else beside._latest

    def _of(self, frames: np.ndarray) -> "FrameStacks":
        stacks = copy.copy(self)
        stacks._frames = frames
        return stacks

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it looks like."""
        return (*self._frames.shape[:-1], *self.obs_shape)

    @property
    def nbytes(self) -> int:
        """Memory that the frames and the references to them take."""
        n_bytes = {id(frame): sys.getsizeof(frame) for frame in self._frames.flat}
        return self._frames.nbytes + sum(n_bytes.values())

    def __len__(self) -> int:
        return len(self._frames)

    def share(self, env_index: int, observation: np.ndarray) -> list[bytes]:
        """
        Look for the frames of an observation among the latest ones of its environment.

        :param env_index: Number of the environment
        :param observation: ``observation shape``
        :return: Its frames, of which those that are known are the same objects
        """
        latest, before = self._latest[env_index]
        known = [*latest, *before, self._blank]
        frames = []
        for frame in np.asarray(observation, self.dtype, order="C").reshape(self.obs_shape):
            content = frame.tobytes()
            for candidate in known:
                if candidate == content:
                    content = candidate
                    break
            else:
                known.append(content)
            frames.append(content)
        self._latest[env_index] = frames, latest
        return frames

    def collect(self, stacks: list[list[bytes]]) -> "FrameStacks":
        """
        :param stacks: What :meth:`share` returned
        :return: These observations, ``(stacks, *observation shape)``
        """
        return self._of(np.array(stacks, dtype=object).reshape(-1, self.obs_shape[0]))

    def __setitem__(self, row: int, observations: Any) -> None:
        array = np.asarray(observations, self.dtype, order="C")
        for env_index, observation in enumerate(np.broadcast_to(array, self.shape[1:])):
            self._frames[row, env_index] = self.share(env_index, observation)

    def __getitem__(self, key: Any) -> np.ndarray:
        """
        :param key: Rows, or rows and environments. (Also with a colon after them, as Stable-Baselines3 writes it.)
        :return: The observations, ``(..., *observation shape)``
        :raises IndexError: If the key reaches into the observations; ``numpy.asarray`` makes an array of all
        """
        parts = key if isinstance(key, tuple) else (key,)
        if any(part is None or part is Ellipsis for part in parts):
            raise IndexError(f"FrameStacks are indexed by rows, or by rows and environments, got {key}")
        while parts and isinstance(parts[-1], slice) and parts[-1] == slice(None):
            parts = parts[:-1]
        # The last axis is that of the frames, which no other part may take
        frames = self._frames[(*parts, slice(None))]
        return np.ndarray((*frames.shape[:-1], *self.obs_shape), self.dtype, bytearray().join(frames.ravel().tolist()))

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("FrameStacks are no array yet: one can only be made as a copy")
        return np.asarray(self[:], dtype)

    def first_rows(self, n_rows: int) -> "FrameStacks":
        """
        :param n_rows: How many
        :return: These rows one after the other, ``(n_rows * environments, *observation shape)``
        """
        return self._of(self._frames[:n_rows].reshape(-1, self.obs_shape[0]))

    def swap_and_flatten(self) -> "FrameStacks":
        """
        :return: Environment by environment, ``(environments * rows, *observation shape)``, as
            ``BaseBuffer.swap_and_flatten`` does it
        """
        return self._of(self._frames.swapaxes(0, 1).reshape(-1, self.obs_shape[0]))
