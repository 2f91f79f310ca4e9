"""What a JEPA needs from a running training, and what it tells about itself."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import DISABLED, KVWriter
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_wrapper

from sb3_jepa.alternating.sources import ReplaySource
from sb3_jepa.alternating.training import AlternatingTraining
from sb3_jepa.buffers.rollout import NextObservations
from sb3_jepa.callbacks.divergence import DivergenceWatch
from sb3_jepa.callbacks.first_rollouts import FirstRollouts
from sb3_jepa.callbacks.followed_inputs import FollowedInputs
from sb3_jepa.common import checks
from sb3_jepa.common.ranks import n_ranks, rank
from sb3_jepa.common.sb3_privates import n_episodes, total_timesteps
from sb3_jepa.diagnostics import ObjectiveGauge, Verdict, assess
from sb3_jepa.distributed.training import check_ranks
from sb3_jepa.envs.vec_surprise import VecSurprise
from sb3_jepa.extractors.preprocessing import takes_nan
from sb3_jepa.objectives import Objective
from sb3_jepa.policies.joint import JointPolicy

# Logger outputs that hold tables of numbers, by Stable-Baselines3's names
TABLE_OUTPUTS = ("stdout", "log", "json", "csv")
ALL_OUTPUTS = ("tensorboard", *TABLE_OUTPUTS)
TOTAL_TIMESTEPS = "time/total_timesteps"
# A low rank may be that of a beginning: it is worth a warning when it was logged so many times in a row
LOW_RANK_UPDATES = 5
# What is logged tells of at least so many embeddings, and off-policy of so many minibatches
MIN_SAMPLES = 64
OFF_POLICY_INTERVAL = 100


def dump_last_scalars(callback: BaseCallback, names: Iterable[str], step: int) -> None:
    """
    Write out what was recorded after the last update: it would otherwise wait for a rollout that never comes. The
    logger keeps it for scripts to read, but does not write it again.

    :param callback: At the end of a training
    :param names: Of the scalars; those that were written before are left out
    :param step: The time step that they belong to
    """
    logger = callback.logger
    names = [name for name in names if logger.name_to_excluded[name] != ALL_OUTPUTS]
    if not names or callback.locals["log_interval"] is None or logger.level == DISABLED:
        return
    # As Stable-Baselines3 does, so that a row of a table says when it was
    values = {**{name: logger.name_to_value[name] for name in names}, TOTAL_TIMESTEPS: step}
    excluded = {**{name: logger.name_to_excluded[name] for name in names}, TOTAL_TIMESTEPS: ("tensorboard",)}
    for output in logger.output_formats:
        if isinstance(output, KVWriter):
            output.write(values, excluded, step)
    for name in names:
        logger.record(name, values[name], exclude=ALL_OUTPUTS)
        # A mean that goes on begins anew
        logger.name_to_count.pop(name, None)


class JepaCallback(BaseCallback):
    """
    Brings a JEPA to the training of any algorithm.

    A policy that learns jointly, such as :class:`~sb3_jepa.JepaPolicy`, is accompanied: terminal observations are
    reported to its rollout buffer. The algorithms of ``sb3_jepa`` add a callback by themselves; one of your own takes
    its place.

    Any other policy is trained in turn: the algorithm learns from a rollout, then the encoders of the policy learn from
    it, or from the replay buffer, with an optimiser of their own. Pass ``features_extractor_class=JepaExtractor`` to
    the policy, or take the one that it has. (Of a frozen encoder only the predictor learns.) What the encoders learn
    with is saved in the model's zip, and a model that was loaded goes on with it.

    In both cases:

    - The input statistics of every :class:`~sb3_jepa.JepaExtractor` are measured. On-policy, it is the first whole
      rollout (if it has fewer than ``standardize_frames`` observations, the next ones too): values, log-probabilities
      and advantages are computed anew with them, before the algorithm learns from it. Off-policy, it is what the replay
      buffer holds when learning starts, and if that is not enough the next ones too: so let ``learning_starts`` be as
      many. Those of vectors and grids then follow the data for the whole training, without changing what the encoders
      compute. A warning tells if all observations are the same, or if a number is 30 deviations away from its mean.
    - The target encoder's momentum and the encoder's learning rate move along their schedules.
    - After each update (off-policy, every 100; with a ``log_interval``, when it is due) ``jepa/momentum`` and what
      :meth:`~sb3_jepa.diagnostics.ObjectiveGauge.scalars` lists are logged, ``jepa/prediction_loss`` and
      ``jepa/embedding_variance`` among them, and in TensorBoard's texts ``jepa/verdict`` whenever it changes. A warning
      tells once if the encoder collapses, or uses hardly any of its dimensions. On-policy, an update is logged where
      the next rollout ends, the last one too: there is a point after the last time step.

    :param objective_class: What the encoders learn, by default :class:`~sb3_jepa.NextLatentPrediction`. This and all
        that follows is for a policy that does not learn jointly; one that does has it in its ``policy_kwargs``.
    :param objective_kwargs: Keyword arguments to pass to the objective
    :param encoders: Names of the networks whose encoders learn, such as ``["critic"]``; all by default
    :param n_updates: Updates of the encoders after each rollout. By default, on-policy as many as one pass over the
        rollout takes, and off-policy as many as the algorithm's ``gradient_steps``.
    :param batch_size: Size of a minibatch; by default that of the algorithm
    :param learning_rate: Learning rate of the encoders' optimiser, 3e-4 by default; it can be a function of the current
        progress remaining (from 1 to 0)
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If an argument is out of range; when the training starts, if the model has no encoder that
        learns, was trained with another objective, or cannot be trained on several ranks, or if arguments are given
        that its policy has of its own
    """

    runs_on_all_ranks = True

    _followed_inputs: FollowedInputs

    def __init__(
        self,
        objective_class: type[Objective] | None = None,
        objective_kwargs: dict[str, Any] | None = None,
        encoders: list[str] | None = None,
        n_updates: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | Schedule | None = None,
        verbose: int = 0,
    ):
        super().__init__(checks.whole_number("verbose", verbose, 0, 2))
        # Where nothing is said, None: a policy that learns jointly objects to what is said here
        if objective_kwargs is not None:
            objective_kwargs = checks.keyword_arguments("objective_kwargs", objective_kwargs)
        self._alternating_kwargs = dict(
            objective_class=checks.optional(checks.subclass, "objective_class", objective_class, cls=Objective),
            objective_kwargs=objective_kwargs,
            encoders=checks.optional(checks.texts, "encoders", encoders),
            n_updates=checks.optional(checks.whole_number, "n_updates", n_updates),
            batch_size=checks.optional(checks.whole_number, "batch_size", batch_size),
            learning_rate=checks.optional(checks.schedule, "learning_rate", learning_rate, least=0),
        )
        self._alternating: AlternatingTraining | None = None
        # Of an on-policy algorithm that still has inputs to measure
        self._first_rollouts: FirstRollouts | None = None
        self._is_prepared = False
        self._has_ended = False

    @property
    def policy(self) -> Any:
        """The policy that is trained."""
        return self.model.policy

    @property
    def objectives(self) -> dict[str, Objective]:
        """What the encoders learn, by the names of their networks."""
        if self._alternating is None:
            return dict(self.policy.objectives)
        return self._alternating.objectives

    @property
    def gauges(self) -> dict[str, ObjectiveGauge]:
        """What is logged, by the names of the networks."""
        if self._alternating is None:
            return dict(self.policy.gauges)
        return {name: learner.gauge for name, learner in self._alternating.learners.items()}

    def _init_callback(self) -> None:
        self._is_prepared = False
        self._check_parent()

    def _check_parent(self) -> None:
        if self.parent is not None:
            raise ValueError(
                f"A JepaCallback needs every step and every rollout, and {type(self.parent).__name__} does not pass "
                "them on to the callback that it was given. Pass a JepaCallback to learn() itself, alone or in a list: "
                f"`callback=[JepaCallback(), {type(self.parent).__name__}(...)]`"
            )

    def _on_training_start(self) -> None:
        # Within a list, the parent is known only now
        self._check_parent()
        self._prepare()

    def _prepare(self) -> None:
        check_ranks(self.model)
        self._is_prepared, self._has_ended = True, False
        self._alternating = self._first_rollouts = None
        self._watch = DivergenceWatch(self.model)
        self._n_rollouts = 0
        self._labels: dict[str, str] = {}
        self._n_low_rank: dict[str, int] = {}
        if isinstance(self.policy, JointPolicy):
            given = [name for name, value in self._alternating_kwargs.items() if value is not None]
            if given:
                raise ValueError(
                    f"A {type(self.policy).__name__} is trained with what its `policy_kwargs` say, and not with "
                    f"JepaCallback's {', '.join(f'`{name}`' for name in given)}"
                )
            buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
            objective = self.policy.objective
            buffer.takes_nan = takes_nan(self.policy)
            buffer.embed_targets = self.policy.embed_targets if objective.keeps_targets else None
            buffer.renews_targets_each_epoch = objective.target_refresh == "epoch"
        else:
            self._alternating = AlternatingTraining(self.model, **self._alternating_kwargs)  # type: ignore[arg-type]
        surprise_env = unwrap_vec_wrapper(self.training_env, VecSurprise)
        if surprise_env is not None:
            surprise_env.set_model(self.model)
        self._reset_gauges()
        self._followed_inputs = FollowedInputs(self.model)
        if isinstance(self.model, OnPolicyAlgorithm):
            first_rollouts = FirstRollouts(self.model)
            self._first_rollouts = None if first_rollouts.are_over else first_rollouts

    @property
    def _n_remaining_steps(self) -> int:
        return total_timesteps(self.model) - self.model.num_timesteps

    @property
    def _progress_remaining(self) -> float:
        # Not the model's own: at the start of a second learn() that is still the first one's
        return max(0.0, self._n_remaining_steps / max(1, total_timesteps(self.model)))

    def _on_rollout_start(self) -> None:
        # Who calls collect_rollouts() without learn() starts no training
        if not self._is_prepared:
            self._prepare()
        self._n_rollouts += 1
        # First, for an encoder that learns from what a ruined one computes would be blamed for it
        self._watch.check_parameters()
        if self._alternating is not None:
            self._alternating.train(self._progress_remaining)
        self._log_update()
        if self._alternating is None:
            self.policy.update_schedules(self._progress_remaining)
        self._followed_inputs.follow(self.objectives)
        self._check_running_statistics()

    def _check_running_statistics(self) -> None:
        normalize = unwrap_vec_wrapper(self.training_env, VecNormalize)
        if normalize is None or not normalize.norm_obs:
            return
        statistics = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {"": normalize.obs_rms}
        if any(np.isnan(one.mean).any() for one in statistics.values()):
            raise ValueError(
                "VecNormalize takes running means of the observations, and turns a number for good into NaN that was "
                "NaN once. Say `norm_obs=False`: a JepaExtractor standardises its input"
            )

    def _on_step(self) -> bool:
        self._watch.check_rewards(self.locals["rewards"])
        buffer = self.locals.get("rollout_buffer")
        if isinstance(buffer, NextObservations):
            buffer.record_step(self.locals["new_obs"], self.locals["dones"], self.locals["infos"])
        if self._alternating is not None:
            self._alternating.source.on_step(self.locals)
        if self._first_rollouts is not None:
            self._first_rollouts.on_step(self.locals)
        return True

    def _on_rollout_end(self) -> None:
        if self._first_rollouts is not None:
            self._first_rollouts.on_rollout_end(self.locals, self.objectives)
            if self._first_rollouts.are_over:
                self._first_rollouts = None
                self._followed_inputs.on_measured()
        else:
            source = None if self._alternating is None else self._alternating.source
            self._followed_inputs.on_rollout_end(source if isinstance(source, ReplaySource) else None)
        if self._alternating is not None:
            self._alternating.source.on_rollout_end()
            if self._alternating.measure_replay():
                self._followed_inputs.on_measured()

    def _on_training_end(self) -> None:
        # rl-baselines3-zoo calls it twice
        if self._has_ended:
            return
        self._has_ended = True
        self._watch.stop()
        if self._alternating is not None:
            self._alternating.train(self._progress_remaining)
        self._followed_inputs.follow(self.objectives)
        if self._alternating is None:
            # A buffer that is copied or saved should not bring the policy along
            self.model.rollout_buffer.embed_targets = None  # type: ignore[attr-defined]
        self._log_update(is_last=True)
        dump_last_scalars(self, list(self.logger.name_to_value), self._step_of_last_update)

    @property
    def _step_of_last_update(self) -> int:
        """
        Where the last update is logged. On-policy, Stable-Baselines3 logs an update where the rollout after it ends:
        at the last time step there is the update before already. Off-policy, that is so if an episode just ended.
        """
        if not isinstance(self.model, OnPolicyAlgorithm):
            assert isinstance(self.model, OffPolicyAlgorithm)
            n_all, interval = n_episodes(self.model), self.locals.get("log_interval") or np.inf
            n_ended = np.sum(self.locals.get("dones", 0))
            is_logged = n_all // interval > (n_all - n_ended) // interval
            return self.num_timesteps + int(is_logged) * self.training_env.num_envs
        buffer = self.model.rollout_buffer
        # A rollout that was stopped has no point of its own. Of its last step, the buffer does not know.
        n_steps = buffer.buffer_size if buffer.full else buffer.buffer_size - buffer.pos - 1
        return self.num_timesteps + n_steps * buffer.n_envs * n_ranks()

    def _prefix(self, name: str) -> str:
        return "jepa" if len(self.gauges) == 1 else f"jepa/{name}"

    @property
    def _is_dump_due(self) -> bool:
        """Whether an on-policy algorithm writes out what was recorded after the rollout that begins."""
        interval = self.locals.get("log_interval")
        # Stable-Baselines3 counts its rollouts too, but tells nobody
        return not interval or self._n_rollouts % interval == 0

    def _reset_gauges(self) -> None:
        for gauge in self.gauges.values():
            gauge.reset()

    def _log_update(self, is_last: bool = False) -> None:
        """Record the scalars of the updates that have just ended, if there were enough and somebody will see them."""
        is_on_policy = isinstance(self.model, OnPolicyAlgorithm)
        if is_on_policy and not is_last and not self._is_dump_due:
            return
        # Nobody would see them
        if rank() > 0:
            return
        for name, gauge in self.gauges.items():
            # An update of A2C has a few rows, and an off-policy one a single minibatch
            is_enough = gauge.n_samples >= MIN_SAMPLES and (is_on_policy or gauge.n_minibatches >= OFF_POLICY_INTERVAL)
            if gauge.n_minibatches == 0 or not (is_enough or is_last):
                continue
            scalars = gauge.scalars()
            for term, value in scalars.items():
                self.logger.record(f"{self._prefix(name)}/{term}", value)
            self.logger.record("jepa/momentum", self.objectives[name].momentum)
            self._judge(name, gauge, scalars)
            gauge.reset()

    def _judge(self, name: str, gauge: ObjectiveGauge, scalars: dict[str, float]) -> None:
        """Tell whether the encoder is healthy: in TensorBoard whenever that changes, and in a warning if it is not."""
        verdict = assess(
            scalars["embedding_variance"],
            scalars["effective_rank"],
            scalars["participation_ratio"],
            gauge.embed_dim,
            float(gauge.first_embedding_variance),
        )
        # A few last rows cannot lie in many directions
        if verdict.label == "low rank" and gauge.n_samples < MIN_SAMPLES:
            return
        if verdict.label != self._labels.get(name):
            text = f"**{verdict.label}**: {verdict.reason}{self._cure(verdict)}"
            self.logger.record(f"{self._prefix(name)}/verdict", text, exclude=TABLE_OUTPUTS)
        self._labels[name] = verdict.label
        self._n_low_rank[name] = self._n_low_rank.get(name, 0) + 1 if verdict.label == "low rank" else 0
        if verdict.label in ("collapsed", "diverged"):
            self._warn_once(gauge.warned_of_collapse, f"The encoder has {verdict.label}: {verdict.reason}", verdict)
        elif self._n_low_rank[name] >= LOW_RANK_UPDATES:
            self._warn_once(gauge.warned_of_low_rank, f"The encoder uses few dimensions: {verdict.reason}", verdict)

    def _warn_once(self, was_told: th.Tensor, text: str, verdict: Verdict) -> None:
        if not was_told:
            was_told.fill_(True)
            warnings.warn(text + self._cure(verdict), UserWarning, stacklevel=2)

    def _cure(self, verdict: Verdict) -> str:
        if verdict.label == "healthy":
            return ""
        if self._followed_inputs.sees_nothing_vary:
            return " Cure: observations that vary. All that were measured are the same."
        if verdict.label == "diverged":
            return " Cure: a lower learning rate, and observations and rewards without NaN."
        cure = " Cure: a hinge on the deviation (`objective_kwargs=dict(deviation_coef=1.0)`)"
        if verdict.label == "low rank":
            cure = (
                " Cure: a hinge on the deviation and decorrelated dimensions "
                "(`objective_kwargs=dict(deviation_coef=1.0, covariance_coef=0.05)`)"
            )
        if self._alternating is not None:
            return cure + " or a smaller `prediction_coef`, as arguments of JepaCallback."
        return (
            cure + ", the actor's and critic's gradient (`rl_gradient=True`), or a smaller `prediction_coef`, all in "
            "`policy_kwargs`."
        )
