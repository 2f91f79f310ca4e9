"""Actions as a predictor is told them."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs


def encode_actions(actions: th.Tensor, action_space: spaces.Space, is_scaled: bool = False) -> th.Tensor:
    """
    One-hot for discrete actions; continuous ones as the environment executes them, scaled to [-1, 1].

    :param actions: As a buffer stores them, ``(batch, action dim)``
    :param action_space: Action space
    :param is_scaled: Whether continuous actions are scaled already, as those of a squashed policy
    :return: ``(batch, encoded action dim)``
    """
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
