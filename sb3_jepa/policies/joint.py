"""Actor-critic policy that learns a JEPA objective in the same backward pass."""

from typing import TYPE_CHECKING, Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_jepa.buffers.shifted_images import shift_images
from sb3_jepa.buffers.transitions import Transitions
from sb3_jepa.common import checks
from sb3_jepa.common.actions import encode_actions, without_graph
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.objectives import ObjectiveInput
from sb3_jepa.policies.learns_jointly import LearnsJointly
from sb3_jepa.policies.unsuited_algorithms import OFF_POLICY_NETWORKS, NotForOffPolicyError, WithoutTransitionsError

if TYPE_CHECKING:

    class _Base(LearnsJointly, ActorCriticPolicy): ...

else:
    _Base = LearnsJointly


class JointPolicy(_Base):
    """
    Makes an actor-critic policy learn a JEPA objective too, see
    :class:`~sb3_jepa.policies.learns_jointly.LearnsJointly`. :class:`JepaPolicy` is one of these.

    It needs transitions, and gets them from :class:`~sb3_jepa.JepaRolloutBuffer`; ``sb3_jepa.PPO`` brings it along.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param share_features_extractor: If True, actor and critic read one embedding. If not, each has an encoder of its
        own, with an objective of its own.
    :param objective_for: Which encoder learns the objective if they are not shared: ``"actor"``, ``"critic"`` or
        ``"both"``
    :param kwargs: The further parameters of :class:`~sb3_jepa.policies.learns_jointly.LearnsJointly`, and of the policy
        that this is mixed into. Adam has Stable-Baselines3's ``eps=1e-5`` unless it is given.
    :raises ValueError: If an argument is out of range; when it is about to be trained without transitions
    """

    adam_kwargs: ClassVar[dict[str, Any]] = dict(eps=1e-5)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        share_features_extractor: bool = True,
        objective_for: str = "both",
        **kwargs: Any,
    ):
        if "n_critics" in kwargs:
            raise NotForOffPolicyError(type(self), "n_critics")
        objective_for = checks.choice("objective_for", objective_for, ("actor", "critic", "both"))
        share_features_extractor = checks.flag("share_features_extractor", share_features_extractor)
        if share_features_extractor and objective_for != "both":
            raise ValueError(
                f"`objective_for={objective_for!r}` needs `share_features_extractor=False`: actor and critic share one "
                "encoder"
            )
        self.objective_for = objective_for
        super().__init__(
            observation_space, action_space, lr_schedule, share_features_extractor=share_features_extractor, **kwargs
        )
        # Last, for a recurrent policy makes its own after all that the others make in _build()
        self.optimizer = self._make_optimizer(lr_schedule, self.parameters())
        self._register_optimizer_hooks()

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks, the objective and the optimizer.

        :param lr_schedule: Learning rate schedule, lr_schedule(1) is the initial learning rate
        """
        super()._build(lr_schedule)
        learners = self.encoders.keys() if self.objective_for == "both" else [self.objective_for]
        self._make_objectives(learners, self.features_dim)

    def __getattr__(self, name: str) -> Any:
        if name in OFF_POLICY_NETWORKS:
            raise NotForOffPolicyError(type(self), name)
        return super().__getattr__(name)

    @property
    def encoders(self) -> dict[str, BaseFeaturesExtractor]:
        """The context encoders: ``"shared"``, or ``"actor"`` and ``"critic"``."""
        if self.share_features_extractor:
            return dict(shared=self.features_extractor)
        return dict(actor=self.pi_features_extractor, critic=self.vf_features_extractor)

    @property
    def joint_optimizer(self) -> th.optim.Optimizer:
        """The optimiser whose step trains all there is."""
        return self.optimizer

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "action_dist": without_graph(self.action_dist)}

    def extract_features(  # type: ignore[override]
        self, obs: PyTorchObs | Transitions, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, ...]:
        """
        Preprocess the observation if needed and extract features. Given transitions, the embedding that is returned for
        actor and critic also carries the objective's loss.

        :param obs: Observation, or transitions
        :param features_extractor: The features extractor to use. If None, then ``self.features_extractor`` is used.
        :return: The features ``(batch, embed_dim)``; if the features extractor is not shared, those of actor and critic
        """
        observations = obs.observations if isinstance(obs, Transitions) else obs
        inputs = self._preprocess(observations)
        encoders = list(self.encoders.values())
        if self.share_features_extractor and features_extractor is not None:
            encoders = [features_extractor]
        embeddings = tuple(encoder(inputs) for encoder in encoders)
        features = [embedding if self.rl_gradient else embedding.detach() for embedding in embeddings]
        if isinstance(obs, Transitions) and th.is_grad_enabled():
            actions = encode_actions(obs.actions, self.action_space, getattr(self, "squash_output", False))
            next_observations = None if obs.next_observations is None else self._preprocess(obs.next_observations)
            mask = obs.mask
            real = (
                inputs if mask is None else as_observations({key: rows[mask] for key, rows in by_key(inputs).items()})
            )
            for index, name in enumerate(self.encoders):
                if name in self.objectives:
                    objective, embedding, seen, led_to = (
                        self.objectives[name],
                        embeddings[index],
                        real,
                        next_observations,
                    )
                    if objective.random_shift > 0:
                        seen, led_to = (
                            None
                            if images is None
                            else shift_images(images, self.observation_space, objective.random_shift)
                            for images in (real, next_observations)
                        )
                        embedding = encoders[index](seen)
                    elif mask is not None:
                        embedding = embedding[mask]
                    target = None if obs.targets is None else obs.targets[name]
                    batch = ObjectiveInput(
                        encoders[index], seen, embedding, actions, led_to, obs.valid, target, obs.rewards, obs.ends
                    )
                    features[index] = self._attach_objective(name, features[index], embeddings[index], batch)
        return features[0] if self.share_features_extractor else tuple(features)

    def forward(self, obs: PyTorchObs, *args: Any, **kwargs: Any) -> tuple[th.Tensor, ...]:  # type: ignore[override]
        """
        Forward pass in all the networks (actor and critic)

        :param obs: Observation
        :param args: The further parameters of the policy that this is mixed into
        :param kwargs: The further parameters of the policy that this is mixed into
        :return: action, value and log probability of the action
        :raises ValueError: If the observation contains infinite values; or NaN, unless that says what is missing
        """
        self._check_observations(obs)
        return super().forward(obs, *args, **kwargs)  # type: ignore[arg-type, misc]

    def get_distribution(self, obs: PyTorchObs, *args: Any, **kwargs: Any) -> Any:
        """
        Get the current policy distribution given the observations.

        :param obs: Observation
        :param args: The further parameters of the policy that this is mixed into
        :param kwargs: The further parameters of the policy that this is mixed into
        :return: The action distribution
        :raises ValueError: If an update begins with it, as those of TRPO, which have no transitions
        """
        if self._update_begins and not self._loss_attached and th.is_grad_enabled():
            raise WithoutTransitionsError(type(self))
        return super().get_distribution(obs, *args, **kwargs)  # type: ignore[misc]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # Stable-Baselines3 forgets the first one
        data.update(share_features_extractor=self.share_features_extractor, objective_for=self.objective_for)
        return data


class JepaPolicy(JointPolicy, ActorCriticPolicy):
    """
    Actor-critic policy whose features extractor also learns a JEPA objective, see :class:`JointPolicy` for its
    parameters. For ``PPO`` and ``A2C``.
    """
