"""Running means and variances of an environment's wrappers, agreed by all ranks."""

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_jepa.common import ranks
from sb3_jepa.common.observations import by_key


class RunningStatistics:
    """
    The running means and variances of an environment's wrappers, such as ``VecNormalize``. Between two calls of
    :meth:`agree`, each rank adds what it sees.

    :param env: The training environment of this rank
    """

    def __init__(self, env: VecEnv | None):
        self._statistics: list[RunningMeanStd] = []
        while isinstance(env, VecEnvWrapper):
            of_wrapper = [by_key(value).values() for value in vars(env).values()]
            self._statistics += [one for values in of_wrapper for one in values if isinstance(one, RunningMeanStd)]
            env = env.venv

    @property
    def shapes(self) -> dict[str, Any]:
        """What must be equal on all ranks."""
        return {"running statistics of the environment": [one.mean.shape for one in self._statistics]}

    def broadcast(self) -> None:
        """Begin with those of rank 0."""
        first, *_ = ranks.gather_objects([(one.mean, one.var, one.count) for one in self._statistics])
        for one, (mean, var, count) in zip(self._statistics, first, strict=True):
            one.mean, one.var, one.count = mean, var, count
        self._agreed = first

    @property
    def seen(self) -> list[tuple[Any, Any, Any]]:
        """What this rank has added: a count, and sums of differences from the agreed mean and of their squares."""
        added = []
        for one, (mean, var, count) in zip(self._statistics, self._agreed, strict=True):
            difference = one.mean - mean
            squares = one.count * (one.var + difference**2) - count * var
            added.append((one.count - count, one.count * difference, squares))
        return added

    def agree(self, seen: list[list[tuple[Any, Any, Any]]]) -> None:
        """
        Put together what was agreed before and what all ranks have added.

        :param seen: Of each rank
        """
        for index, (one, (mean, var, count)) in enumerate(zip(self._statistics, self._agreed, strict=True)):
            n_added, sums, squares = (sum(values) for values in zip(*(of_rank[index] for of_rank in seen), strict=True))
            # What is no longer updated stays as it is, to the last bit
            if n_added > 0:
                difference = sums / (count + n_added)
                one.mean, one.count = mean + difference, count + n_added
                one.var = np.maximum((count * var + squares) / one.count - difference**2, 0.0)
        self._agreed = [(one.mean, one.var, one.count) for one in self._statistics]
