"""Policies for any task, which are conditioned on a task vector."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.extractors.preprocessing import preprocess
from sb3_jepa.parts import InputStandardization, MomentumEncoder, measuring
from sb3_jepa.zero_shot.behavior import BehaviorFlow
from sb3_jepa.zero_shot.networks import (
    LatentEncoder,
    SuccessorPredictor,
    TaskActor,
    best_action,
    init_orthogonally,
)

# The noise of an action that targets and actor learn with is cut off there, in units of its deviation
NOISE_LIMIT = 1.5


class TDJEPAPolicy(BasePolicy):
    r"""
    The networks of *TD-JEPA* (Bagatella et al. 2025, arXiv 2510.00739): a state encoder :math:`\varphi` and a task
    encoder :math:`\psi`, a predictor for each, an actor, and targets of the former that follow slowly. It acts for the
    task that :meth:`~sb3_jepa.TDJEPA.policy_for` has given it.

    :param observation_space: Observation space
    :param action_space: A bounded ``Box``, or ``Discrete``, which needs no actor
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Widths of predictors and actor: of their two branches, and of the layers that join these
    :param features_extractor_class: What both encoders begin with, each with one of its own; by default the
        observations as they are
    :param features_extractor_kwargs: Keyword arguments for it
    :param normalize_images: Whether to normalize images or not, dividing by 255.0
    :param state_dim: Width of the state embedding
    :param task_dim: Width of the task embedding, and of task vectors
    :param encoder_dim: Width of the encoders' hidden layers
    :param state_layers: Hidden layers of the state encoder after the features
    :param task_layers: The same of the task encoder
    :param symmetric: Whether one encoder, of width ``task_dim``, and one predictor do for both
    :param predicts_states: Whether there is a predictor from task embeddings to state embeddings
    :param exploration_noise: Deviation of the noise that is added to actions in [-1, 1] when they are not to be
        deterministic; of discrete ones the share that is drawn at random
    :param behavior_flow: Whether the actor is to be kept near the data's actions: it reads the features, and a noise
        that it turns into one of several actions
    :param optimizer_class: The optimizer to use, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer
    :param task: Task vectors to act for, ``(steps, task_dim)``, one for each step of an episode; the last one goes on
    :raises ValueError: If an argument is out of range
    """

    # What both encoders begin with, unless another class is asked for
    default_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    task: th.Tensor | None
    task_moment: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: Sequence[int] = (256, 256),
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        *,
        state_dim: int = 128,
        task_dim: int = 50,
        encoder_dim: int = 256,
        state_layers: int = 2,
        task_layers: int = 2,
        symmetric: bool = False,
        predicts_states: bool = True,
        exploration_noise: float = 0.2,
        behavior_flow: bool = False,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        task: np.ndarray | None = None,
    ):
        self.is_discrete = isinstance(action_space, spaces.Discrete)
        if isinstance(action_space, spaces.Box) and not action_space.is_bounded():
            raise ValueError(f"`action_space` must be bounded, got {action_space}. Wrap the environment so that it is")
        self.net_arch = list(checks.sizes("net_arch", net_arch, least=2))
        self.symmetric = checks.flag("symmetric", symmetric)
        self.task_dim = checks.whole_number("task_dim", task_dim)
        self.state_dim = checks.whole_number("state_dim", state_dim)
        self.encoder_dim = checks.whole_number("encoder_dim", encoder_dim)
        self.state_layers = checks.whole_number("state_layers", state_layers, 0)
        self.task_layers = checks.whole_number("task_layers", task_layers, 0)
        most = 1.0 if self.is_discrete else None
        self.exploration_noise = checks.number("exploration_noise", exploration_noise, least=0, most=most)
        if checks.flag("behavior_flow", behavior_flow) and self.is_discrete:
            raise ValueError("`behavior_flow` must be False for discrete actions, which have no actor, got True")
        if features_extractor_class is None:
            features_extractor_class = self.default_extractor_class
        checks.subclass("features_extractor_class", features_extractor_class, BaseFeaturesExtractor)
        self.predicts_states = checks.flag("predicts_states", predicts_states)
        optimizer_kwargs = checks.keyword_arguments("optimizer_kwargs", optimizer_kwargs)
        if optimizer_class is th.optim.Adam:
            optimizer_kwargs.setdefault("fused", not optimizer_kwargs.get("foreach"))
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=checks.keyword_arguments("features_extractor_kwargs", features_extractor_kwargs),
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=not self.is_discrete,
        )
        self.action_dim = int(action_space.n) if self.is_discrete else get_action_dim(action_space)  # type: ignore[attr-defined]
        self._build(behavior_flow)
        self.optimizer = self._make_optimizer(lr_schedule, self.learners)
        self.actor_optimizer = None if self.actor is None else self._make_optimizer(lr_schedule, self.actors)
        self.register_buffer(
            "task", None if task is None else th.as_tensor(task, dtype=th.float32).reshape(-1, task_dim)
        )
        # Second moment of the task embeddings, for goals that are whitened
        self.register_buffer("task_moment", th.eye(task_dim))
        # The task vector of each row of a batch, instead of one for all
        self._tasks_of_rows: th.Tensor | None = None

    def _build(self, behavior_flow: bool) -> None:
        sizes = dict(state=(self.state_dim, self.state_layers), task=(self.task_dim, self.task_layers))
        if self.symmetric:
            del sizes["task"]
            sizes["state"] = (self.task_dim, self.state_layers)
        self.encoders = nn.ModuleDict({name: self._make_encoder(*size) for name, size in sizes.items()})
        state_dim, task_dim = sizes["state"][0], self.task_dim
        dims = dict(state=(state_dim, task_dim))
        if self.predicts_states and not self.symmetric:
            dims["task"] = (task_dim, state_dim)
        self.predictors = nn.ModuleDict(
            {
                name: SuccessorPredictor(one, self.action_dim, task_dim, other, self.net_arch, self.is_discrete)
                for name, (one, other) in dims.items()
            }
        )
        self.actor: TaskActor | None = None
        self.behavior: BehaviorFlow | None = None
        if not self.is_discrete:
            features_dim = self.state_encoder.features_extractor.features_dim if behavior_flow else state_dim
            noise_dim = self.action_dim if behavior_flow else 0
            self.actor = TaskActor(features_dim, task_dim, self.action_dim, self.net_arch, noise_dim)
            if behavior_flow:
                self.behavior = BehaviorFlow(features_dim, self.action_dim, self.net_arch)
        for network in (*self.encoders.values(), *self.predictors.values(), self.actor, self.behavior):
            if network is not None:
                # A features extractor that was made elsewhere keeps its own start
                for name, part in network.named_children():
                    if name != "features_extractor":
                        init_orthogonally(part)
        self.target_encoders = nn.ModuleDict({name: MomentumEncoder(one) for name, one in self.encoders.items()})
        self.target_predictors = nn.ModuleDict({name: MomentumEncoder(one) for name, one in self.predictors.items()})

    def _make_encoder(self, embed_dim: int, hidden_layers: int) -> LatentEncoder:
        extractor = self.make_features_extractor()
        return LatentEncoder(extractor, extractor.features_dim, embed_dim, self.encoder_dim, hidden_layers)

    def _make_optimizer(self, lr_schedule: Schedule, networks: Sequence[nn.Module]) -> th.optim.Optimizer:
        parameters = [one for network in networks for one in network.parameters()]
        return self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    @property
    def learners(self) -> list[nn.Module]:
        """What the representation's loss trains."""
        return [*self.encoders.values(), *self.predictors.values()]

    @property
    def actors(self) -> list[nn.Module]:
        """What the actor's loss trains."""
        return [one for one in (self.actor, self.behavior) if one is not None]

    @property
    def state_encoder(self) -> Any:
        r""":math:`\varphi`, of what the agent acts on."""
        return self.encoders["state"]

    @property
    def task_encoder(self) -> Any:
        r""":math:`\psi`, of what tasks are made of."""
        return self.encoders["state" if self.symmetric else "task"]

    def inputs(self, observations: PyTorchObs) -> Any:
        """
        :param observations: ``(batch, *observation shape)``
        :return: Preprocessed, as the encoders take them
        """
        extractors = [one.features_extractor for one in self.encoders.values()]  # type: ignore[misc]
        return preprocess(observations, self.observation_space, self.normalize_images, extractors)  # type: ignore[arg-type]

    @th.no_grad()
    def measure_inputs(self, observations: PyTorchObs) -> None:
        """
        Measure the statistics that standardise the inputs, where they are not measured yet.

        :param observations: ``(batch, *observation shape)``
        """
        for name, encoder in self.encoders.items():
            lacking = [one for one in encoder.modules() if isinstance(one, InputStandardization) and one.n_seen == 0]
            if lacking:
                with measuring(lacking):
                    encoder(self.inputs(observations))
                self.target_encoders[name].copy_buffers(encoder)  # type: ignore[operator]

    def update_targets(self, momentum: float) -> None:
        """
        Move all targets one step towards what they follow.

        :param momentum: ``m``; 1 leaves them as they are
        """
        for kind in ("encoders", "predictors"):
            for name, target in getattr(self, f"target_{kind}").items():
                target.update(getattr(self, kind)[name], momentum)

    def with_noise(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: Means of actions in [-1, 1], ``(batch, action_dim)``
        :return: With the exploration's noise, cut off at 1.5 deviations, and in [-1, 1] again; the gradient of the mean
            passes through
        """
        limit = NOISE_LIMIT * self.exploration_noise
        noise = (self.exploration_noise * th.randn_like(actions)).clamp(-limit, limit)
        noisy = actions + noise
        return noisy + (noisy.clamp(-1.0, 1.0) - noisy).detach()

    def act(self, inputs: Any, tasks: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """
        :param inputs: Preprocessed observations
        :param tasks: Task vectors ``(batch, task_dim)``
        :param deterministic: Whether to leave out the exploration's noise
        :return: Actions, ``(batch, action_dim)`` in [-1, 1], or of discrete ones the numbers, ``(batch,)``
        """
        encoder = self.state_encoder
        if self.actor is None:
            actions = best_action(self.predictors["state"].of_all_actions(encoder(inputs), tasks), tasks)  # type: ignore[operator]
            if deterministic or self.exploration_noise == 0:
                return actions
            drawn = th.randint_like(actions, self.action_dim)
            return th.where(th.rand(actions.shape, device=actions.device) < self.exploration_noise, drawn, actions)
        if self.behavior is not None:
            features = encoder.features(inputs)
            noise = th.zeros if deterministic else th.randn
            return self.actor(features, tasks, noise(len(features), self.action_dim, device=features.device))
        actions = self.actor(encoder(inputs), tasks)
        return actions if deterministic else self.with_noise(actions)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: ``(batch, *observation shape)``
        :param deterministic: Whether to leave out the exploration's noise
        :return: Actions for the task
        """
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        inputs = self.inputs(observation)
        tasks = self._tasks_of_rows
        if tasks is None:
            if self.task is None:
                raise ValueError(
                    "The policy has no task to act for. Infer one, `task = model.infer(...)`, and take "
                    "`model.policy_for(task)`"
                )
            n_rows = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
            tasks = self.task[:1].expand(n_rows, -1)
        return self.act(inputs, tasks, deterministic)

    def act_for(self, tasks: th.Tensor | None) -> None:
        """
        Let each environment of a vectorized one pursue a task of its own.

        :param tasks: Task vectors ``(environments, task_dim)``; None for the one task of this policy
        """
        self._tasks_of_rows = tasks

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation (and optional hidden state). The state of a task that has a vector for
        each step, such as a demonstration's, is how many steps the episode has: pass it on.

        :param observation: the input observation
        :param state: The last hidden states, None at the start
        :param episode_start: The last masks, whether an episode begins
        :param deterministic: Whether or not to return deterministic actions
        :return: the model's action and the next hidden state
        :raises ValueError: If there is no task to act for
        """
        if self.task is None or len(self.task) == 1 or self._tasks_of_rows is not None:
            return super().predict(observation, state, episode_start, deterministic)
        tensors, is_vectorized = self.obs_to_tensor(observation)
        n_rows = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors) if is_vectorized else 1
        steps = np.zeros(n_rows, dtype=np.int64) if state is None else state[0]
        if episode_start is not None:
            steps = np.where(episode_start, 0, steps)
        self._tasks_of_rows = self.task[th.as_tensor(np.minimum(steps, len(self.task) - 1), device=self.device)]
        try:
            actions, _ = super().predict(observation, None, None, deterministic)
        finally:
            self._tasks_of_rows = None
        return actions, (steps + 1,)

    def for_task(self, vectors: np.ndarray) -> "TDJEPAPolicy":
        """
        :param vectors: Task vector ``(task_dim,)``, or one for each step, ``(steps, task_dim)``
        :return: A copy of this policy that acts for it, and does not learn on
        """
        optimizers = {name: self.__dict__.pop(name) for name in ("optimizer", "actor_optimizer")}
        try:
            other = copy.deepcopy(self)
        finally:
            self.__dict__.update(optimizers)
        other.optimizer = other.actor_optimizer = None  # type: ignore[assignment]
        other.task = th.as_tensor(vectors, dtype=th.float32, device=self.device).reshape(-1, self.task_dim)
        other.set_training_mode(False)
        return other

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        names = (
            "net_arch",
            "state_dim",
            "task_dim",
            "encoder_dim",
            "state_layers",
            "task_layers",
            "symmetric",
            "predicts_states",
        )
        data.update({name: getattr(self, name) for name in (*names, "exploration_noise")})
        data.update(
            lr_schedule=_no_schedule,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            behavior_flow=self.behavior is not None,
            task=None if self.task is None else self.task.cpu().numpy(),
        )
        return data


def _no_schedule(_: float) -> float:
    """The learning rate of a policy that was loaded without its algorithm."""
    return 0.0


class TDJEPACnnPolicy(TDJEPAPolicy):
    """
    The same for images: by default its encoders begin with ``NatureCNN``. Parameters are those of
    :class:`TDJEPAPolicy`.
    """

    default_extractor_class = NatureCNN


class TDJEPAMultiInputPolicy(TDJEPAPolicy):
    """
    The same for ``Dict`` observations: by default its encoders begin with ``CombinedExtractor``. Parameters are those
    of :class:`TDJEPAPolicy`.
    """

    default_extractor_class = CombinedExtractor
