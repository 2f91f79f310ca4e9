"""The callback that brings a JEPA to a training: a list of callbacks, each with one job."""

from typing import Any

from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.type_aliases import Schedule

from sb3_jepa.alternating.training import AlternatingTraining
from sb3_jepa.callbacks.alternating import AlternatingCallback
from sb3_jepa.callbacks.divergence import DivergenceCallback
from sb3_jepa.callbacks.env_wrappers import EnvWrappersCallback
from sb3_jepa.callbacks.input_statistics import InputStatisticsCallback
from sb3_jepa.callbacks.next_observations import NextObservationsCallback
from sb3_jepa.callbacks.schedules import SchedulesCallback
from sb3_jepa.callbacks.update_log import UpdateLogCallback
from sb3_jepa.common import checks
from sb3_jepa.diagnostics import ObjectiveGauge
from sb3_jepa.distributed.training import check_ranks
from sb3_jepa.objectives import Objective
from sb3_jepa.policies.learns_jointly import LearnsJointly


class JepaCallback(CallbackList):
    """
    Brings a JEPA to the training of any algorithm.

    A policy that learns jointly, such as :class:`~sb3_jepa.JepaPolicy`, is accompanied: on-policy, terminal
    observations are reported to its rollout buffer. The algorithms of ``sb3_jepa`` add a callback by themselves; one of
    your own takes its place.

    Any other policy is trained in turn: the algorithm learns from a rollout, then the encoders of the policy learn from
    it, or from the replay buffer, with an optimiser of their own. Pass ``features_extractor_class=JepaExtractor`` to
    the policy, or take the one that it has. (Of a frozen encoder only the predictor learns.) What the encoders learn
    with is saved in the model's zip, and a model that was loaded goes on with it.

    In both cases, in turn and each by a callback of its own (``callbacks``, once the training has started):

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
        super().__init__([])
        self.verbose = checks.whole_number("verbose", verbose, 0, 2)
        # Where nothing is said, None: a policy that learns jointly objects to what is said here
        if objective_kwargs is not None:
            objective_kwargs = checks.keyword_arguments("objective_kwargs", objective_kwargs)
        self._alternating_kwargs: dict[str, Any] = dict(
            objective_class=checks.optional(checks.subclass, "objective_class", objective_class, cls=Objective),
            objective_kwargs=objective_kwargs,
            encoders=checks.optional(checks.texts, "encoders", encoders),
            n_updates=checks.optional(checks.whole_number, "n_updates", n_updates),
            batch_size=checks.optional(checks.whole_number, "batch_size", batch_size),
            learning_rate=checks.optional(checks.schedule, "learning_rate", learning_rate, least=0),
        )
        # What trains the encoders of a policy that does not learn jointly, once the training has started
        self.alternating: AlternatingTraining | None = None
        self._is_started = False
        self._has_ended = False

    @property
    def policy(self) -> Any:
        """The policy that is trained."""
        return self.model.policy

    @property
    def objectives(self) -> dict[str, Objective]:
        """What the encoders learn, by the names of their networks."""
        if self.alternating is None:
            return dict(self.policy.objectives)
        return self.alternating.objectives

    @property
    def gauges(self) -> dict[str, ObjectiveGauge]:
        """What is logged, by the names of the networks."""
        if self.alternating is None:
            return dict(self.policy.gauges)
        return {name: learner.gauge for name, learner in self.alternating.learners.items()}

    def _init_callback(self) -> None:
        self._is_started = False
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
        self._start()

    def _start(self) -> None:
        check_ranks(self.model)
        self.alternating = None
        if not isinstance(self.policy, LearnsJointly):
            self.alternating = AlternatingTraining(self.model, **self._alternating_kwargs)
        elif given := [name for name, value in self._alternating_kwargs.items() if value is not None]:
            raise ValueError(
                f"A {type(self.policy).__name__} is trained with what its `policy_kwargs` say, and not with "
                f"JepaCallback's {', '.join(f'`{name}`' for name in given)}"
            )
        inputs = InputStatisticsCallback(self.objectives)
        self.callbacks = [
            # Before the encoders learn: one that learns from what a diverged encoder computes would be blamed for it
            DivergenceCallback(),
            NextObservationsCallback(self.objectives),
            *([] if self.alternating is None else [AlternatingCallback(self.alternating)]),
            # After the encoders have learned, and before their objectives are changed for the next update
            UpdateLogCallback(self.objectives, self.gauges, inputs),
            *([SchedulesCallback()] if self.alternating is None else []),
            inputs,
            EnvWrappersCallback(),
        ]
        # Also passes this callback's parent and local variables on
        super()._init_callback()
        super()._on_training_start()
        self._is_started, self._has_ended = True, False

    def _on_rollout_start(self) -> None:
        # No training starts if collect_rollouts() is called without learn()
        if not self._is_started:
            self._start()
        super()._on_rollout_start()

    def _on_training_end(self) -> None:
        # rl-baselines3-zoo calls it twice
        if not self._has_ended:
            self._has_ended = True
            super()._on_training_end()
