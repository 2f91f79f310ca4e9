"""Observations by key: those of a ``Dict`` space, and all others under one key."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# The key of an observation that has none
NO_KEY = ""


def by_key(observations: Any) -> Mapping[str, Any]:
    """Observations of a ``Dict`` space as they are, and others under one key."""
    return observations if isinstance(observations, Mapping) else {NO_KEY: observations}


def as_observations(keyed: Mapping[str, Any]) -> Any:
    """Observations by key as the policy takes them: the inverse of :func:`by_key`."""
    return keyed.get(NO_KEY, keyed)


def concatenate(observations: list[Any]) -> Any:
    """One batch of several, arrays or dictionaries of such."""
    keyed = [by_key(one) for one in observations]
    return as_observations({key: np.concatenate([one[key] for one in keyed]) for key in keyed[0]})
