r"""
*TD-JEPA*: learn once without rewards, then do any task that is named.

From transitions without rewards two encoders learn to predict each other's discounted future under a whole family of
policies: :math:`T(\varphi(s), a, z) \approx \mathbb E \sum_k \gamma^k \psi(s_{t+k+1})`. A reward that is linear in
:math:`\psi`, with weights :math:`z`, then has the value :math:`T(\varphi(s), a, z)^\top z`, which the policy
:math:`\pi_z` maximises. So a task is a vector, and nothing is trained any more (Bagatella et al. 2025, arXiv
2510.00739).

.. code-block:: python

    model = TDJEPA("MlpPolicy", env)
    model.learn_offline(read("point_mass.npz"), gradient_steps=100_000)
    task = model.infer(reward=lambda observations: -np.abs(observations).sum(axis=1))
    evaluate_policy(model.policy_for(task), env)
"""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_jepa.buffers.replay import frame_buffer_class
from sb3_jepa.common import checks
from sb3_jepa.common.divergence import check_gradients
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.zero_shot.batches import Batch, Samples, draw_samples
from sb3_jepa.zero_shot.collection import CollectsForTasks
from sb3_jepa.zero_shot.cuda_graph import RecordedUpdate, can_be_recorded
from sb3_jepa.zero_shot.inference import InfersTasks
from sb3_jepa.zero_shot.losses import draw_tasks, orthonormality_loss, temporal_difference_loss
from sb3_jepa.zero_shot.networks import best_action, project
from sb3_jepa.zero_shot.offline_learning import LearnsOffline
from sb3_jepa.zero_shot.policies import TDJEPACnnPolicy, TDJEPAMultiInputPolicy, TDJEPAPolicy

# The second moment of task embeddings moves by this share in each update
MOMENT_RATE = 0.005
# Inputs are measured on so many observations of the buffer
N_MEASURED = 10_000


class TDJEPA(LearnsOffline, CollectsForTasks, InfersTasks, OffPolicyAlgorithm):
    r"""
    *TD-JEPA* (Bagatella et al. 2025, arXiv 2510.00739), algorithm 1. It learns from data, :meth:`learn_offline`, or
    from what it collects itself for random tasks, :meth:`learn`; rewards are not looked at. :meth:`infer` makes a
    task of rewards, a goal or a demonstration, and :meth:`policy_for` a policy of the task.

    What differs from the paper: state embeddings of the actor's loss are those of before the step, inputs are
    standardised, and widths, momentum and learning rate are such as suit 100,000 updates on a CPU. (The paper's, with
    1,024 samples and 2 million updates: ``learning_rate=1e-4, batch_size=1024, momentum=0.999``, ``policy_kwargs=dict(
    net_arch=[1024, 1024], state_dim=256, state_layers=0)``.)

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``, or a
        :class:`~sb3_jepa.zero_shot.policies.TDJEPAPolicy`
    :param env: The environment; for offline learning, it tells the spaces, and is where policies are evaluated
    :param learning_rate: Of all optimizers, a number or a schedule
    :param buffer_size: Size of the replay buffer of what it collects itself
    :param learning_starts: Steps with random actions before it learns from what it collects itself
    :param batch_size: Minibatch size
    :param momentum: Of the target encoders and predictors
    :param gamma: Discount factor: how far tasks look ahead. With 0, predictions are of one step.
    :param train_freq: Update the model every so many steps
    :param gradient_steps: How many updates then
    :param state_orthonormality_coef: Weight of the state embeddings' orthonormality, :math:`\lambda_\varphi`
    :param task_orthonormality_coef: Weight of the task embeddings' orthonormality, :math:`\lambda_\psi`. The paper
        tries 0.01 to 10 for each domain
    :param goal_share: Which share of the task vectors of an update are embeddings of other observations of the batch;
        the others are random
    :param whiten_goals: Whether the embeddings of goals are multiplied by the inverse of their second moment, as the
        paper does on OGBench
    :param next_actions: Which actions the future is predicted of: those of the ``"policy"`` for the task, or those of
        the ``"data"``, as BYOL-:math:`\gamma` does, which is here for comparison
    :param behavior_coef: How much the actor is kept near the actions of the data, for data of experts; 0 for not
    :param replay_buffer_class: By default :class:`~sb3_jepa.FrameReplayBuffer` for images
    :param replay_buffer_kwargs: Keyword arguments for it, such as ``dict(random_shift=2)``
    :param cuda_graph: On a GPU, whether updates are recorded once and then replayed, which spares Python's time; False
        for a features extractor that PyTorch cannot record
    :param policy_kwargs: Keyword arguments for the policy
    :param stats_window_size: Window size of the rollout's logged means
    :param tensorboard_log: Where to log to
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed
    :param device: Device on which the code should run
    :param _init_setup_model: Whether to build the network at the creation of the instance
    :raises ValueError: If an argument is out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": TDJEPAPolicy,
        "CnnPolicy": TDJEPACnnPolicy,
        "MultiInputPolicy": TDJEPAMultiInputPolicy,
    }
    # Whether there is a predictor from task embeddings to state embeddings
    predicts_states: ClassVar[bool] = True
    policy: TDJEPAPolicy

    def __init__(
        self,
        policy: str | type[TDJEPAPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 10_000,
        batch_size: int = 256,
        momentum: float = 0.995,
        gamma: float = 0.98,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        state_orthonormality_coef: float = 1.0,
        task_orthonormality_coef: float = 1.0,
        goal_share: float = 0.5,
        whiten_goals: bool = False,
        next_actions: str = "policy",
        behavior_coef: float = 0.0,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        cuda_graph: bool = True,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        if not isinstance(policy, str):
            checks.subclass("policy", policy, TDJEPAPolicy, also="the name of one")
        self.momentum = checks.number("momentum", momentum, least=0, most=1)
        checks.number("gamma", gamma, least=0, below=1)
        checks.whole_number("batch_size", batch_size, 2)
        self.state_orthonormality_coef = checks.number("state_orthonormality_coef", state_orthonormality_coef, least=0)
        self.task_orthonormality_coef = checks.number("task_orthonormality_coef", task_orthonormality_coef, least=0)
        self.goal_share = checks.number("goal_share", goal_share, least=0, most=1)
        self.whiten_goals = checks.flag("whiten_goals", whiten_goals)
        self.next_actions = checks.choice("next_actions", next_actions, ("policy", "data"))
        self.behavior_coef = checks.number("behavior_coef", behavior_coef, least=0)
        self.cuda_graph = checks.flag("cuda_graph", cuda_graph)
        policy_kwargs = checks.keyword_arguments("policy_kwargs", policy_kwargs)
        if self.behavior_coef > 0:
            policy_kwargs["behavior_flow"] = True
        if not self.predicts_states:
            policy_kwargs["predicts_states"] = False
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=1.0 - self.momentum,
            gamma=gamma,
            train_freq=train_freq,  # type: ignore[arg-type]
            gradient_steps=gradient_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete),
        )
        self._n_updates = 0
        # Of the latest update
        self._losses: dict[str, th.Tensor] = {}
        self._recorded_update: RecordedUpdate | None = None
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.behavior_coef > 0 and isinstance(self.action_space, spaces.Discrete):
            raise ValueError(
                f"`behavior_coef` must be 0 for discrete actions, which have no actor to keep, got {self.behavior_coef}"
            )
        if self.replay_buffer_class is None:
            self.replay_buffer_class = frame_buffer_class(self.observation_space)
        super()._setup_model()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        optimizers = [self.policy.optimizer, self.policy.actor_optimizer]
        if self.cuda_graph and self.device.type == "cuda" and can_be_recorded(optimizers):
            self._recorded_update = RecordedUpdate(self._learn_from, optimizers)
        return super()._setup_learn(*args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Sample the replay buffer and do the updates.

        :param gradient_steps: Number of updates
        :param batch_size: Minibatch size
        """
        self._begin_training()
        update, buffer = self._recorded_update or self._learn_from, self.replay_buffer
        assert buffer is not None
        for _ in range(gradient_steps):
            self._losses = update(draw_samples(buffer, batch_size, self.vec_normalize, self.next_actions == "data"))
        self._n_updates += gradient_steps

    def _begin_training(self) -> None:
        policy = self.policy
        assert self.replay_buffer is not None
        if self._n_updates == 0:
            n_rows = min(N_MEASURED, self.replay_buffer.size() * self.replay_buffer.n_envs)
            policy.measure_inputs(self.replay_buffer.sample(n_rows, env=self.vec_normalize).observations)
        policy.set_training_mode(True)
        optimizers = [policy.optimizer, policy.actor_optimizer]
        self._update_learning_rate([one for one in optimizers if one is not None])

    def _update(self, batch: Batch) -> dict[str, th.Tensor]:
        policy = self.policy
        loss, losses, state, task = self.representation_loss(batch)
        policy.optimizer.zero_grad()
        loss.backward()
        check_gradients(policy.optimizer)
        policy.optimizer.step()
        policy.task_moment.lerp_(task.T @ task / len(task), MOMENT_RATE)
        if policy.actor is not None:
            losses["actor_loss"] = self._update_actor(batch, state)
        policy.update_targets(self.momentum)
        return losses

    def _learn_from(self, samples: Samples) -> dict[str, th.Tensor]:
        return self._update(self._make_batch(samples))

    def _make_batch(self, samples: Samples) -> Batch:
        policy, next_inputs = self.policy, self.policy.inputs(samples.next_observations)
        data_actions = samples.data_actions
        return Batch(
            policy.inputs(samples.observations),
            self._as_known(samples.actions),
            next_inputs,
            self.gamma * (1.0 - samples.dones),
            self._draw_tasks(next_inputs, len(samples.actions)),
            None if data_actions is None else (self._as_known(data_actions[0]), data_actions[1]),
        )

    def _as_known(self, actions: th.Tensor) -> th.Tensor:
        """Of discrete actions the numbers."""
        return actions.flatten().long() if self.policy.is_discrete else actions

    @th.no_grad()
    def _draw_tasks(self, inputs: Any, n_tasks: int) -> th.Tensor:
        """Random directions, and for a share of the rows the embeddings of other rows."""
        tasks = draw_tasks(n_tasks, self.policy.task_dim, self.device)
        n_goals = round(self.goal_share * n_tasks)
        if n_goals > 0:
            # Rows are in random order, and none is to have a goal of its own
            goals = {key: rows.roll(1, 0)[:n_goals] for key, rows in by_key(inputs).items()}
            tasks[:n_goals] = self._task_of_goals(self.policy.task_encoder(as_observations(goals)))
        return tasks

    def _task_of_goals(self, embeddings: th.Tensor) -> th.Tensor:
        if not self.whiten_goals:
            return project(embeddings)
        moment = self.policy.task_moment
        ridge = 1e-6 * th.eye(len(moment), device=moment.device)
        return project(th.linalg.solve(moment + ridge, embeddings.T).T)

    def representation_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor], th.Tensor, th.Tensor]:
        r"""
        Equations 1 to 3: each encoder's prediction of the other's discounted future, and both orthonormality terms. One
        action at the next state serves both targets.

        :param batch: What to learn from
        :return: The loss, what is logged, and state and task embeddings without gradient
        """
        policy = self.policy
        state = policy.state_encoder(batch.inputs)
        next_state = policy.target_encoders["state"](batch.next_inputs)
        if policy.symmetric:
            target = self._target("state", next_state, next_state, batch, self._next_actions(next_state, batch))
            losses = self._losses_of("state", state, target, batch)
            return *self._sum(losses), state.detach(), state.detach()
        task = policy.task_encoder(batch.inputs)
        next_task = policy.target_encoders["task"](batch.next_inputs)
        actions = self._next_actions(next_state, batch)
        losses = {
            **self._losses_of("state", state, self._target("state", next_state, next_task, batch, actions), batch),
            **self._losses_of("task", task, self._target("task", next_task, next_state, batch, actions), batch),
        }
        return *self._sum(losses), state.detach(), task.detach()

    @th.no_grad()
    def _next_actions(self, next_state: th.Tensor, batch: Batch) -> th.Tensor:
        policy = self.policy
        if batch.data_actions is not None:
            return batch.data_actions[0]
        if policy.actor is None:
            predictions = policy.target_predictors["state"].encoder.of_all_actions(next_state, batch.tasks)  # type: ignore[operator, union-attr]
            return best_action(predictions, batch.tasks)
        if policy.behavior is not None:
            features = policy.state_encoder.features(batch.next_inputs)
            return policy.actor(features, batch.tasks, th.randn(len(features), policy.action_dim, device=self.device))
        return policy.with_noise(policy.actor(next_state, batch.tasks))

    @th.no_grad()
    def _target(
        self, name: str, next_own: th.Tensor, next_other: th.Tensor, batch: Batch, actions: th.Tensor
    ) -> th.Tensor:
        r""":math:`\bar\psi(s') + \gamma \bar T(\bar\varphi(s'), a', z)`, the mean of the predictors"""
        future = self.policy.target_predictors[name](next_own, actions, batch.tasks).mean(dim=0)
        return th.addcmul(next_other, batch.discounts, future)

    def _losses_of(self, name: str, embeddings: th.Tensor, target: th.Tensor, batch: Batch) -> dict[str, th.Tensor]:
        predictions = self.policy.predictors[name](embeddings, batch.actions, batch.tasks)
        return {
            f"{name}_prediction_loss": temporal_difference_loss(predictions, target, batch.weights),
            f"{name}_orthonormality_loss": orthonormality_loss(embeddings),
        }

    def _sum(self, losses: dict[str, th.Tensor]) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        loss: Any = 0.0
        for name, value in losses.items():
            coefficient = getattr(self, name.replace("_loss", "_coef")) if "orthonormality" in name else 1.0
            loss = loss + coefficient * value
        return loss, {name: value.detach() for name, value in losses.items()}

    def _update_actor(self, batch: Batch, state: th.Tensor) -> th.Tensor:
        r"""Equation 4, :math:`-T(\varphi(s), \pi(\varphi(s), z), z)^\top z`, whose gradient reaches the actor alone."""
        policy = self.policy
        assert policy.actor is not None
        assert policy.actor_optimizer is not None
        regularization: Any = 0.0
        if policy.behavior is None:
            actions = policy.with_noise(policy.actor(state, batch.tasks))
        else:
            with th.no_grad():
                features = policy.state_encoder.features(batch.inputs)
            noise = th.randn_like(batch.actions)
            actions = policy.actor(features, batch.tasks, noise)
            distance = (actions - policy.behavior.sample(features, noise)).square().sum(dim=1).mean()
            regularization = self.behavior_coef * distance + policy.behavior.loss(features, batch.actions)
        values = (policy.predictors["state"](state, actions, batch.tasks).mean(dim=0) * batch.tasks).sum(dim=1)
        loss = -values.mean()
        if policy.behavior is not None:
            loss = loss / values.detach().abs().mean().clamp(min=1e-6) + regularization
        parameters = [one for network in policy.actors for one in network.parameters()]
        for parameter, gradient in zip(parameters, th.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        policy.actor_optimizer.step()
        return loss.detach()

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """
        :return: Of the policy and its optimizers, as they are saved
        """
        if self._recorded_update is not None:
            self._recorded_update.release()
        return super().get_parameters()

    @property
    def vec_normalize(self) -> Any:
        """What normalises the observations of the environment, or None."""
        return self._vec_normalize_env

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_losses", "_recorded_update", "_tasks_of_envs"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        optimizers = ["policy.optimizer", *(["policy.actor_optimizer"] if self.policy.actor_optimizer else [])]
        return ["policy", *optimizers], []
