"""Measure input statistics, and let those of vectors and grids follow the data."""

from collections.abc import Mapping

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_jepa.alternating.sources import ReplaySource
from sb3_jepa.callbacks.first_rollouts import FirstRollouts
from sb3_jepa.callbacks.followed_inputs import FollowedInputs
from sb3_jepa.extractors.measuring import measure_inputs, n_inputs_to_measure
from sb3_jepa.objectives import Objective
from sb3_jepa.parts import InputStandardization


class InputStatisticsCallback(BaseCallback):
    """
    Measures the inputs of all extractors from the first rollouts, or from the replay buffer when learning starts. From
    then on, the statistics of vectors and grids follow what is observed.

    :param objectives: What the encoders learn, by the names of their networks
    """

    def __init__(self, objectives: Mapping[str, Objective]):
        super().__init__()
        self._objectives = objectives

    @property
    def sees_nothing_vary(self) -> bool:
        """Whether all observations that were measured are the same."""
        return self._followed.sees_nothing_vary

    def _on_training_start(self) -> None:
        self._followed = FollowedInputs(self.model)
        self._replay = ReplaySource(self.model) if isinstance(self.model, OffPolicyAlgorithm) else None
        # Of an on-policy algorithm that still has inputs to measure
        self._first_rollouts: FirstRollouts | None = None
        if isinstance(self.model, OnPolicyAlgorithm):
            first_rollouts = FirstRollouts(self.model)
            self._first_rollouts = None if first_rollouts.are_over else first_rollouts

    def _on_rollout_start(self) -> None:
        self._followed.follow(self._objectives)

    def _on_step(self) -> bool:
        if self._first_rollouts is not None:
            self._first_rollouts.on_step(self.locals)
        return True

    def _on_rollout_end(self) -> None:
        if self._first_rollouts is not None:
            self._first_rollouts.on_rollout_end(self.locals, self._objectives)
            if self._first_rollouts.are_over:
                self._first_rollouts = None
                self._followed.on_measured()
            return
        self._followed.on_rollout_end(self._replay)
        if self._replay is not None and self._measure(self._replay):
            self._followed.on_measured()

    def _measure(self, replay: ReplaySource) -> bool:
        """
        Measure what the replay buffer holds: when the algorithm is about to learn for the first time, and, if that was
        not enough, once more when there is enough, or as much as the buffer can hold.
        """
        policy, buffer = self.model.policy, replay.model.replay_buffer
        n_missing = n_inputs_to_measure(policy) if replay.has_samples else 0
        if n_missing == 0:
            return False
        assert buffer is not None
        n_seen = [int(module.n_seen) for module in policy.modules() if isinstance(module, InputStandardization)]
        if min(n_seen) > 0 and not buffer.full and buffer.size() * buffer.n_envs < n_missing + max(n_seen):
            return False
        measure_inputs(policy, replay.latest(n_missing), self._objectives)
        return True

    def _on_training_end(self) -> None:
        self._followed.follow(self._objectives)
