"""Policies of off-policy algorithms that learn a JEPA objective in the critic's backward pass."""

from functools import partial
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_jepa.buffers.transitions import Transitions
from sb3_jepa.common import checks
from sb3_jepa.common.actions import encode_actions
from sb3_jepa.common.histories import is_history
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.mlp_extractor import MlpExtractor, has_only_vectors
from sb3_jepa.extractors.sequence_extractor import SequenceExtractor
from sb3_jepa.objectives import MaskedPrediction, ObjectiveInput
from sb3_jepa.policies.learns_jointly import LearnsJointly


class CriticEmbedding(BaseFeaturesExtractor):
    """
    The features extractor of an actor without an encoder of its own: it takes the embedding of the critic's encoder.

    :param observation_space: Observation space
    :param features_dim: Width of the embedding
    """

    def forward(self, embedding: th.Tensor) -> th.Tensor:
        """
        :param embedding: ``(batch, embed_dim)``
        :return: The same
        """
        return embedding


class OffPolicyJointPolicy(LearnsJointly):
    """
    Makes the policy of an off-policy algorithm learn a JEPA objective too, see
    :class:`~sb3_jepa.policies.learns_jointly.LearnsJointly`. There is one context encoder, that of the critic (for DQN
    and QR-DQN, of the Q-network): it learns from the critic's loss and the objective's in one backward pass and one
    step of the critic's optimiser. The objective's target encoder follows after that step.

    The actor reads the embedding as it is, as in *CURL* (Laskin et al. 2020, arXiv 2004.04136) and *DrQ* (Kostrikov et
    al. 2020, arXiv 2004.13649). The observations of a minibatch are embedded once: what the actor's loss is computed
    from is the embedding of before the critic's step. (In Stable-Baselines3, the actor acts on that one too, and the
    critic judges it by a new one.)

    Minibatches have to be announced by :meth:`begin_minibatch`, as ``sb3_jepa.DQN`` and the others do.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param actor_gradient: Whether the gradient of the actor's loss reaches the encoder too, by the actor's optimiser.
        This takes one more forward and backward pass of the encoder.
    :param features_extractor_class: The context encoder. By default :class:`~sb3_jepa.extractors.MlpExtractor` if there
        are only vectors and categories, else :class:`~sb3_jepa.JepaExtractor`, also for an objective that hides tokens;
        for the histories of :class:`~sb3_jepa.envs.VecHistory` a :class:`~sb3_jepa.SequenceExtractor`.
    :param encoder_lr_factor: As of :class:`~sb3_jepa.policies.learns_jointly.LearnsJointly`
    :param kwargs: The further parameters of :class:`~sb3_jepa.policies.learns_jointly.LearnsJointly`, and of the policy
        that this is mixed into
    :raises ValueError: If an argument is out of range, or has no meaning off-policy; when it is about to be trained
        without transitions
    """

    # The network whose encoder learns
    learner: ClassVar[str] = "critic"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        actor_gradient: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        encoder_lr_factor: float | Schedule = 1.0,
        **kwargs: Any,
    ):
        if features_extractor_class is None:
            objective_class = kwargs.get("objective_class")
            hides_tokens = isinstance(objective_class, type) and issubclass(objective_class, MaskedPrediction)
            takes_mlp = has_only_vectors(observation_space) and not hides_tokens
            features_extractor_class = MlpExtractor if takes_mlp else JepaExtractor
            if is_history(observation_space):
                features_extractor_class = SequenceExtractor
        self.actor_gradient = checks.flag("actor_gradient", actor_gradient)
        if self.actor_gradient and self.learner != "critic":
            raise ValueError(f"`actor_gradient` must be False for a {type(self).__name__}: it has no actor, got True")
        if kwargs.pop("share_features_extractor", True) is not True:
            raise ValueError(
                f"`share_features_extractor` must be True for a {type(self).__name__}, whose actor reads the embedding "
                "of the critic's encoder. For an encoder of each, train a policy of Stable-Baselines3 with a "
                "sb3_jepa.JepaCallback"
            )
        # The minibatch of an update, and what has been computed of it
        self._minibatch: Transitions | None = None
        self._next_observations: PyTorchObs | None = None
        self._inputs: Any = None
        self._embedding: th.Tensor | None = None
        self._next_embeddings: dict[BaseFeaturesExtractor, th.Tensor] = {}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            encoder_lr_factor=encoder_lr_factor,
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks, the objective and the optimizers.

        :param lr_schedule: Learning rate schedule, lr_schedule(1) is the initial learning rate
        """
        # In a tuple, for it is a module of the critic's and not of the policy's
        self._first_encoder: tuple[BaseFeaturesExtractor, ...] = ()
        super()._build(lr_schedule)  # type: ignore[misc]
        network = self._network
        self._make_objectives([self.learner], network.features_extractor.features_dim)
        if self.objective.target_refresh != "step":
            raise ValueError(
                f"`target_refresh` has no meaning off-policy, where every minibatch is drawn anew: it must be 'step', "
                f"got {self.objective.target_refresh!r}"
            )
        if self.objective.random_shift > 0:
            raise ValueError(
                "`random_shift` of the objective must be 0 off-policy, where critic and objective share one embedding, "
                f"got {self.objective.random_shift}. Shift what is sampled: `replay_buffer_class="
                "sb3_jepa.FrameReplayBuffer, replay_buffer_kwargs=dict(random_shift=4)`"
            )
        self._has_optimizer.optimizer = self._make_optimizer(
            lr_schedule,
            [*network.parameters(), *self.objectives.parameters()],  # type: ignore[attr-defined]
        )
        self._register_optimizer_hooks()
        for name, network in self.named_children():
            if isinstance(network, BaseModel):
                network.extract_features = partial(self._extract_features_for, name)  # type: ignore[method-assign]
        if self.actor_gradient:
            actor: Any = self.actor
            actor.optimizer = self._make_optimizer(lr_schedule, actor.parameters())

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """
        :param features_extractor: Not used
        :return: An actor without an encoder of its own
        """
        if not self._first_encoder:
            # Stable-Baselines3 makes the actor first
            self._first_encoder = (self.make_features_extractor(),)
        embedding = CriticEmbedding(self.observation_space, self._first_encoder[0].features_dim)
        return super().make_actor(embedding)  # type: ignore[misc]

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """
        :param features_extractor: As of Stable-Baselines3's policies; None for a new one
        :return: A critic with an encoder
        """
        first, self._first_encoder = next(iter(self._first_encoder), None), ()
        return super().make_critic(features_extractor or first)  # type: ignore[misc]

    @property
    def _network(self) -> Any:
        return getattr(self, self.learner)

    @property
    def _has_optimizer(self) -> Any:
        """What has the learner's optimiser: without an actor, Stable-Baselines3's policies have it themselves."""
        return self._network if self.learner == "critic" else self

    @property
    def encoders(self) -> dict[str, BaseFeaturesExtractor]:
        """The context encoder, by the network that it belongs to."""
        return {self.learner: self._network.features_extractor}

    @property
    def joint_optimizer(self) -> th.optim.Optimizer:
        """The optimiser whose step trains critic, encoder and objective."""
        return self._has_optimizer.optimizer

    def begin_minibatch(self, transitions: Transitions | None, next_observations: PyTorchObs | None = None) -> None:
        """
        Announce what is learned from next. The networks know it when they are given these very observations.

        :param transitions: A minibatch; None if there is no other
        :param next_observations: What the algorithm computes the critic's targets from
        """
        self._minibatch, self._next_observations = transitions, next_observations
        self._inputs, self._embedding = None, None
        self._next_embeddings.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Tensors with a graph cannot be copied
        nothing = dict.fromkeys(("_minibatch", "_next_observations", "_inputs", "_embedding"))
        return {**vars(self), **nothing, "_next_embeddings": {}}

    def _extract_features_for(
        self, reader: str, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor
    ) -> th.Tensor:
        """
        :param reader: The network that reads the features
        :param obs: Observation
        :param features_extractor: The network's own; an actor has none
        :return: The features ``(batch, embed_dim)``
        """
        is_target = reader.endswith("_target")
        encoder = getattr(self, f"{self.learner}_target" if is_target else self.learner).features_extractor
        if self._minibatch is not None:
            if obs is self._minibatch.observations and not is_target:
                return self._features_of_minibatch(encoder, self._minibatch, reads_only=reader != self.learner)
            # Not only where gradients are off: Stable-Baselines3's critics switch them on for their features
            if obs is self._next_observations and (is_target or not th.is_grad_enabled()):
                if encoder not in self._next_embeddings:
                    with th.no_grad():
                        self._next_embeddings[encoder] = encoder(self._preprocess(obs))
                # The targets of actor and critic read one embedding
                return self._next_embeddings[encoder]
        return encoder(self._preprocess(obs))

    def _features_of_minibatch(
        self, encoder: BaseFeaturesExtractor, minibatch: Transitions, reads_only: bool
    ) -> th.Tensor:
        if self._embedding is None:
            self._inputs = self._preprocess(minibatch.observations)
            with th.enable_grad():
                self._embedding = encoder(self._inputs)
        inputs, embedding = self._inputs, self._embedding
        if reads_only and self.actor_gradient and th.is_grad_enabled():
            features = embedding.detach().requires_grad_()
            features.register_hook(partial(_pass_on_gradient, encoder, inputs))
            return features
        # The graph serves one backward pass, that of the critic's loss
        if reads_only or not embedding.requires_grad or not th.is_grad_enabled():
            return embedding.detach()
        self._embedding = embedding.detach()
        assert minibatch.next_observations is not None
        batch = ObjectiveInput(
            encoder,
            inputs,
            embedding,
            encode_actions(minibatch.actions, self.action_space, is_scaled=True),
            self._preprocess(minibatch.next_observations),
            minibatch.valid,
            rewards=minibatch.rewards,
            ends=minibatch.ends,
        )
        features = embedding if self.rl_gradient else self._embedding
        return self._attach_objective(self.learner, features, embedding, batch)

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """
        Convert an input observation to a PyTorch tensor that can be fed to a model.

        :param observation: The input observation
        :return: The observation as PyTorch tensor, and whether it is vectorized
        :raises ValueError: If the observation contains infinite values; or NaN, unless that says what is missing
        """
        tensors, is_vectorized = super().obs_to_tensor(observation)
        self._check_observations(tensors)
        return tensors, is_vectorized

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.pop("share_features_extractor", None)
        data.update(actor_gradient=self.actor_gradient)
        return data


def _pass_on_gradient(encoder: nn.Module, inputs: Any, gradient: th.Tensor) -> None:
    # Not by the graph of the critic's loss: the step that followed it has changed the encoder's parameters
    with th.enable_grad():
        encoder(inputs).backward(gradient)


class DQNJepaPolicy(OffPolicyJointPolicy, DQNPolicy):
    """Policy for ``DQN`` whose Q-network also learns a JEPA objective, see :class:`OffPolicyJointPolicy`."""

    learner = "q_net"


class SACJepaPolicy(OffPolicyJointPolicy, SACPolicy):
    """Policy for ``SAC`` whose critic also learns a JEPA objective, see :class:`OffPolicyJointPolicy`."""


class TD3JepaPolicy(OffPolicyJointPolicy, TD3Policy):
    """Policy for ``TD3`` and ``DDPG`` whose critic also learns a JEPA objective, see :class:`OffPolicyJointPolicy`."""
