"""Transitions: what an objective learns from."""

from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_jepa.common.observations import as_observations, by_key


class Transitions(NamedTuple):
    """
    What an objective learns from: a batch of transitions. With ``Dict`` observations, a dictionary of such.

    An objective that looks several steps ahead (``objective.horizon > 1``) gets a window of that many steps for each
    row. Its first action is the one that was taken at the row's observation.

    :param observations: ``(batch, *observation shape)``
    :param actions: As the buffer stores them, ``(batch, action dim)``; of windows ``(batch, horizon, action dim)``
    :param next_observations: ``(batch, *observation shape)``; of windows ``(batch * horizon, *observation shape)``, the
        window of one row after that of another; None if their targets are known
    :param valid: ``(batch,)``, 1 where the next observation is known, 0 where it is not; of windows
        ``(batch, horizon)``, 0 from an episode's end on
    :param mask: If sequences are padded, which rows of ``observations`` are real, ``(padded batch,)``. All the others
        have these rows only.
    :param targets: The target embeddings of the next observations, ``(batch, embed_dim)`` for each encoder, of windows
        ``(batch, horizon, embed_dim)``, if the rollout buffer keeps them
    :param rewards: What each step brought, shaped as ``valid``; None unless the objective asks for it
    :param ends: 1 where the step ended its episode, and not for want of time, 0 in the steps of a window after that,
        shaped as ``valid``; None unless the objective asks for it
    """

    observations: PyTorchObs
    actions: th.Tensor
    next_observations: PyTorchObs | None
    valid: th.Tensor
    mask: th.Tensor | None = None
    targets: dict[str, th.Tensor] | None = None
    rewards: th.Tensor | None = None
    ends: th.Tensor | None = None

    def first_steps(self, horizon: int) -> "Transitions":
        """
        :param horizon: How many steps of each window to keep
        :return: The same with shorter windows; with one step, without the axis of the windows
        """
        if self.valid.ndim == 1 or self.valid.shape[1] == horizon:
            return self
        n_rows = len(self.valid)
        steps: Any = slice(horizon) if horizon > 1 else 0

        def shorten(windows: th.Tensor | None) -> Any:
            return None if windows is None else windows[:, steps]

        next_observations = self.next_observations
        if next_observations is not None:
            kept = {
                key: rows.unflatten(0, (n_rows, -1))[:, :horizon].flatten(0, 1)
                for key, rows in by_key(next_observations).items()
            }
            next_observations = as_observations(kept)
        targets = None if self.targets is None else {name: shorten(target) for name, target in self.targets.items()}
        return self._replace(
            actions=shorten(self.actions),
            next_observations=next_observations,
            valid=shorten(self.valid),
            targets=targets,
            rewards=shorten(self.rewards),
            ends=shorten(self.ends),
        )
