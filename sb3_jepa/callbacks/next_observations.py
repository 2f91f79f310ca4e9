"""Tell a rollout buffer what the steps led to, and how to embed that."""

from stable_baselines3.common.callbacks import BaseCallback

from sb3_jepa.buffers.rollout import NextObservations
from sb3_jepa.extractors.preprocessing import takes_nan
from sb3_jepa.policies.joint import JointPolicy


class NextObservationsCallback(BaseCallback):
    """Reports each step to a rollout buffer that keeps next observations, and sets up that of a joint policy."""

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

    def _on_step(self) -> bool:
        buffer = self.locals.get("rollout_buffer")
        if isinstance(buffer, NextObservations):
            buffer.record_step(*(self.locals[name] for name in ("new_obs", "dones", "infos", "rewards")))
        return True

    def _on_training_end(self) -> None:
        if isinstance(self.model.policy, JointPolicy):
            # A buffer that is copied or saved should not bring the policy along
            self.model.rollout_buffer.embed_targets = None  # type: ignore[attr-defined]
