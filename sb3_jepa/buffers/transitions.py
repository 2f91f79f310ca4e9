"""Transitions: what an objective learns from."""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


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
    :param ends: 1 where the step ended its episode, and not for want of time, shaped as ``valid``; None unless the
        objective asks for it
    """

    observations: PyTorchObs
    actions: th.Tensor
    next_observations: PyTorchObs | None
    valid: th.Tensor
    mask: th.Tensor | None = None
    targets: dict[str, th.Tensor] | None = None
    rewards: th.Tensor | None = None
    ends: th.Tensor | None = None
