"""Actor-critic policy that learns a JEPA objective in the same backward pass."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_jepa.buffers.transitions import Transitions
from sb3_jepa.common import checks
from sb3_jepa.common.actions import encode_actions, without_graph
from sb3_jepa.common.divergence import check_gradients
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.diagnostics import ObjectiveGauge
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.preprocessing import preprocess, takes_nan
from sb3_jepa.extractors.teachers import describe_teacher, make_teacher
from sb3_jepa.objectives import NextLatentPrediction, Objective, ObjectiveInput
from sb3_jepa.parts import attach_loss
from sb3_jepa.policies.files import PolicyFiles
from sb3_jepa.policies.unsuited_algorithms import OFF_POLICY_NETWORKS, NotForOffPolicyError, WithoutTransitionsError


class JointPolicy(PolicyFiles):
    """
    Makes an actor-critic policy learn a JEPA objective too: by default *JEPA for RL* (arXiv 2504.16591), the class
    token of a transformer that predicts its own future. The objective's loss is attached to the features, so that the
    algorithm's own backward pass and optimiser step train everything at once. :class:`JepaPolicy` is one of these.

    It needs transitions, and gets them from :class:`~sb3_jepa.JepaRolloutBuffer`; ``sb3_jepa.PPO`` brings it along.

    An algorithm of your own that multiplies its loss before ``backward()`` says so in the attribute ``loss_scale``,
    before it evaluates a minibatch: ``1 / n`` to accumulate the gradients of ``n``, ``scaler.get_scale()`` for a
    ``GradScaler``, a number or a scalar tensor. Until then (None, as 1), what needs another scale is refused. (A
    ``GradScaler`` is noticed if the optimiser is fused, as it is by default.)

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_class: The context encoder
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param objective_class: What the encoder learns beside the policy
    :param objective_kwargs: Keyword arguments to pass to the objective, such as ``momentum``, ``prediction_coef`` and
        ``variance_coef``. A ``teacher`` may be the path of a pretrained encoder: the model is saved with it, and needs
        the file no more.
    :param rl_gradient: Whether the gradient of the actor's and critic's losses may reach the encoder. If not, actor and
        critic still learn, from an embedding that only the objective shapes.
    :param encoder_lr_factor: Learning rate of the encoder, as a multiple of the learning rate of all else, whose
        schedule it follows; it can be a function of the current progress remaining (from 1 to 0) itself. Below 1, the
        embedding changes slowly enough for actor and critic to follow.
    :param share_features_extractor: If True, actor and critic read one embedding. If not, each has an encoder of its
        own, with an objective of its own.
    :param objective_for: Which encoder learns the objective if they are not shared: ``"actor"``, ``"critic"`` or
        ``"both"``
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments to pass to the optimizer. Adam gets Stable-Baselines3's
        ``eps=1e-5`` and the faster ``fused=True`` unless they are given.
    :param kwargs: The further parameters of the policy that this is mixed into
    :raises ValueError: If an argument is out of range; when it is about to be trained without transitions
    """

    # Both are a ModuleDict, with the names of the encoders that learn
    objectives: Mapping[str, Objective]
    gauges: Mapping[str, ObjectiveGauge]
    loss_scale: float | th.Tensor | None = None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = JepaExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        objective_class: type[Objective] = NextLatentPrediction,
        objective_kwargs: dict[str, Any] | None = None,
        rl_gradient: bool = True,
        encoder_lr_factor: float | Schedule = 0.3,
        share_features_extractor: bool = True,
        objective_for: str = "both",
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if "n_critics" in kwargs:
            raise NotForOffPolicyError(type(self), "n_critics")
        objective_for = checks.choice("objective_for", objective_for, ("actor", "critic", "both"))
        share_features_extractor = checks.flag("share_features_extractor", share_features_extractor)
        normalize_images = checks.flag("normalize_images", normalize_images)
        checks.subclass("features_extractor_class", features_extractor_class, BaseFeaturesExtractor)
        features_extractor_kwargs = checks.keyword_arguments("features_extractor_kwargs", features_extractor_kwargs)
        checks.subclass("optimizer_class", optimizer_class, th.optim.Optimizer)
        optimizer_kwargs = checks.keyword_arguments("optimizer_kwargs", optimizer_kwargs)
        if share_features_extractor and objective_for != "both":
            raise ValueError(
                f"`objective_for={objective_for!r}` needs `share_features_extractor=False`: actor and critic share one "
                "encoder"
            )
        self.objective_for = objective_for
        self.objective_class = checks.subclass("objective_class", objective_class, Objective)
        self.objective_kwargs = describe_teacher(objective_kwargs)
        self.rl_gradient = checks.flag("rl_gradient", rl_gradient)
        self.encoder_lr_factor = checks.schedule("encoder_lr_factor", encoder_lr_factor, least=0)
        self._current_lr_factor = self._encoder_lr_factor_at(1.0)
        # As Stable-Baselines3 does for its own CNN
        if not normalize_images and issubclass(features_extractor_class, JepaExtractor):
            features_extractor_kwargs["normalized_image"] = True
        if optimizer_class is th.optim.Adam:
            optimizer_kwargs.setdefault("eps", 1e-5)
            optimizer_kwargs.setdefault("fused", not optimizer_kwargs.get("foreach"))
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )
        self._takes_nan = takes_nan(self)
        # Last, for a recurrent policy makes its own after all that the others make in _build()
        self._make_optimizer(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Create the networks, the objective and the optimizer.

        :param lr_schedule: Learning rate schedule, lr_schedule(1) is the initial learning rate
        """
        super()._build(lr_schedule)
        if next(self.features_extractor.parameters(), None) is None:
            raise ValueError(
                f"`features_extractor_class` must be an encoder that learns, such as sb3_jepa.JepaExtractor, got "
                f"{type(self.features_extractor).__name__}, which has no parameters"
            )
        learners = self.encoders.keys() if self.objective_for == "both" else [self.objective_for]
        objective_kwargs = make_teacher(self.objective_kwargs)
        self.objectives = nn.ModuleDict(  # type: ignore[assignment]
            {
                name: self.objective_class(
                    self.encoders[name],
                    embed_dim=self.features_dim,
                    action_dim=get_flattened_obs_dim(self.action_space),
                    **objective_kwargs,
                )
                for name in learners
            }
        )
        self.gauges = nn.ModuleDict({name: ObjectiveGauge() for name in learners})  # type: ignore[assignment]

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
    def objective(self) -> Objective:
        """What the encoder learns; the actor's, if both have their own."""
        return next(iter(self.objectives.values()))

    def _make_optimizer(self, lr_schedule: Schedule) -> None:
        # In order and each once; frozen ones too, for a saved optimiser must fit whether they are or not
        of_encoders = dict.fromkeys(p for encoder in self.encoders.values() for p in encoder.parameters())
        others = [p for p in self.parameters() if p.requires_grad and p not in of_encoders]
        groups: list[dict[str, Any]] = [dict(params=others), dict(params=list(of_encoders), name="encoder")]
        self.optimizer = self.optimizer_class(groups, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self._register_optimizer_hooks()

    def _register_optimizer_hooks(self) -> None:
        # Set by every minibatch whose features carry the objective's loss, cleared by the optimiser step
        self._loss_attached = False
        # Whether the policy was put in training mode, and no optimiser step has followed yet
        self._update_begins = False
        # Names of the encoders whose loss a backward pass has reached since the last step
        self._reached: set[str] = set()
        self._hooked_optimizer = self.optimizer
        self.optimizer.register_step_pre_hook(lambda *_: self._check_loss_attached())
        self.optimizer.register_step_pre_hook(lambda *_: self._scale_encoder_learning_rate())
        self.optimizer.register_step_pre_hook(lambda *_: self._check_gradients())
        self.optimizer.register_step_post_hook(lambda *_: self._update_targets())

    def _update_targets(self) -> None:
        for name, objective in self.objectives.items():
            objective.update_target(self.encoders[name])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "action_dist": without_graph(self.action_dist)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and unpickled policies: an optimiser does not carry its hooks along
        super().__setstate__(state)
        self._register_optimizer_hooks()

    def _encoder_lr_factor_at(self, progress_remaining: float) -> float:
        return checks.scheduled("encoder_lr_factor", self.encoder_lr_factor, progress_remaining, least=0)

    def update_schedules(self, progress_remaining: float) -> None:
        """
        Follow the schedules of the momentum and of the encoder's learning rate, if they have one.

        :param progress_remaining: Remaining progress of the training, from 1 to 0
        """
        for objective in self.objectives.values():
            objective.update_momentum(progress_remaining)
        self._current_lr_factor = self._encoder_lr_factor_at(progress_remaining)

    def _scale_encoder_learning_rate(self) -> None:
        # Before each update Stable-Baselines3 sets one rate for all groups
        others, *groups = self.optimizer.param_groups
        for group in groups:
            # An optimiser that the policy was given from outside has no such group
            if group.get("name") == "encoder":
                group["lr"] = self._current_lr_factor * others["lr"]

    def _check_gradients(self) -> None:
        # A GradScaler leaves out the steps whose gradients are not finite by itself
        if self.loss_scale is None:
            check_gradients(self.optimizer)

    def _check_loss_attached(self) -> None:
        if not self._loss_attached:
            raise WithoutTransitionsError(type(self))
        # A GradScaler lends this attribute to a fused optimiser for the step
        if self._reached and self.loss_scale is None and hasattr(self.optimizer, "found_inf"):
            raise RuntimeError(
                "A GradScaler was about to divide the gradient of a JEPA loss that it has not multiplied. Set "
                "`policy.loss_scale = scaler.get_scale()` before each minibatch is evaluated"
            )
        self._loss_attached = self._update_begins = False
        self._reached.clear()

    def _check_backward(self, name: str, _: th.Tensor) -> None:
        if self.loss_scale is None and name in self._reached:
            learners = (self.encoders[name], self.objectives[name])
            # Gradients that were thrown away in between are not accumulated
            if any(p.grad is not None and p.grad.any() for learner in learners for p in learner.parameters()):
                raise RuntimeError(
                    "A second backward pass has reached the JEPA loss before an optimiser step, and cannot know what "
                    "the algorithm has divided its own loss by. Set `policy.loss_scale` to the factor of that loss "
                    "before each minibatch is evaluated: `1 / n` for the mean of n minibatches, 1.0 for their sum"
                )
        self._reached.add(name)

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
                    gauge = self.gauges[name]
                    embedding = embeddings[index] if mask is None else embeddings[index][mask]
                    target = None if obs.targets is None else obs.targets[name]
                    batch = ObjectiveInput(
                        encoders[index],
                        real,
                        embedding,
                        actions,
                        next_observations,
                        obs.valid,
                        target,
                        obs.rewards,
                        obs.ends,
                    )
                    output = self.objectives[name](batch)
                    is_reached = features[index].requires_grad
                    # Coefficients of 0 leave a constant, which has no gradient to attach
                    if output.loss.requires_grad:
                        gauge.watch_gradient("all", embeddings[index])
                        output.loss.register_hook(partial(self._check_backward, name))
                        scale = 1.0 if self.loss_scale is None else self.loss_scale
                        features[index] = attach_loss(features[index], output.loss, scale)
                    if is_reached:
                        gauge.watch_gradient("rl", features[index])
                    gauge.add(embedding, output)
            self._loss_attached = True
        return features[0] if self.share_features_extractor else tuple(features)

    def embed_targets(self, next_observations: PyTorchObs) -> dict[str, th.Tensor]:
        """
        What the predictors have to guess, for a rollout buffer that keeps it.

        :param next_observations: ``(batch, *observation shape)``
        :return: The target embeddings ``(batch, embed_dim)``, by the names of the encoders
        """
        inputs = self._preprocess(next_observations)
        return {name: objective.target_encoder(inputs) for name, objective in self.objectives.items()}

    def _preprocess(self, observations: PyTorchObs) -> Any:
        return preprocess(observations, self.observation_space, self.normalize_images, self.encoders.values())

    def forward(self, obs: PyTorchObs, *args: Any, **kwargs: Any) -> tuple[th.Tensor, ...]:  # type: ignore[override]
        """
        Forward pass in all the networks (actor and critic)

        :param obs: Observation
        :param args: The further parameters of the policy that this is mixed into
        :param kwargs: The further parameters of the policy that this is mixed into
        :return: action, value and log probability of the action
        :raises ValueError: If the observation contains infinite values; or NaN, unless that says what is missing
        """
        for tensor in by_key(obs).values():
            is_bad = th.isinf if self._takes_nan else _is_not_finite
            if tensor.is_floating_point() and is_bad(tensor).any():
                raise ValueError(
                    "The observations contain NaN or infinite values; check the environment and its wrappers"
                )
        return super().forward(obs, *args, **kwargs)  # type: ignore[arg-type]

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
        return super().get_distribution(obs, *args, **kwargs)

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in either training or evaluation mode. The target encoder stays in evaluation mode.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        self._update_begins, self._loss_attached = mode, False
        self._reached.clear()
        # Hook an optimiser that the policy was given from outside
        if self.optimizer is not self._hooked_optimizer:
            self._register_optimizer_hooks()
        # Every predict() asks for it, and to go through all modules would take a fifth of its time
        if self.training != mode:
            super().set_training_mode(mode)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            objective_class=self.objective_class,
            objective_kwargs=self.objective_kwargs,
            rl_gradient=self.rl_gradient,
            encoder_lr_factor=self.encoder_lr_factor,
            # Stable-Baselines3 forgets this one
            share_features_extractor=self.share_features_extractor,
            objective_for=self.objective_for,
        )
        return data


class JepaPolicy(JointPolicy, ActorCriticPolicy):
    """
    Actor-critic policy whose features extractor also learns a JEPA objective, see :class:`JointPolicy` for its
    parameters. For ``PPO`` and ``A2C``.
    """


def _is_not_finite(tensor: th.Tensor) -> th.Tensor:
    return ~th.isfinite(tensor)
