"""Histories as observations: their keys, and the views and actions in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.observations import NO_KEY, by_key
from sb3_jepa.common.spaces import ARRAY_SPACES, spaces_by_key

# Keys of a history; those of the views of a Dict are "views_" and the key
VIEWS, ACTIONS, IS_REAL = "views", "actions", "is_real"


def views_key(key: str = NO_KEY) -> str:
    """
    :param key: Of a ``Dict`` observation; by default the observation is a single array
    :return: Under which key a history has its views
    """
    return f"{VIEWS}_{key}" if key else VIEWS


def has_views(key: str) -> bool:
    """
    :param key: Of an observation
    :return: Whether a history has views there
    """
    return key == VIEWS or key.startswith(views_key("_")[:-1])


def is_history(space: spaces.Space) -> bool:
    """
    :param space: Observation space
    :return: Whether its observations are those of :class:`~sb3_jepa.envs.VecHistory`
    """
    if not isinstance(space, spaces.Dict):
        return False
    return {ACTIONS, IS_REAL} <= set(space.spaces) and any(map(has_views, space.spaces))


class HistorySpace:
    """
    What histories look like.

    :param observation_space: Of a single view: a ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``, or a
        ``Dict`` of these
    :param action_space: Of the actions: one of the former four
    :param length: How many views there are
    :param keys: Of which observations of a ``Dict`` there is a history; the others are those of the newest view. All by
        default
    :raises ValueError: If an argument is not among those accepted
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        length: int,
        keys: Sequence[str] | None = None,
    ):
        self.length = checks.whole_number("length", length, 2)
        keyed = spaces_by_key(observation_space)
        keys = checks.optional(checks.texts, "keys", keys)
        if keys is not None and not (isinstance(observation_space, spaces.Dict) and keys and set(keys) <= set(keyed)):
            checks.refuse("keys", f"None or some of the keys of {observation_space}", keys)
        for name, space in [*keyed.items(), ("actions", action_space)]:
            if not isinstance(space, ARRAY_SPACES):
                raise ValueError(
                    "A history needs observations and actions that are a Box, Discrete, MultiDiscrete or MultiBinary, "
                    f"or observations that are a Dict of these, got {space}" + (f" for {name!r}" if name else "")
                )
        taken = sorted({*keyed} & {ACTIONS, IS_REAL})
        if taken:
            raise ValueError(f"A history has names of its own, which observations must not have: got {taken}")
        self.action_space, self.keys = action_space, list(keyed) if keys is None else keys
        self._categories = {key: keyed[key] for key in self.keys if not isinstance(keyed[key], spaces.Box)}
        self.observation_space = spaces.Dict(
            {
                **{views_key(key): self._space_of_views(keyed[key]) for key in self.keys},
                **{key: space for key, space in keyed.items() if key not in self.keys},
                ACTIONS: spaces.Box(-1.0, 1.0, (self.length - 1, spaces.flatdim(action_space)), np.float32),
                IS_REAL: spaces.MultiBinary(self.length),
            }
        )

    def _space_of_views(self, space: spaces.Space) -> spaces.Box:
        if isinstance(space, spaces.Box):
            low, high = (np.repeat(bound[None], self.length, axis=0) for bound in (space.low, space.high))
            # What lies before an episode is zero
            return spaces.Box(np.minimum(low, 0), np.maximum(high, 0), dtype=space.dtype.type)  # type: ignore[type-var]
        return spaces.Box(0.0, 1.0, (self.length, spaces.flatdim(space)), np.float32)

    def views(self, observations: Any, n_leading: int = 1) -> dict[str, np.ndarray]:
        """
        :param observations: With as many leading axes, such as ``(environments, *observation shape)``
        :param n_leading: Number of leading axes
        :return: The same under the keys of a history; of categories one-hot codes
        """
        views = {}
        keyed: Mapping[str, Any] = by_key(observations)
        for key in self.keys:
            array = np.asarray(keyed[key])
            if key in self._categories:
                space, leading = self._categories[key], array.shape[:n_leading]
                rows = array.reshape(-1, *array.shape[n_leading:])
                array = np.stack([np.asarray(spaces.flatten(space, one)) for one in rows]).reshape(*leading, -1)
            views[views_key(key)] = array
        return views

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: As the environment executes them, ``(batch, *action shape)``
        :return: As predictors are told them, ``(batch, encoded action dim)``: one-hot for discrete ones, continuous
            ones scaled to [-1, 1]
        """
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return np.stack([np.asarray(spaces.flatten(space, one)) for one in actions])
        dim = spaces.flatdim(space)
        flat, low, high = (np.asarray(one, np.float32).reshape(-1, dim) for one in (actions, space.low, space.high))
        # Bounds may coincide: that action says nothing
        return 2.0 * (flat.clip(low, high) - low) / np.where(high > low, high - low, 1.0) - 1.0
