"""Chunks of actions of any space: what a decoder puts out for them, its loss, and how one is chosen."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks

# A number that moves by less than this share of its range is taken to stand still: its noise is not blown up
STILL_SHARE = 0.01


class ContinuousActions(nn.Module):
    """
    Actions of a ``Box``, standardised by their mean and deviation in the demonstrations. A number that does not move
    there is not divided by its deviation.

    :param space: Action space
    """

    mean: th.Tensor
    deviation: th.Tensor

    def __init__(self, space: spaces.Box):
        super().__init__()
        self.space = space
        self.output_dim = int(np.prod(space.shape))
        self.register_buffer("mean", th.zeros(self.output_dim))
        self.register_buffer("deviation", th.ones(self.output_dim))

    def measure(self, actions: np.ndarray) -> None:
        """
        :param actions: Of the demonstrations, ``(rows, *action shape)``
        """
        flat = actions.reshape(len(actions), -1).astype(np.float64)
        span = np.ptp(flat, axis=0)
        bounded = np.isfinite(self.space.low.reshape(-1)) & np.isfinite(self.space.high.reshape(-1))
        width = np.where(bounded, self.space.high.reshape(-1) - self.space.low.reshape(-1), span)
        deviation = flat.std(axis=0)
        stands_still = span <= STILL_SHARE * width
        self.mean.copy_(th.as_tensor(flat.mean(axis=0)))
        self.deviation.copy_(th.as_tensor(np.where(stands_still | (deviation == 0), 1.0, deviation)))

    def encode(self, actions: np.ndarray) -> th.Tensor:
        """
        :param actions: ``(batch, steps, *action shape)``
        :return: What the loss takes, ``(batch, steps, output_dim)``, standardised
        """
        flat = th.as_tensor(actions, dtype=th.float32, device=self.mean.device).flatten(2)
        return (flat - self.mean) / self.deviation

    def errors(self, outputs: th.Tensor, encoded: th.Tensor) -> th.Tensor:
        """
        :param outputs: Of the decoder, ``(batch, steps, output_dim)``
        :param encoded: What they should be, of :meth:`encode`
        :return: Loss of each step, ``(batch, steps)``: the mean absolute error, in deviations
        """
        return (outputs - encoded).abs().mean(dim=2)

    distances = errors

    def decode(self, outputs: th.Tensor) -> th.Tensor:
        """
        :param outputs: Of the decoder, ``(batch, steps, output_dim)``
        :return: What an action is chosen from, of the same shape: the actions in their units
        """
        return outputs * self.deviation + self.mean

    def choose(self, decoded: np.ndarray, deterministic: bool) -> np.ndarray:
        """
        :param decoded: Of one step, ``(n_envs, output_dim)``
        :param deterministic: Without effect: a chunk is one guess, and not a distribution
        :return: Actions within their bounds, ``(n_envs, *action shape)``
        """
        actions = decoded.reshape(-1, *self.space.shape)
        return np.clip(actions, self.space.low, self.space.high).astype(self.space.dtype)

    def constant(self) -> th.Tensor:
        """What :meth:`distances` takes for always acting alike, ``(output_dim,)``: the mean action of the data."""
        return th.zeros_like(self.mean)


class CategoricalActions(nn.Module):
    """
    Actions of a ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``: logits of each variable's categories.

    :param space: Action space
    """

    frequency: th.Tensor

    def __init__(self, space: spaces.Space):
        super().__init__()
        self.space = space
        if isinstance(space, spaces.Discrete):
            self.sizes, self.start = [int(space.n)], np.array([int(space.start)])
        elif isinstance(space, spaces.MultiDiscrete):
            self.sizes, self.start = space.nvec.reshape(-1).tolist(), np.asarray(space.start).reshape(-1)
        else:
            n = int(np.prod(space.shape or ()))
            self.sizes, self.start = [2] * n, np.zeros(n, int)
        self.output_dim = sum(self.sizes)
        self.register_buffer("frequency", th.zeros(self.output_dim))

    def measure(self, actions: np.ndarray) -> None:
        """
        :param actions: Of the demonstrations, ``(rows, *action shape)``
        """
        numbers = self.encode(actions[None])[0]
        one_hot = [F.one_hot(numbers[:, index], size).float().mean(dim=0) for index, size in enumerate(self.sizes)]
        self.frequency.copy_(th.cat(one_hot))

    def encode(self, actions: np.ndarray) -> th.Tensor:
        """
        :param actions: ``(batch, steps, *action shape)``
        :return: What the loss takes: numbers from 0 on, ``(batch, steps, variables)``
        """
        numbers = np.asarray(actions).reshape(*actions.shape[:2], -1) - self.start
        return th.as_tensor(numbers, dtype=th.long, device=self.frequency.device)

    def errors(self, outputs: th.Tensor, encoded: th.Tensor) -> th.Tensor:
        """
        :param outputs: Logits, ``(batch, steps, output_dim)``
        :param encoded: What they should be, of :meth:`encode`
        :return: Loss of each step, ``(batch, steps)``: the mean cross entropy of the variables
        """
        logits = outputs.split(self.sizes, dim=2)
        losses = [F.cross_entropy(one.movedim(2, 1), encoded[..., i], reduction="none") for i, one in enumerate(logits)]
        return th.stack(losses).mean(dim=0)

    def distances(self, outputs: th.Tensor, encoded: th.Tensor) -> th.Tensor:
        """
        :param outputs: Logits, ``(batch, steps, output_dim)``
        :param encoded: What they should be, of :meth:`encode`
        :return: Which share of the variables is wrong at each step, ``(batch, steps)``
        """
        likeliest = th.stack([one.argmax(dim=2) for one in outputs.split(self.sizes, dim=2)], dim=2)
        return (likeliest != encoded).float().mean(dim=2)

    def decode(self, outputs: th.Tensor) -> th.Tensor:
        """
        :param outputs: Logits, ``(batch, steps, output_dim)``
        :return: What an action is chosen from, of the same shape: the probabilities
        """
        return th.cat([one.softmax(dim=2) for one in outputs.split(self.sizes, dim=2)], dim=2)

    def choose(self, decoded: np.ndarray, deterministic: bool) -> np.ndarray:
        """
        :param decoded: Probabilities of one step, ``(n_envs, output_dim)``
        :param deterministic: Whether to take the likeliest category instead of drawing one
        :return: Actions ``(n_envs, *action shape)``
        """
        columns = []
        for probabilities in np.split(decoded, np.cumsum(self.sizes)[:-1], axis=1):
            if not deterministic:
                # The largest of these is a draw from the probabilities (Gumbel)
                uniform = th.rand(probabilities.shape).numpy().clip(1e-12)
                probabilities = np.log(probabilities.clip(1e-12)) - np.log(-np.log(uniform))
            columns.append(probabilities.argmax(axis=1))
        numbers = np.stack(columns, axis=1) + self.start
        return numbers.reshape(-1, *(self.space.shape or ())).astype(self.space.dtype)

    def constant(self) -> th.Tensor:
        """What :meth:`distances` takes for always acting alike, ``(output_dim,)``: the most frequent categories."""
        return self.frequency


def chunked_actions(space: spaces.Space) -> ContinuousActions | CategoricalActions:
    """
    :param space: Action space
    :return: How its actions are learned
    :raises ValueError: If there is no way
    """
    if isinstance(space, spaces.Box):
        return ContinuousActions(space)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return CategoricalActions(space)
    checks.refuse("action_space", "a Box, Discrete, MultiDiscrete or MultiBinary", space)


def check_in_space(name: str, actions: Any, space: spaces.Space, rows: np.ndarray) -> None:
    """
    :param name: Of the argument that the actions are from
    :param actions: ``(rows, *action shape)``
    :param space: Action space
    :param rows: Their numbers
    :raises ValueError: If one lies outside the space
    """
    actions = np.asarray(actions)
    flat = actions.reshape(len(actions), -1)
    if isinstance(space, spaces.Box):
        # What a simulator has stored may be rounded
        slack = 1e-4 * np.maximum(1.0, np.abs(flat))
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        outside = (flat < low - slack) | (flat > high + slack) | ~np.isfinite(flat)
    else:
        sizes = CategoricalActions(space)
        outside = (flat < sizes.start) | (flat >= sizes.start + np.array(sizes.sizes))
    if outside.any():
        bad = np.flatnonzero(outside.any(axis=1))
        raise ValueError(
            f"`{name}` must have actions of {space}, got {actions[bad[0]].tolist()} at row {rows[bad[0]]}, and others "
            f"at {len(bad) - 1} more of {len(actions)} rows. Clip them, or scale them as the environment takes them"
        )
