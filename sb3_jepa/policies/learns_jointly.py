"""What the policies of all algorithms have in common that learn a JEPA objective in the algorithm's backward pass."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_jepa.buffers.shifted_images import check_random_shift, shift_images
from sb3_jepa.common import checks
from sb3_jepa.common.divergence import check_gradients
from sb3_jepa.common.histories import is_history
from sb3_jepa.common.observations import by_key
from sb3_jepa.diagnostics import ObjectiveGauge
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.preprocessing import preprocess, takes_nan
from sb3_jepa.extractors.sequence_extractor import SequenceExtractor, default_objective
from sb3_jepa.extractors.teachers import describe_teacher, make_teacher
from sb3_jepa.objectives import Objective, ObjectiveInput
from sb3_jepa.parts import attach_loss
from sb3_jepa.policies.files import PolicyFiles
from sb3_jepa.policies.unsuited_algorithms import WithoutTransitionsError


class LearnsJointly(PolicyFiles):
    """
    Makes a policy learn a JEPA objective too: by default *JEPA for RL* (arXiv 2504.16591), the class token of a
    transformer that predicts its own future. The objective's loss is attached to the features, so that the algorithm's
    own backward pass and optimiser step train everything at once.

    An algorithm of your own that multiplies its loss before ``backward()`` says so in the attribute ``loss_scale``,
    before it evaluates a minibatch: ``1 / n`` to accumulate the gradients of ``n``, ``scaler.get_scale()`` for a
    ``GradScaler``, a number or a scalar tensor. Until then (None, as 1), what needs another scale is refused. (A
    ``GradScaler`` is noticed if the optimiser is fused, as it is by default.)

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_class: The context encoder; by default a :class:`~sb3_jepa.JepaExtractor`, and for the
        histories of :class:`~sb3_jepa.envs.VecHistory` a :class:`~sb3_jepa.SequenceExtractor`
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param objective_class: What the encoder learns beside the policy; by default
        :class:`~sb3_jepa.NextLatentPrediction`, and with a :class:`~sb3_jepa.SequenceExtractor`
        :class:`~sb3_jepa.SequencePrediction`
    :param objective_kwargs: Keyword arguments to pass to the objective, such as ``momentum``, ``prediction_coef`` and
        ``variance_coef``. A ``teacher`` may be the path of a pretrained encoder: the model is saved with it, and needs
        the file no more.
    :param rl_gradient: Whether the gradient of the algorithm's own losses may reach the encoder. If not, actor and
        critic still learn, from an embedding that only the objective shapes.
    :param encoder_lr_factor: Learning rate of the encoder, as a multiple of the learning rate of all else, whose
        schedule it follows; it can be a function of the current progress remaining (from 1 to 0) itself. Below 1, the
        embedding changes slowly enough for actor and critic to follow.
    :param normalize_images: Whether to normalize images or not, dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments to pass to the optimizer. Adam gets the faster ``fused=True``
        unless it is given.
    :param kwargs: The further parameters of the policy that this is mixed into
    :raises ValueError: If an argument is out of range; when it is about to be trained without transitions
    """

    # Both are a ModuleDict, with the names of the encoders that learn
    objectives: Mapping[str, Objective]
    gauges: Mapping[str, ObjectiveGauge]
    loss_scale: float | th.Tensor | None = None
    # Defaults of Adam that Stable-Baselines3 has for the policy that this is mixed into
    adam_kwargs: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        objective_class: type[Objective] | None = None,
        objective_kwargs: dict[str, Any] | None = None,
        rl_gradient: bool = True,
        encoder_lr_factor: float | Schedule = 0.3,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        normalize_images = checks.flag("normalize_images", normalize_images)
        if features_extractor_class is None:
            features_extractor_class = SequenceExtractor if is_history(observation_space) else JepaExtractor
        checks.subclass("features_extractor_class", features_extractor_class, BaseFeaturesExtractor)
        if objective_class is None:
            objective_class = default_objective(features_extractor_class)
        features_extractor_kwargs = checks.keyword_arguments("features_extractor_kwargs", features_extractor_kwargs)
        checks.subclass("optimizer_class", optimizer_class, th.optim.Optimizer)
        optimizer_kwargs = checks.keyword_arguments("optimizer_kwargs", optimizer_kwargs)
        self.objective_class = checks.subclass("objective_class", objective_class, Objective)
        self.objective_kwargs = describe_teacher(objective_kwargs)
        self.rl_gradient = checks.flag("rl_gradient", rl_gradient)
        self.encoder_lr_factor = checks.schedule("encoder_lr_factor", encoder_lr_factor, least=0)
        self._current_lr_factor = self._encoder_lr_factor_at(1.0)
        # As Stable-Baselines3 does for its own CNN
        if not normalize_images and issubclass(features_extractor_class, JepaExtractor):
            features_extractor_kwargs["normalized_image"] = True
        if optimizer_class is th.optim.Adam:
            optimizer_kwargs = {**self.adam_kwargs, **optimizer_kwargs}
            optimizer_kwargs.setdefault("fused", not optimizer_kwargs.get("foreach"))
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,  # type: ignore[arg-type]
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )
        self._takes_nan = takes_nan(self)

    @property
    def encoders(self) -> dict[str, BaseFeaturesExtractor]:
        """The context encoders, by the networks that they belong to."""
        raise NotImplementedError

    @property
    def joint_optimizer(self) -> th.optim.Optimizer:
        """The optimiser whose step trains the encoders and the objectives."""
        raise NotImplementedError

    @property
    def objective(self) -> Objective:
        """What the encoder learns; the actor's, if actor and critic both have their own."""
        return next(iter(self.objectives.values()))

    def _make_objectives(self, learners: Iterable[str], embed_dim: int) -> None:
        learners, encoders = list(learners), self.encoders
        for encoder in encoders.values():
            if next(encoder.parameters(), None) is None:
                raise ValueError(
                    f"`features_extractor_class` must be an encoder that learns, such as sb3_jepa.JepaExtractor, got "
                    f"{type(encoder).__name__}, which has no parameters"
                )
        objective_kwargs = make_teacher(self.objective_kwargs)
        self.objectives = nn.ModuleDict(  # type: ignore[assignment]
            {
                name: self.objective_class(
                    encoders[name],
                    embed_dim=embed_dim,
                    action_dim=get_flattened_obs_dim(self.action_space),
                    **objective_kwargs,
                )
                for name in learners
            }
        )
        check_random_shift(self.objective.random_shift, self.observation_space)
        self.gauges = nn.ModuleDict({name: ObjectiveGauge() for name in learners})  # type: ignore[assignment]

    def _make_optimizer(self, lr_schedule: Schedule, parameters: Iterable[nn.Parameter]) -> th.optim.Optimizer:
        # In order and each once; frozen ones too, for a saved optimiser must fit whether they are or not
        of_encoders = dict.fromkeys(p for encoder in self.encoders.values() for p in encoder.parameters())
        others = [p for p in parameters if p.requires_grad and p not in of_encoders]
        groups: list[dict[str, Any]] = [dict(params=others), dict(params=list(of_encoders), name="encoder")]
        return self.optimizer_class(groups, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _register_optimizer_hooks(self) -> None:
        # Set by every minibatch whose features carry the objective's loss, cleared by the optimiser step
        self._loss_attached = False
        # Whether the policy was put in training mode, and no optimiser step has followed yet
        self._update_begins = False
        # Names of the encoders whose loss a backward pass has reached since the last step
        self._reached: set[str] = set()
        self._hooked_optimizer = self.joint_optimizer
        self._hooked_optimizer.register_step_pre_hook(lambda *_: self._check_loss_attached())
        self._hooked_optimizer.register_step_pre_hook(lambda one, *_: self._scale_encoder_learning_rate(one))
        self._hooked_optimizer.register_step_pre_hook(lambda *_: self._check_gradients())
        self._hooked_optimizer.register_step_post_hook(lambda *_: self._update_targets())

    def _update_targets(self) -> None:
        for name, objective in self.objectives.items():
            objective.update_target(self.encoders[name])

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

    def _scale_encoder_learning_rate(self, optimizer: th.optim.Optimizer) -> None:
        # Before each update Stable-Baselines3 sets one rate for all groups
        others, *groups = optimizer.param_groups
        for group in groups:
            # An optimiser that the policy was given from outside has no such group
            if group.get("name") == "encoder":
                group["lr"] = self._current_lr_factor * others["lr"]

    def _check_gradients(self) -> None:
        # A GradScaler leaves out the steps whose gradients are not finite by itself
        if self.loss_scale is None:
            check_gradients(self._hooked_optimizer)

    def _check_loss_attached(self) -> None:
        if not self._loss_attached:
            raise WithoutTransitionsError(type(self))
        # A GradScaler lends this attribute to a fused optimiser for the step
        if self._reached and self.loss_scale is None and hasattr(self._hooked_optimizer, "found_inf"):
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

    def _attach_objective(
        self, name: str, features: th.Tensor, embedding: th.Tensor, batch: ObjectiveInput
    ) -> th.Tensor:
        """
        :param name: Of the encoder
        :param features: What the algorithm computes its loss from: the embedding, or that without its gradient
        :param embedding: What the encoder has computed
        :param batch: What the objective learns from
        :return: The features, with the objective's loss attached
        """
        gauge = self.gauges[name]
        output = self.objectives[name](batch)
        assert batch.embedding is not None
        # With a random shift the objective has an embedding of its own
        is_reached, is_shifted = features.requires_grad, self.objectives[name].random_shift > 0
        # Coefficients of 0 leave a constant, which has no gradient to attach
        if output.loss.requires_grad:
            gauge.watch_gradient("all", batch.embedding if is_shifted else embedding)
            output.loss.register_hook(partial(self._check_backward, name))
            scale = 1.0 if self.loss_scale is None else self.loss_scale
            features = attach_loss(features, output.loss, scale)
        if is_reached and not is_shifted:
            gauge.watch_gradient("rl", features)
        gauge.add(batch.embedding, output)
        self._loss_attached = True
        return features

    def embed_targets(self, next_observations: PyTorchObs) -> dict[str, th.Tensor]:
        """
        What the predictors have to guess, for a rollout buffer that keeps it.

        :param next_observations: ``(batch, *observation shape)``
        :return: The target embeddings ``(batch, embed_dim)``, by the names of the encoders
        """
        inputs = self._preprocess(next_observations)
        return {
            name: objective.target_encoder(shift_images(inputs, self.observation_space, objective.random_shift))
            for name, objective in self.objectives.items()
        }

    def _preprocess(self, observations: PyTorchObs) -> Any:
        return preprocess(observations, self.observation_space, self.normalize_images, self.encoders.values())

    def _check_observations(self, observations: PyTorchObs) -> None:
        for tensor in by_key(observations).values():
            is_bad = th.isinf if self._takes_nan else _is_not_finite
            if tensor.is_floating_point() and is_bad(tensor).any():
                raise ValueError(
                    "The observations contain NaN or infinite values; check the environment and its wrappers"
                )

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in either training or evaluation mode. The target encoder stays in evaluation mode.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        self._update_begins, self._loss_attached = mode, False
        self._reached.clear()
        # Hook an optimiser that the policy was given from outside
        if self.joint_optimizer is not self._hooked_optimizer:
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
        )
        return data


def _is_not_finite(tensor: th.Tensor) -> th.Tensor:
    return ~th.isfinite(tensor)
