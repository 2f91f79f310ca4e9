"""Tell a rollout buffer what the steps led to, and how to embed that; and a replay buffer where episodes were cut."""

from collections.abc import Mapping

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_jepa.buffers.replay_transitions import end_cut_episodes
from sb3_jepa.buffers.rollout import NextObservations
from sb3_jepa.common.sb3_privates import last_observations_as_stored
from sb3_jepa.extractors.preprocessing import takes_nan
from sb3_jepa.objectives import Objective
from sb3_jepa.policies.joint import JointPolicy


class NextObservationsCallback(BaseCallback):
    """
    Reports each step to a rollout buffer that keeps next observations, and sets up that of a joint policy. In a replay
    buffer, it ends the episodes of an earlier training that this one does not go on with.

    :param objectives: What the encoders learn, by the names of their networks
    """

    def __init__(self, objectives: Mapping[str, Objective]):
        super().__init__()
        self._objectives = objectives

    def _on_training_start(self) -> None:
        policy = self.model.policy
        if isinstance(policy, JointPolicy):
            buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
            buffer.takes_nan = takes_nan(policy)
            buffer.embed_targets = policy.embed_targets if policy.objective.keeps_targets else None
            buffer.renews_targets_each_epoch = policy.objective.target_refresh == "epoch"
            # That of what looks nowhere is 0
            buffer.horizon = max(1, policy.objective.horizon)
            buffer.keeps_rewards = policy.objective.needs_rewards
        replay_buffer = getattr(self.model, "replay_buffer", None)
        looks_further = any(objective.horizon > 1 for objective in self._objectives.values())
        if looks_further and isinstance(replay_buffer, ReplayBuffer):
            end_cut_episodes(replay_buffer, last_observations_as_stored(self.model))  # type: ignore[arg-type]

    def _on_step(self) -> bool:
        buffer = self.locals.get("rollout_buffer")
        if isinstance(buffer, NextObservations):
            buffer.record_step(*(self.locals[name] for name in ("new_obs", "dones", "infos", "rewards")))
        return True

    def _on_training_end(self) -> None:
        if isinstance(self.model.policy, JointPolicy):
            # A buffer that is copied or saved should not bring the policy along
            self.model.rollout_buffer.embed_targets = None  # type: ignore[attr-defined]
