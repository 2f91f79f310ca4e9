"""What a JEPA needs from a running training, and what it tells about itself."""

import warnings

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_jepa.buffers import NO_KEY, NextObservations, by_key
from sb3_jepa.diagnostics import ObjectiveGauge
from sb3_jepa.policies import JointPolicy

# Below this embedding variance the paper speaks of collapse (JEPA for RL, arXiv 2504.16591)
COLLAPSED_VARIANCE = 1e-7
# ... and this fraction of what it was at the start is no accident
COLLAPSED_FRACTION = 1e-3


class JepaCallback(BaseCallback):
    """
    Accompanies the training of a :class:`~sb3_jepa.JepaPolicy`. The algorithms of ``sb3_jepa`` add one by themselves;
    one of your own takes its place.

    - Before the first rollout it collects ``standardize_frames`` observations with the untrained policy, from which the
      input statistics are measured. Nothing is learned from them, but they are time steps like all others: they are
      counted, and other callbacks see them (and may evaluate or save the untrained policy).
    - It reports terminal observations to the rollout buffer.
    - It moves the target encoder's momentum along its schedule.
    - After each update it logs ``jepa/prediction_loss``, ``jepa/variance_loss``, ``jepa/embedding_variance``,
      ``jepa/effective_rank`` and ``jepa/momentum``, and warns once if the encoder collapses.

    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: When the training starts, if the model has no ``JepaPolicy``
    """

    model: OnPolicyAlgorithm

    def __init__(self, verbose: int = 0):
        super().__init__(verbose)
        self._measuring = False
        self._stopped = False

    @property
    def policy(self) -> JointPolicy:
        """The policy that is trained."""
        return self.model.policy  # type: ignore[return-value]

    def _on_training_start(self) -> None:
        if not isinstance(self.model.policy, JointPolicy):
            raise ValueError(f"JepaCallback needs a model with a JepaPolicy, got {type(self.model.policy).__name__}")
        self._stopped = False
        self._reset_gauges()
        n_steps, n_missing = self._n_remaining_steps, self.policy.n_inputs_to_measure
        if n_missing >= n_steps:
            warnings.warn(
                f"The {n_missing} observations that the input statistics still lack use up the {n_steps} time steps of "
                "this training; a rollout to learn from comes on top. Train for longer, or pass a smaller "
                "`standardize_frames` in `features_extractor_kwargs`.",
                UserWarning,
                stacklevel=2,
            )

    @property
    def _n_remaining_steps(self) -> int:
        return self.model._total_timesteps - self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self._measuring:
            return
        self._log_update()
        # Not the model's own progress: at the start of a second learn() that is still the first one's
        progress_remaining = max(0.0, self._n_remaining_steps / self.model._total_timesteps)
        for objective in self.policy.objectives.values():
            objective.update_momentum(progress_remaining)
        self._measure_inputs()

    def _on_step(self) -> bool:
        buffer = self.locals["rollout_buffer"]
        if isinstance(buffer, NextObservations):
            buffer.record_step(self.locals["new_obs"], self.locals["dones"], self.locals["infos"])
        return not self._stopped

    def _on_training_end(self) -> None:
        self._log_update()
        # The last update's scalars would otherwise wait for a rollout that never comes
        if self.locals["log_interval"] is not None:
            # As Stable-Baselines3 does, so that a row of a table says when it was
            self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
            self.logger.dump(step=self.num_timesteps)

    def _measure_inputs(self) -> None:
        """
        Collect observations without learning from them. They go through ``collect_rollouts``, so that time steps,
        episode statistics and the other callbacks take part as ever.
        """
        buffer = self.model.rollout_buffer
        while (n_missing := self.policy.n_inputs_to_measure) > 0:
            n_steps = min(buffer.buffer_size, -(-n_missing // buffer.n_envs))
            self._measuring = True
            try:
                # Of MaskablePPO
                masking = {key: self.locals[key] for key in ("use_masking",) if key in self.locals}
                completed = self.model.collect_rollouts(
                    self.training_env, self.locals["callback"], buffer, n_steps, **masking
                )
            finally:
                self._measuring = False
            if not completed:
                # Another callback wants to stop: what it told the inner rollout, the outer one has to hear too
                self._stopped = True
                buffer.reset()
                return
            seen = {key: np.concatenate(array[:n_steps]) for key, array in by_key(buffer.observations).items()}
            self.policy.measure_inputs(seen.get(NO_KEY, seen))
            buffer.reset()

    def _reset_gauges(self) -> None:
        for gauge in self.policy.gauges.values():
            gauge.reset()

    def _log_update(self) -> None:
        """Record the scalars of the update that has just ended, if there was one."""
        for name, gauge in self.policy.gauges.items():
            terms = gauge.means()
            if not terms:
                continue
            prefix = "jepa" if name == "shared" else f"jepa/{name}"
            for term, value in terms.items():
                self.logger.record(f"{prefix}/{term}", value)
            self.logger.record(f"{prefix}/effective_rank", gauge.effective_rank())
            self.logger.record("jepa/momentum", self.policy.objective.momentum)
            self._warn_if_collapsed(gauge, terms["embedding_variance"])
        self._reset_gauges()

    def _warn_if_collapsed(self, gauge: ObjectiveGauge, variance: float) -> None:
        first_variance = float(gauge.first_embedding_variance)
        threshold = max(COLLAPSED_VARIANCE, COLLAPSED_FRACTION * first_variance)
        if variance < threshold and not gauge.warned_of_collapse:
            gauge.warned_of_collapse = True
            warnings.warn(
                f"The encoder has collapsed: its embedding variance is {variance:.1e}, it began with "
                f"{first_variance:.1e}. It now tells observations hardly apart, however small the prediction "
                "loss is. Cure: a hinge on the deviation (`objective_kwargs=dict(deviation_coef=1.0)`), the actor's "
                "and critic's gradient (`rl_gradient=True`), or a smaller `prediction_coef`, all in `policy_kwargs`.",
                UserWarning,
                stacklevel=2,
            )
