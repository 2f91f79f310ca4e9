"""A trained model's encoder and predictor, as functions of observations and actions."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs

from sb3_jepa.alternating.learner import find_objectives
from sb3_jepa.common import checks
from sb3_jepa.common.actions import encode_actions
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.extractors.finding import pick_encoders
from sb3_jepa.objectives import NextLatentPrediction, Objective

# Observations that are embedded at once
BATCH_SIZE = 256


class LatentModel:
    """
    What the encoder of a model makes of observations, and what its predictor expects of actions. It computes with the
    model's own parameters, and so follows their training. (Of a model that was loaded, and whose encoder learned in
    turn with the algorithm, predictor and target encoder stay as they were saved.) Nothing is learned here.

    :param model: Of any algorithm; its policy learned jointly or with :class:`~sb3_jepa.JepaCallback`, or has at least
        an encoder
    :param encoder: Name of the network that it belongs to, such as ``"critic"``; by default the first that has an
        objective
    :raises ValueError: If there is no such encoder
    """

    def __init__(self, model: BaseAlgorithm, encoder: str | None = None):
        self.model, self.policy = model, checks.instance("model", model, BaseAlgorithm).policy
        encoder = checks.optional(checks.text, "encoder", encoder)
        objectives = find_objectives(model)
        encoders = pick_encoders(model, None if encoder is None else [encoder])
        self.name = next((name for name in encoders if name in objectives), next(iter(encoders)))
        self.encoder = encoders[self.name]
        objective, self.first_embedding_variance = objectives.get(self.name, (None, 0.0))
        # Other objectives do not predict what an action leads to
        predicts_next = isinstance(objective, NextLatentPrediction) or (
            objective is not None
            and hasattr(objective, "predictor")
            and objective.needs_actions
            and objective.horizon == 1
        )
        self._objective = objective if predicts_next else None
        self.other_objective = objective if self._objective is None else None

    @property
    def has_objective(self) -> bool:
        """Whether there are a target encoder and a predictor of what an action leads to."""
        return self._objective is not None

    @property
    def objective(self) -> Objective:
        """
        What the encoder learns.

        :raises ValueError: If it learned nothing, or something else
        """
        if self._objective is None:
            raise ValueError(
                f"The encoder {self.name!r} of this {type(self.model).__name__} has no JEPA objective that predicts "
                "what an action leads to: train it with a JepaPolicy or JepaCallback, and NextLatentPrediction"
            )
        return self._objective

    @th.no_grad()
    def in_batches(self, observations: Any, compute: Callable[[Any], Any]) -> Iterator[Any]:
        """What ``compute`` returns for preprocessed observations, one batch after the other, in evaluation mode."""
        tensors, _ = self.policy.obs_to_tensor(observations)
        were_training = {module: module.training for module in self.encoder.modules()}
        self.encoder.eval()
        try:
            split = {key: tensor.split(BATCH_SIZE) for key, tensor in by_key(tensors).items()}
            for batch in zip(*split.values(), strict=True):
                one = as_observations(dict(zip(split, batch, strict=True)))
                yield compute(
                    preprocess_obs(one, self.policy.observation_space, normalize_images=self.policy.normalize_images)
                )
        finally:
            # Do not call train(): it may warn that a training begins
            for module, was_training in were_training.items():
                module.training = was_training

    def embed(self, observations: Any) -> th.Tensor:
        """
        :param observations: ``(batch, *observation shape)``, as the environment gives them, or a dictionary of such
        :return: Context embeddings ``(batch, embed_dim)``
        """
        return th.cat(list(self.in_batches(observations, self.encoder)))

    def embed_target(self, observations: Any) -> th.Tensor:
        """
        :param observations: As of :meth:`embed`
        :return: Target embeddings ``(batch, embed_dim)``
        """
        return th.cat(list(self.in_batches(observations, self.objective.target_encoder)))

    def encode_actions(self, actions: np.ndarray) -> th.Tensor:
        """
        :param actions: As the environment executes them, ``(batch, *action shape)``
        :return: ``(batch, encoded action dim)``
        """
        flat = np.asarray(actions, dtype=np.float32).reshape(len(actions), -1)
        return encode_actions(th.as_tensor(flat, device=self.model.device), self.model.action_space)

    @th.no_grad()
    def predict(self, embeddings: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param embeddings: ``(batch, embed_dim)``
        :param actions: Encoded actions ``(batch, action_dim)``
        :return: Predicted embeddings of the next observations ``(batch, embed_dim)``
        """
        return self.objective.predictor(embeddings, actions)  # type: ignore[operator]

    def surprise(self, observations: Any, actions: np.ndarray, next_observations: Any) -> np.ndarray:
        r"""
        How far the next observation is from what the predictor expected:
        :math:`\lVert g_\phi(s_x, a) - s_y \rVert_2^2`, the prediction loss (*JEPA for RL*, arXiv 2504.16591, eq. 1) of
        each transition.

        :param observations: ``(batch, *observation shape)``, as the environment gives them, or a dictionary of such
        :param actions: As the environment executes them, ``(batch, *action shape)``
        :param next_observations: As the observations
        :return: ``(batch,)``
        """
        expected = self.predict(self.embed(observations), self.encode_actions(actions))
        return (expected - self.embed_target(next_observations)).square().sum(dim=1).cpu().numpy()
