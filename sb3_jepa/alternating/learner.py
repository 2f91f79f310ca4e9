"""An encoder, its objective, and the optimiser that trains both between rollouts."""

from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_jepa.buffers.shifted_images import check_random_shift, shift_images
from sb3_jepa.buffers.transitions import Transitions
from sb3_jepa.common.divergence import check_gradients, optimizers_of
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.diagnostics import ObjectiveGauge
from sb3_jepa.extractors.finding import LEARNERS, find_encoders
from sb3_jepa.extractors.teachers import make_teacher
from sb3_jepa.objectives import Objective, ObjectiveInput


class EncoderLearner:
    """
    An encoder, its objective, and the optimiser that trains both.

    :param model: Whose encoder it is
    :param encoder: The context encoder
    :param objective_class: What it learns
    :param objective_kwargs: Keyword arguments to pass to the objective
    :param learning_rate: Of the optimiser (Adam)
    :raises ValueError: If the objective shifts images, and the observations have none
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        encoder: BaseFeaturesExtractor,
        objective_class: type[Objective],
        objective_kwargs: dict[str, Any],
        learning_rate: float,
    ):
        objective = _make_objective(model, encoder, objective_class, objective_kwargs)
        self.observation_space = model.observation_space
        check_random_shift(objective.random_shift, self.observation_space)
        self.encoder, self.objective, self.gauge = encoder, objective, ObjectiveGauge()
        self.objective_kwargs = objective_kwargs
        self.gauge.to(next(encoder.parameters()).device)
        trained = [*encoder.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
        self.optimizer = th.optim.Adam(trained, lr=learning_rate, fused=True)
        # They change the encoder too
        self._optimizers_of_model = optimizers_of(model.policy)

    def learn(self, transitions: Transitions) -> None:
        """
        One step of the optimiser.

        :param transitions: Preprocessed observations and encoded actions; of windows that are longer than the horizon
            of its objective, it takes the first steps
        """
        batch = transitions.first_steps(max(1, self.objective.horizon))
        observations, next_observations = map(self._shift, (batch.observations, batch.next_observations))
        embedding = self.gauge.watch_gradient("all", self.encoder(observations))
        output = self.objective(
            ObjectiveInput(
                self.encoder,
                observations,
                embedding,
                batch.actions,
                next_observations,
                batch.valid,
                rewards=batch.rewards,
                ends=batch.ends,
            )
        )
        self.optimizer.zero_grad()
        if output.loss.requires_grad:
            output.loss.backward()
            check_gradients(self.optimizer, self._optimizers_of_model)
            self.optimizer.step()
            self.objective.update_target(self.encoder)
        # The algorithm's optimiser has the encoder too
        self.optimizer.zero_grad()
        self.gauge.add(embedding, output)

    def _shift(self, observations: Any) -> Any:
        return shift_images(observations, self.observation_space, self.objective.random_shift)

    @property
    def state(self) -> dict[str, Any]:
        """All but the encoder, which is the model's."""
        # Tensors of another device may not be readable where the model is loaded
        return dict(
            objective_class=type(self.objective),
            objective_kwargs=self.objective_kwargs,
            objective=_to_cpu(self.objective.state_dict()),
            gauge=_to_cpu(self.gauge.state_dict()),
            optimizer=_to_cpu(self.optimizer.state_dict()),
        )

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, Any]]]:
        # In a model's zip: where it is loaded, there is no encoder yet
        return dict, (self.state,)

    def load_state(self, state: dict[str, Any]) -> None:
        """
        Go on where another learner was.

        :param state: Of that one
        :raises ValueError: If it had another objective
        """
        try:
            self.objective.load_state_dict(state["objective"])
            self.gauge.load_state_dict(state["gauge"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"The model was trained with another objective than {type(self.objective).__name__} with these "
                f"`objective_kwargs`. Pass those that it had, or `del model.{LEARNERS}` to begin anew. {error}"
            ) from error
        self.gauge.reset()


def _make_objective(
    model: BaseAlgorithm,
    encoder: BaseFeaturesExtractor,
    objective_class: type[Objective],
    objective_kwargs: dict[str, Any],
) -> Objective:
    action_dim = get_flattened_obs_dim(model.action_space)
    kwargs = make_teacher(objective_kwargs)
    # A training that is under way, or goes on, must not miss the random numbers of the initialisation
    with isolated_random_numbers():
        objective = objective_class(encoder, embed_dim=encoder.features_dim, action_dim=action_dim, **kwargs)
    return objective.to(model.device)


def find_objectives(model: BaseAlgorithm) -> dict[str, tuple[Objective, float]]:
    """
    What the encoders of a model learn or have learned, jointly or in turn with the algorithm.

    :param model: Of any algorithm; it may have been loaded
    :return: By the names of :func:`~sb3_jepa.extractors.finding.find_encoders`, and with the embedding variance of the
        encoder before it was trained (0 if it never was)
    """
    if hasattr(model.policy, "objectives"):
        policy: Any = model.policy
        variances = {name: float(gauge.first_embedding_variance) for name, gauge in policy.gauges.items()}
        return {name: (objective, variances[name]) for name, objective in policy.objectives.items()}
    encoders = find_encoders(model.policy)
    found = {}
    for name, learner in getattr(model, LEARNERS, {}).items():
        if isinstance(learner, EncoderLearner):
            found[name] = learner.objective, float(learner.gauge.first_embedding_variance)
        else:
            # Of a model that was loaded
            kwargs = learner["objective_kwargs"]
            objective = _make_objective(model, encoders[name], learner["objective_class"], kwargs)
            objective.load_state_dict(learner["objective"])
            found[name] = objective, float(learner["gauge"]["first_embedding_variance"])
    return found


def _to_cpu(state: Any) -> Any:
    if isinstance(state, th.Tensor):
        # A copy, for what was saved must not change with the training
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: _to_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_to_cpu(value) for value in state]
    return state
