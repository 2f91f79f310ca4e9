"""Training of encoders between the rollouts of an algorithm that is not touched."""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_jepa.alternating.learner import EncoderLearner
from sb3_jepa.alternating.sources import ReplaySource, RolloutSource
from sb3_jepa.common.actions import encode_actions, forget_graphs
from sb3_jepa.extractors.finding import LEARNERS, pick_encoders
from sb3_jepa.extractors.preprocessing import preprocess
from sb3_jepa.extractors.sequence_extractor import default_objective
from sb3_jepa.extractors.teachers import describe_teacher
from sb3_jepa.objectives import Objective
from sb3_jepa.parts.transformer import Attention


class AlternatingTraining:
    """
    Trains the encoders of a model between its rollouts, after the algorithm has learned from the one before. What it
    learns with is kept in an attribute of the model, and with that in its zip.

    :param model: Of any algorithm. The other parameters are those of :class:`~sb3_jepa.JepaCallback`, checked there.
    :raises ValueError: If there is no such encoder, if the model was trained with another objective,
        or if its algorithm learns from neither rollouts nor a replay buffer
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        objective_class: type[Objective] | None = None,
        objective_kwargs: dict[str, Any] | None = None,
        encoders: list[str] | None = None,
        n_updates: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | Schedule | None = None,
    ):
        if not isinstance(model, (OnPolicyAlgorithm, OffPolicyAlgorithm)):
            raise ValueError(
                f"JepaCallback needs an algorithm that learns by gradients from rollouts or a replay buffer, got "
                f"{type(model).__name__}"
            )
        self.model = model
        self.n_updates = n_updates
        # Some algorithms have None, for all rows
        self.batch_size = int(batch_size or getattr(model, "batch_size", None) or 128)
        self.learning_rate = FloatSchedule(3e-4 if learning_rate is None else learning_rate)
        picked = pick_encoders(model, encoders)
        saved = getattr(model, LEARNERS, {})
        known = [one["objective_kwargs"] if isinstance(one, dict) else one.objective_kwargs for one in saved.values()]
        objective_kwargs = describe_teacher(objective_kwargs, known)
        self.learners = {
            name: EncoderLearner(
                model,
                encoder,
                objective_class or default_objective(type(encoder)),
                objective_kwargs,
                self.learning_rate(1.0),
            )
            for name, encoder in picked.items()
        }
        for name, learner in self.learners.items():
            if name in saved:
                state = saved[name]
                learner.load_state(state.state if isinstance(state, EncoderLearner) else state)
        # TRPO's conjugate gradients
        if hasattr(model, "cg_max_steps"):
            if not all(parameter.requires_grad for encoder in picked.values() for parameter in encoder.parameters()):
                raise ValueError("TRPO differentiates by all that it has: it cannot be trained with a frozen encoder")
            for module in model.policy.modules():
                if isinstance(module, Attention):
                    module.is_differentiable_twice = True
        self.source: RolloutSource | ReplaySource = (
            RolloutSource(model) if isinstance(model, OnPolicyAlgorithm) else ReplaySource(model)
        )
        setattr(model, LEARNERS, {**saved, **self.learners})

    @property
    def objectives(self) -> dict[str, Objective]:
        """What the encoders learn, by the names of their networks."""
        return {name: learner.objective for name, learner in self.learners.items()}

    def _preprocess(self, observations: Any) -> Any:
        policy = self.model.policy
        encoders = [learner.encoder for learner in self.learners.values()]
        return preprocess(observations, policy.observation_space, policy.normalize_images, encoders)

    def train(self, progress_remaining: float) -> None:
        """
        Let the encoders learn, if there is something to learn from.

        :param progress_remaining: Of the model's training, from 1 to 0
        """
        # Of the algorithm's update: other callbacks may copy the policy
        forget_graphs(self.model.policy)
        if not self.source.is_ready:
            return
        for learner in self.learners.values():
            update_learning_rate(learner.optimizer, self.learning_rate(progress_remaining))
            learner.objective.update_momentum(progress_remaining)
        # A replay buffer holds continuous actions as they are scaled
        is_scaled = isinstance(self.source, ReplaySource) or self.model.policy.squash_output
        # Between rollouts a policy is in evaluation mode
        was_training = self.model.policy.training
        for learner in self.learners.values():
            learner.encoder.train()
        # One source for all learners
        horizon = max(1, *(objective.horizon for objective in self.objectives.values()))
        with_rewards = any(objective.needs_rewards for objective in self.objectives.values())
        for transitions in self.source.minibatches(self.n_updates, self.batch_size, horizon, with_rewards):
            transitions = transitions._replace(
                observations=self._preprocess(transitions.observations),
                actions=encode_actions(transitions.actions, self.model.action_space, is_scaled),
                next_observations=self._preprocess(transitions.next_observations),
            )
            for learner in self.learners.values():
                learner.learn(transitions)
        for learner in self.learners.values():
            learner.encoder.train(was_training)
