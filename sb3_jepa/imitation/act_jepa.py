r"""
*ACT-JEPA*: imitation of demonstrations, by chunks of actions and a latent future.

From an observation the model learns to predict the next ``horizon`` actions, and what a momentum copy of its encoder
makes of the next states: :math:`L = | \hat a_{t:t+H} - a_{t:t+H} |_1 + | \hat s_{t+1:t+H} - \bar s_{t+1:t+H} |_1`. To
act, only the actions are needed (Vujinovic, Kovacevic 2025, arXiv 2501.14622).

.. code-block:: python

    demonstrations = record_episodes(env, expert, n_episodes=50)
    model = ACTJEPA("MultiInputPolicy", env, horizon=30)
    model.learn(demonstrations, n_updates=4_000, callback=EvalCallback(eval_env))
    load_encoder(PPO(JepaPolicy, env), model)
"""

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import nn

from sb3_jepa.algorithms.learning_from_data import LearnsFromData
from sb3_jepa.common import checks
from sb3_jepa.common.divergence import check_gradients
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.spaces import ARRAY_SPACES
from sb3_jepa.data.collection import check_progress_bar
from sb3_jepa.data.fitting import read_for
from sb3_jepa.data.recordings import Recordings
from sb3_jepa.imitation.demonstrations import (
    check_demonstrations,
    hold_out,
    measured_rows,
    take_chunks,
)
from sb3_jepa.imitation.held_out import ImitationFit, measure_fit
from sb3_jepa.imitation.latent_future import TARGETS, has_state
from sb3_jepa.imitation.policies import ACTJEPAPolicy
from sb3_jepa.imitation.schedule import WarmupCosine
from sb3_jepa.parts import random_shift as shift
from sb3_jepa.parts import weighted_mean

SelfACTJEPA = TypeVar("SelfACTJEPA", bound="ACTJEPA")
# Held-out rows that are evaluated each time
N_HELD_OUT = 1_000


class ACTJEPA(LearnsFromData, BaseAlgorithm):
    r"""
    *ACT-JEPA* (Vujinovic, Kovacevic 2025, arXiv 2501.14622): imitation with action chunks and a latent future. With
    ``prediction_coef=0`` it is *ACT* (Zhao et al. 2023, arXiv 2304.13705) without its variational autoencoder, and with
    ``horizon=1`` too, behaviour cloning.

    What differs from the paper: images are encoded by the patches of a :class:`~sb3_jepa.JepaExtractor`, since no
    pretrained network is at hand; blocks normalise their inputs and have no dropout; the model is smaller; and see
    :class:`~sb3_jepa.imitation.latent_future.LatentFuture`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``, which are one and the same, or a
        :class:`~sb3_jepa.imitation.policies.ACTJEPAPolicy`
    :param env: The environment: it tells the spaces, and callbacks may evaluate in it
    :param learning_rate: A number, which is reached after 4 % of the updates and then falls to zero along a cosine, as
        in the paper; or a schedule, which is taken as it is
    :param horizon: Number of actions of a chunk, and how far the predicted states reach
    :param batch_size: Minibatch size
    :param prediction_coef: Weight of the predicted future; 0 for no JEPA
    :param action_coef: Weight of the actions; 0 to learn the JEPA alone
    :param latent_target: What is predicted beside the actions: the embedded ``"state"`` of the next steps, of all that
        is no image, as in the paper; the embedding of the whole ``"observation"``, images included; or, for
        comparison, the ``"raw_state"``. By default the first that the observations have.
    :param momentum: Of the target encoder at the start. It rises to 1 linearly.
    :param n_action_steps: How many actions of a chunk are executed before the next one is decided on; by default as
        many as are nearly as exact as the first one on held-out episodes, or all (the paper's) if none are held out.
        May be changed at any time, also with ``load(path, n_action_steps=...)``.
    :param temporal_ensemble_coef: If given, a chunk is decided on at each step, and the mean of all decisions for it is
        executed, older ones with the larger weights; *ACT* has 0.01. May be changed at any time.
    :param random_shift: By how many pixels images of the context are moved at random while it learns; 0 for not at all
    :param max_grad_norm: The maximum value for the gradient clipping
    :param policy_kwargs: Keyword arguments for the policy
    :param stats_window_size: Window size of the rollout's logged means, which imitation has none of
    :param tensorboard_log: Where to log to
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed
    :param device: Device on which the code should run
    :param _init_setup_model: Whether to build the network at the creation of the instance
    :raises ValueError: If an argument is out of range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(
        ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"), ACTJEPAPolicy
    )
    policy: ACTJEPAPolicy
    fit: ImitationFit | None

    def __init__(
        self,
        policy: str | type[ACTJEPAPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 6e-4,
        horizon: int = 30,
        batch_size: int = 64,
        prediction_coef: float = 1.0,
        action_coef: float = 1.0,
        latent_target: str | None = None,
        momentum: float = 0.996,
        n_action_steps: int | None = None,
        temporal_ensemble_coef: float | None = None,
        random_shift: int = 0,
        max_grad_norm: float = 1.0,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        if not isinstance(policy, str):
            checks.subclass("policy", policy, ACTJEPAPolicy, also="the name of one")
        self.horizon = checks.whole_number("horizon", horizon)
        self.batch_size = checks.whole_number("batch_size", batch_size)
        self.prediction_coef = checks.number("prediction_coef", prediction_coef, least=0)
        self.action_coef = checks.number("action_coef", action_coef, least=0)
        if prediction_coef == 0 and action_coef == 0:
            raise ValueError("`prediction_coef` or `action_coef` must be positive, got 0 for both")
        self.latent_target = checks.optional(checks.choice, "latent_target", latent_target, accepted=TARGETS)
        self.momentum = checks.number("momentum", momentum, least=0, most=1)
        self.n_action_steps, self.temporal_ensemble_coef = n_action_steps, temporal_ensemble_coef
        self.random_shift = checks.whole_number("random_shift", random_shift, 0)
        self.max_grad_norm = checks.number("max_grad_norm", max_grad_norm, above=0)
        self.fit = None
        self._n_updates = 0
        self._losses: dict[str, th.Tensor] = {}
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs=checks.keyword_arguments("policy_kwargs", policy_kwargs),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=ARRAY_SPACES,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            **{
                **dict(
                    horizon=self.horizon,
                    n_action_steps=self.n_action_steps,
                    temporal_ensemble_coef=self.temporal_ensemble_coef,
                    latent_target=self._target(),
                ),
                **self.policy_kwargs,
            },
        )
        self.policy = self.policy.to(self.device)

    def _target(self) -> str | None:
        if self.prediction_coef == 0:
            return None
        if self.latent_target is not None:
            return self.latent_target
        return "state" if has_state(self.observation_space) else "observation"

    def _setup_lr_schedule(self) -> None:
        if not callable(self.learning_rate):
            peak = checks.number("learning_rate", self.learning_rate, above=0, also="a schedule")
            self.lr_schedule = WarmupCosine(peak)
        else:
            super()._setup_lr_schedule()

    def learn(  # type: ignore[override]
        self: SelfACTJEPA,
        demonstrations: Any,
        n_updates: int = 4_000,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "act_jepa",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        validation_demonstrations: Any = None,
        validation_fraction: float = 0.1,
        validation_interval: int = 500,
        other_episodes: Any = None,
        **kwargs: Any,
    ) -> SelfACTJEPA:
        """
        Learn from demonstrations. A time step of callbacks, logs and schedules is an update here.

        Some episodes are held out, whose starts do not occur among the others where starts are many. On these it
        measures what it has learned, see :class:`~sb3_jepa.imitation.held_out.ImitationFit`; the latest is :attr:`fit`.

        :param demonstrations: What :func:`~sb3_jepa.data.read` takes: recordings, a file, a folder or a Minari data set
        :param n_updates: Number of updates
        :param callback: callback(s) called after every update
        :param log_interval: Updates between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich
        :param validation_demonstrations: Other demonstrations to hold out instead
        :param validation_fraction: Which share of the demonstrations is held out, by rows; 0 for none
        :param validation_interval: Updates between two measurements on what is held out
        :param other_episodes: Episodes whose actions are not to be imitated, such as failures or random ones. The
            latent future learns from them too.
        :param kwargs: The further parameters of :func:`~sb3_jepa.data.read`
        :return: the trained model
        :raises ValueError: If an argument is out of range; or if demonstrations are of other spaces than the
            environment, have actions outside of the space, are all shorter than ``horizon``, or are not finite
        :raises ImportError: If the progress bar is asked for, and tqdm or rich is not installed
        """
        n_updates = checks.whole_number("n_updates", n_updates)
        log_interval = checks.whole_number("log_interval", log_interval)
        validation_interval = checks.whole_number("validation_interval", validation_interval)
        checks.number("validation_fraction", validation_fraction, least=0, below=1)
        check_progress_bar(progress_bar)
        training = self._read("demonstrations", demonstrations, kwargs)
        rows = check_demonstrations("demonstrations", training, self.horizon)
        validation = None
        if validation_demonstrations is not None:
            validation = self._read("validation_demonstrations", validation_demonstrations, kwargs)
        rows, held_out, held_out_rows = hold_out(training, rows, validation, validation_fraction, self.horizon)
        other, other_rows = None, np.zeros(0, np.int64)
        if other_episodes is not None:
            if self.policy.latent_future is None:
                raise ValueError(
                    "`other_episodes` must be None without a JEPA, `prediction_coef=0`: nothing reads them"
                )
            other = self._read("other_episodes", other_episodes, kwargs)
            other_rows = check_demonstrations("other_episodes", other, self.horizon)
        held_out_rows, training_rows = measured_rows(held_out_rows, N_HELD_OUT), measured_rows(rows, N_HELD_OUT)
        if self._n_updates == 0:
            self._measure(training, rows)

        def update() -> None:
            self._update(training, rows, other, other_rows)
            if len(held_out_rows) > 0 and self.action_coef > 0 and self._n_updates % validation_interval == 0:
                self._validate(training, training_rows, held_out, held_out_rows)

        self._learn_from_data(update, n_updates, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        if len(held_out_rows) > 0 and self.action_coef > 0 and self._n_updates % validation_interval != 0:
            self._validate(training, training_rows, held_out, held_out_rows)
            self.dump_logs()
        return self

    def _read(self, name: str, data: Any, kwargs: dict[str, Any]) -> Recordings:
        return read_for(data, self.observation_space, self.action_space, name=name, **kwargs)

    @th.no_grad()
    def _measure(self, recordings: Recordings, rows: np.ndarray) -> None:
        """Statistics of inputs and actions."""
        policy = self.policy
        assert recordings.actions is not None
        policy.actions.measure(np.asarray(recordings.actions[rows]))
        encoder: Any = policy.features_extractor
        n = getattr(encoder, "n_inputs_to_measure", 0)
        if n > 0:
            some = measured_rows(rows, n)
            tensors, _ = policy.obs_to_tensor(recordings.take(some))
            encoder.measure_inputs(policy.inputs(tensors))
        if policy.latent_future is not None and policy.latent_future.target_encoder is not None:
            policy.latent_future.target_encoder.copy_buffers(encoder)

    def _update(self, training: Recordings, rows: np.ndarray, other: Recordings | None, other_rows: np.ndarray) -> None:
        policy = self.policy
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        # Of each kind as many as there are
        n_imitated = self.batch_size
        if len(other_rows) > 0:
            share = len(rows) / (len(rows) + len(other_rows))
            n_imitated = int(np.clip(round(self.batch_size * share), 1, max(1, self.batch_size - 1)))
        losses = self._losses_of(training, _draw(rows, n_imitated), self.action_coef)
        if other is not None:
            more = self._losses_of(other, _draw(other_rows, self.batch_size - n_imitated), 0.0)
            share = n_imitated / self.batch_size
            for name in ("prediction_loss", "target_variance"):
                losses[name] = share * losses[name] + (1.0 - share) * more[name]
        zero = th.zeros((), device=self.device)
        loss = self.action_coef * losses.get("action_loss", zero)
        loss = loss + self.prediction_coef * losses.get("prediction_loss", zero)
        policy.optimizer.zero_grad()
        loss.backward()
        check_gradients(policy.optimizer)
        nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
        policy.optimizer.step()
        if policy.latent_future is not None:
            progress = 1.0 - self._current_progress_remaining
            momentum = self.momentum + (1.0 - self.momentum) * progress
            policy.latent_future.update(policy.features_extractor, momentum)
        self._losses = {name: value.detach() for name, value in losses.items()}
        self._n_updates += 1

    def _losses_of(self, recordings: Recordings, rows: np.ndarray, action_coef: float) -> dict[str, th.Tensor]:
        policy, future = self.policy, self.policy.latent_future
        steps, keys = (None, None) if future is None else (future.steps, future.keys)
        chunks = take_chunks(recordings, rows, self.horizon, steps, keys)
        tensors, _ = policy.obs_to_tensor(chunks.observations)
        context = policy.context(policy.inputs(self._shifted(tensors)))
        losses = {}
        if action_coef > 0:
            errors = policy.actions.errors(policy.action_decoder(context), policy.actions.encode(chunks.actions))
            losses["action_loss"] = weighted_mean(errors, th.as_tensor(chunks.has_action, device=self.device))
        if future is not None:
            flat = {key: array.reshape(-1, *array.shape[2:]) for key, array in by_key(chunks.future).items()}
            flat_tensors = {key: th.as_tensor(array, device=self.device) for key, array in flat.items()}
            result = future(
                context,
                policy.features_extractor,
                policy.inputs(as_observations(flat_tensors), keys),
                th.as_tensor(chunks.follows, device=self.device),
            )
            losses.update(prediction_loss=result.loss, target_variance=result.target_variance)
        return losses

    def _shifted(self, observations: Any) -> Any:
        if self.random_shift == 0:
            return observations
        return as_observations(
            {
                key: shift(one, self.random_shift) if one.dtype == th.uint8 and one.ndim >= 4 else one
                for key, one in by_key(observations).items()
            }
        )

    def _validate(
        self, training: Recordings, rows: np.ndarray, held_out: Recordings, held_out_rows: np.ndarray
    ) -> None:
        training_error = measure_fit(self.policy, training, rows, 0.0).error
        self.fit = measure_fit(self.policy, held_out, held_out_rows, training_error)
        self._set_execution()
        for name, value in self.fit.scalars().items():
            self.logger.record(f"imitation/{name}", value)
        # Tables are for numbers
        self.logger.record("imitation/verdict", str(self.fit), exclude=("stdout", "log", "json", "csv"))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation, see
        :meth:`~sb3_jepa.imitation.policies.ACTJEPAPolicy.predict`.

        :param observation: the input observation
        :param state: The last state, None at the start
        :param episode_start: The last masks, whether an episode begins
        :param deterministic: Whether or not to return deterministic actions
        :return: the model's action and the next state
        :raises ValueError: If ``n_action_steps`` or ``temporal_ensemble_coef`` were set out of range, or as there
        """
        self._set_execution()
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _set_execution(self) -> None:
        policy = self.policy
        policy.n_action_steps = checks.optional(
            checks.whole_number, "n_action_steps", self.n_action_steps, least=1, most=self.horizon
        )
        if policy.n_action_steps is None and self.fit is not None:
            policy.n_action_steps = self.fit.steady_steps
        policy.temporal_ensemble_coef = checks.optional(
            checks.number, "temporal_ensemble_coef", self.temporal_ensemble_coef, least=0
        )

    def dump_logs(self) -> None:
        """Write log data."""
        for name, value in self._losses.items():
            self.logger.record(f"{'imitation' if name == 'action_loss' else 'jepa'}/{name}", float(value))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/learning_rate", self.lr_schedule(self._current_progress_remaining))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_losses"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []


def _draw(rows: np.ndarray, n: int) -> np.ndarray:
    """With replacement, by PyTorch's random numbers, which the seed decides."""
    return rows[th.randint(len(rows), (n,)).numpy()]
