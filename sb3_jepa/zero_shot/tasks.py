"""Tasks: vectors that rewards, a goal or a demonstration give, and how well they do so."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from sb3_jepa.zero_shot.losses import fit_task
from sb3_jepa.zero_shot.networks import project

# Below it, a task vector says little about the rewards
POOR_R2 = 0.1
# With fewer observations whose reward is not 0 it is chance which ones they are
FEW_REWARDED = 10


@dataclass(frozen=True)
class Fit:
    """
    How well a task vector reproduces the rewards that it was inferred from.

    :param r2: Coefficient of determination of the least squares: 1 if rewards are linear in the embeddings, about 0 if
        the embeddings say nothing of them
    :param nonzero_share: Share of the rewards that are not 0
    :param n_observations: How many observations there were
    :param norm: Of the vector before it was projected
    """

    r2: float
    nonzero_share: float
    n_observations: int
    norm: float


@dataclass(frozen=True)
class Task:
    """
    What a policy is to do, see :meth:`~sb3_jepa.TDJEPA.infer`.

    :param vector: Task vector ``(task_dim,)``, or one for each step of an episode, ``(steps, task_dim)``
    :param source: What it was inferred from: ``"reward"``, ``"goal"``, ``"demonstration"`` or ``"interaction"``
    :param fit: How well it reproduces the rewards; None if there were none
    """

    vector: np.ndarray
    source: str
    fit: Fit | None = None


def task_of_rewards(embeddings: th.Tensor, rewards: np.ndarray, source: str = "reward") -> Task:
    """
    Least squares, projected. Warns if the vector reproduces the rewards badly.

    :param embeddings: Task embeddings of what the rewards were given for, ``(samples, task_dim)``
    :param rewards: ``(samples,)``
    :param source: Where they are from
    :return: The task
    :raises ValueError: If a reward is not finite, or all are 0
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    n_missing = int(np.count_nonzero(~np.isfinite(rewards)))
    if n_missing:
        raise ValueError(f"Rewards must be finite, and {n_missing} of {len(rewards)} are NaN or infinite")
    n_rewarded = int(np.count_nonzero(rewards))
    if n_rewarded == 0:
        raise ValueError(
            f"All {len(rewards)} rewards are 0, so nothing tells this task from others. Give observations that are "
            "rewarded (`observations`, `rewards`), a wider reward, or the goal itself (`goal`)"
        )
    vector = fit_task(embeddings, th.as_tensor(rewards, device=embeddings.device))
    residuals = rewards - (embeddings.double() @ vector).cpu().numpy()
    spread = np.square(rewards - rewards.mean()).sum()
    # Rewards that are all alike have no spread to explain
    r2 = float(1.0 - np.square(residuals).sum() / spread) if spread > 0 else 0.0
    fit = Fit(r2, n_rewarded / len(rewards), len(rewards), float(vector.norm()))
    advice = _advice(fit, n_rewarded)
    if advice:
        warnings.warn(
            f"The task vector reproduces its rewards badly: R² {fit.r2:.2f}, {n_rewarded} of {fit.n_observations} "
            f"rewards are not 0. {advice}",
            UserWarning,
            stacklevel=3,
        )
    return Task(project(vector).float().cpu().numpy(), source, fit)


def _advice(fit: Fit, n_rewarded: int) -> str | None:
    if n_rewarded < FEW_REWARDED:
        return "Give more observations that are rewarded, a wider reward, or the goal itself (`goal`)"
    if fit.r2 < POOR_R2:
        return (
            "Where rewards are alike everywhere, subtract their mean. Else embeddings do not tell what is rewarded: "
            "learn for longer, with a larger `task_dim` or other observations"
        )
    return None


def tasks_of_demonstration(embeddings: th.Tensor, horizon: int) -> np.ndarray:
    """
    For each step the mean of the embeddings of the next observations, projected.

    :param embeddings: Task embeddings of an episode, ``(steps, task_dim)``
    :param horizon: How many of the next ones count; fewer at the end
    :return: Task vectors ``(steps - 1, task_dim)``
    """
    sums = th.nn.functional.pad(embeddings.cumsum(dim=0), (0, 0, 1, 0))
    n = len(embeddings)
    first = th.arange(1, n, device=embeddings.device)
    last = (first + horizon).clamp(max=n)
    return project((sums[last] - sums[first]) / (last - first)[:, None]).cpu().numpy()


def as_batch(observation: Any, space: Any) -> Any:
    """
    :param observation: One observation, or a dictionary
    :param space: Its space
    :return: The same with a batch axis of 1
    """
    if isinstance(observation, dict):
        return {key: as_batch(value, space) for key, value in observation.items()}
    return np.asarray(observation)[None]
