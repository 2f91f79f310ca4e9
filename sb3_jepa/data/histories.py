"""Recordings whose observations are histories, for encoders with memory."""

from typing import Any

import numpy as np

from sb3_jepa.common import checks
from sb3_jepa.common.digests import digest
from sb3_jepa.common.histories import ACTIONS, IS_REAL, HistorySpace
from sb3_jepa.common.observations import by_key
from sb3_jepa.common.spaces import spaces_by_key
from sb3_jepa.data.recordings import Recordings


class HistoryRecordings(Recordings):
    """
    Recordings as :class:`~sb3_jepa.envs.VecHistory` would have shown them: each observation is the history that ends
    there. Nothing is copied: histories are put together when they are taken. For
    :func:`~sb3_jepa.pretrain` with :class:`~sb3_jepa.SequencePrediction`::

        pretrain(HistoryRecordings(read("episodes.npz"), length=4), "encoder", SequencePrediction)

    :param recordings: With actions
    :param length: How many views a history has, at least 2
    :raises ValueError: If there are no actions, or no episode is as long
    """

    def __init__(self, recordings: Recordings, length: int = 4):
        checks.instance("recordings", recordings, Recordings)
        if recordings.action_space is None:
            raise ValueError("`recordings` must have actions, which belong to a history, got recordings without")
        self._space = HistorySpace(recordings.observation_space, recordings.action_space, length)
        # All but the observations
        vars(self).update({name: value for name, value in vars(recordings).items() if not name.startswith("_")})
        self._views, self.length = recordings, length
        if length > self._order.longest:
            raise ValueError(
                f"`length` must be at most {self._order.longest}, the rows of the longest episode, got {length}"
            )
        self.observation_space = self._space.observation_space

    def take(self, rows: np.ndarray, keys: Any = None) -> Any:
        """
        :param rows: Numbers of rows
        :param keys: Must be None
        :return: The histories that end there
        """
        windows = self._views.windows(np.asarray(rows), self.length, n_before=self.length - 1)
        is_real = windows.valid > 0
        histories = {}
        for key, views in self._space.views(by_key(windows.observations), n_leading=2).items():
            histories[key] = views * is_real.reshape(*is_real.shape, *(1,) * (views.ndim - 2)).astype(views.dtype)
        assert windows.actions is not None
        actions = self._space.encode(windows.actions[:, :-1].reshape(-1, *windows.actions.shape[2:]))
        histories[ACTIONS] = actions.reshape(len(is_real), self.length - 1, -1) * is_real[:, :-1, None]
        histories[IS_REAL] = is_real.astype(np.int8)
        keyed = spaces_by_key(self.observation_space)
        return {key: np.ascontiguousarray(array, keyed[key].dtype) for key, array in histories.items()}

    @property
    def id(self) -> str:
        """A digest of the recordings and the length."""
        return digest([self._views.id.encode(), str(self.length).encode()])
