"""How far transitions are from what a model predicts."""

from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_jepa.common.observations import by_key
from sb3_jepa.inspection.latent_model import LatentModel


def surprise(
    model: BaseAlgorithm, observations: Any, actions: Any, next_observations: Any, encoder: str | None = None
) -> np.ndarray:
    """
    How far each next observation is from what the model's predictor expected, see :meth:`LatentModel.surprise`.

    :param model: Of any algorithm; its policy learned jointly or with :class:`~sb3_jepa.JepaCallback`
    :param observations: ``(batch, *observation shape)``, as the environment gives them, or a dictionary of such; of a
        single transition, ``batch`` may be left out
    :param actions: As the environment executes them, ``(batch, *action shape)``
    :param next_observations: As the observations; at the end of an episode, the terminal observation
    :param encoder: Name of the network whose encoder and predictor are used, such as ``"critic"``; by default the
        first that has both
    :return: ``(batch,)``
    :raises ValueError: If there is no such encoder, if it has no predictor, or if shapes do not match
    """
    latent_model = LatentModel(model, encoder)
    actions, action_shape = np.asarray(actions), model.action_space.shape
    # All action spaces of Stable-Baselines3 have a shape
    assert action_shape is not None
    if actions.shape == action_shape:
        actions = actions[None]
    if actions.shape[1:] != action_shape:
        accepted = str(("batch", *action_shape)).replace("'", "")
        raise ValueError(f"`actions` must be of shape {accepted}, got {actions.shape}")
    sizes = dict(
        observations=_batch_size(model, observations),
        actions=len(actions),
        next_observations=_batch_size(model, next_observations),
    )
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{size} `{name}`" for name, size in sizes.items())
        raise ValueError(f"Each transition needs an observation, an action and a next observation, got {given}")
    return latent_model.surprise(observations, actions, next_observations)


def _batch_size(model: BaseAlgorithm, observations: Any) -> int:
    tensors, _ = model.policy.obs_to_tensor(observations)
    return len(next(iter(by_key(tensors).values())))
