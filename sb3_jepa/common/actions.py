"""Actions as a predictor is told them, and the distributions that they come from."""

import copy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn


def encode_actions(actions: th.Tensor, action_space: spaces.Space, is_scaled: bool = False) -> th.Tensor:
    """
    One-hot for discrete actions; continuous ones as the environment executes them, scaled to [-1, 1].

    :param actions: As a buffer stores them, ``(batch, action dim)``, or windows ``(batch, horizon, action dim)``
    :param action_space: Action space
    :param is_scaled: Whether continuous actions are scaled already, as those of a squashed policy
    :return: ``(batch, encoded action dim)``, or ``(batch, horizon, encoded action dim)``
    """
    if actions.ndim == 3:
        return encode_actions(actions.flatten(0, 1), action_space, is_scaled).unflatten(0, actions.shape[:2])
    if isinstance(action_space, spaces.Box):
        if is_scaled:
            return actions
        low, high = (
            th.as_tensor(bound, dtype=actions.dtype, device=actions.device).flatten()
            for bound in (action_space.low, action_space.high)
        )
        # Bounds may coincide: that action says nothing
        width = th.where(high > low, high - low, 1.0)
        return 2.0 * (actions.clamp(low, high) - low) / width - 1.0
    if isinstance(action_space, spaces.Discrete):
        actions = actions.flatten()
    encoded = preprocess_obs(actions, action_space)
    assert isinstance(encoded, th.Tensor)
    return encoded.flatten(1)


def unscale_actions(actions: Any, low: Any, high: Any) -> Any:
    """
    :param actions: Continuous actions in [-1, 1], an array or a tensor ``(batch, *action shape)``
    :param low: Lower bounds of the action space, of the same kind
    :param high: Upper bounds
    :return: The actions as the environment executes them
    """
    return low + 0.5 * (actions + 1.0) * (high - low)


def without_graph(distribution: Any) -> Any:
    """
    A distribution of actions holds tensors of the last forward pass. With their graph, they cannot be copied deeply.

    :param distribution: Of Stable-Baselines3 or PyTorch, or what one of them is made of
    :return: A shallow copy with the same numbers, detached from the graph
    """
    if isinstance(distribution, th.Tensor):
        return distribution.detach()
    if isinstance(distribution, list):
        return [without_graph(one) for one in distribution]
    if isinstance(distribution, (Distribution, th.distributions.Distribution)):
        detached = copy.copy(distribution)
        vars(detached).update({name: without_graph(value) for name, value in vars(distribution).items()})
        return detached
    return distribution


def forget_graphs(policy: nn.Module) -> None:
    """
    Let go of the graphs in a policy's distributions of actions, so that ``copy.deepcopy`` can copy the policy.

    :param policy: Of any algorithm, not in the middle of an update
    """
    for module in policy.modules():
        if hasattr(module, "action_dist"):
            module.action_dist = without_graph(module.action_dist)
