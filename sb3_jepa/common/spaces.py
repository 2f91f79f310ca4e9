"""Spaces by key, and as JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.common.observations import NO_KEY

# Spaces whose samples are one array or number: those of actions, and of observations that are no Dict
ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """
    :param space: Of observations or actions
    :return: The arguments to make it again, as JSON knows them, and the name of its class
    :raises ValueError: If Stable-Baselines3 knows no such space
    """
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_json(one) for key, one in space.items()}}
    if isinstance(space, spaces.Box):
        bounds = {}
        for name, bound in (("low", space.low), ("high", space.high)):
            is_uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
            bounds[name] = bound.flat[0].item() if is_uniform else bound.tolist()
        return {"type": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), **_start(space)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), **_start(space)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.shape)}
    raise ValueError(
        "Observations must be a Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these, and actions one of the "
        f"first four, got {space}"
    )


def _start(space: spaces.Space) -> dict[str, Any]:
    """The smallest values of categories, if any is not 0."""
    start = np.asarray(getattr(space, "start", 0))
    return {"start": start.tolist()} if start.any() else {}


def space_from_json(description: Mapping[str, Any]) -> spaces.Space:
    """
    :param description: What :func:`space_to_json` returned
    :return: The space
    """
    arguments = dict(description)
    name = arguments.pop("type")
    if name == "Dict":
        # Pass pairs: a Dict space sorts the keys of a dictionary
        return spaces.Dict([(key, space_from_json(one)) for key, one in arguments["spaces"].items()])
    if name == "Box":
        shape, dtype = tuple(arguments["shape"]), np.dtype(arguments["dtype"])
        low, high = (np.broadcast_to(np.array(arguments[bound], dtype), shape).copy() for bound in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if name == "Discrete":
        return spaces.Discrete(**arguments)
    if name == "MultiDiscrete":
        return spaces.MultiDiscrete(**arguments)
    n = arguments["n"]
    return spaces.MultiBinary(n[0] if len(n) == 1 else n)


def spaces_by_key(observation_space: spaces.Space) -> Mapping[str, spaces.Space]:
    """
    :param observation_space: Observation space
    :return: The spaces of a ``Dict`` by their keys, and any other under one key
    """
    # A Dict space is a mapping itself, but `in` asks it for observations and not for keys
    return observation_space.spaces if isinstance(observation_space, spaces.Dict) else {NO_KEY: observation_space}
