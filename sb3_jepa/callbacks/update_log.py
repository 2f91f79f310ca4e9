"""Log what the encoders have learned, and warn if one of them collapses."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_jepa.callbacks.input_statistics import InputStatisticsCallback
from sb3_jepa.callbacks.last_scalars import TABLE_OUTPUTS, dump_last_scalars
from sb3_jepa.common.ranks import n_ranks, rank
from sb3_jepa.common.sb3_privates import n_episodes
from sb3_jepa.diagnostics import ObjectiveGauge, Verdict, assess
from sb3_jepa.objectives import Objective
from sb3_jepa.policies.learns_jointly import LearnsJointly

# A low rank may be that of a beginning: it is worth a warning when it was logged so many times in a row
LOW_RANK_UPDATES = 5
# What is logged tells of at least so many embeddings, and off-policy of so many minibatches
MIN_SAMPLES = 64
OFF_POLICY_INTERVAL = 100


class UpdateLogCallback(BaseCallback):
    """
    Logs the scalars of an update when the next rollout starts, and those of the last one when the training ends.

    :param objectives: What the encoders learn, by the names of their networks
    :param gauges: What has measured them, by the same names
    :param inputs: Knows whether the observations vary
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        gauges: Mapping[str, ObjectiveGauge],
        inputs: InputStatisticsCallback,
    ):
        super().__init__()
        self.objectives, self.gauges = objectives, gauges
        self._inputs = inputs
        self._n_rollouts = 0
        self._labels: dict[str, str] = {}
        self._n_low_rank: dict[str, int] = {}

    def _on_training_start(self) -> None:
        for gauge in self.gauges.values():
            gauge.reset()

    def _on_rollout_start(self) -> None:
        self._n_rollouts += 1
        self._log_update()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
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
        # Stable-Baselines3 counts its rollouts in a local variable
        return not interval or self._n_rollouts % interval == 0

    def _log_update(self, is_last: bool = False) -> None:
        """Record the scalars of the updates that have just ended, if there were enough and they will be written out."""
        is_on_policy = isinstance(self.model, OnPolicyAlgorithm)
        if is_on_policy and not is_last and not self._is_dump_due:
            return
        # Only the first rank has a logger that writes
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
        if self._inputs.sees_nothing_vary:
            return " Cure: observations that vary. All that were measured are the same."
        if verdict.label == "diverged":
            return " Cure: a lower learning rate, and observations and rewards without NaN."
        cure = " Cure: a hinge on the deviation (`objective_kwargs=dict(deviation_coef=1.0)`)"
        if verdict.label == "low rank":
            cure = (
                " Cure: a hinge on the deviation and decorrelated dimensions "
                "(`objective_kwargs=dict(deviation_coef=1.0, covariance_coef=0.05)`)"
            )
        if not isinstance(self.model.policy, LearnsJointly):
            return cure + " or a smaller `prediction_coef`, as arguments of JepaCallback."
        return (
            cure + ", the actor's and critic's gradient (`rl_gradient=True`), or a smaller `prediction_coef`, all in "
            "`policy_kwargs`."
        )
