"""Move the schedules of a policy that learns jointly."""

from stable_baselines3.common.callbacks import BaseCallback

from sb3_jepa.common.sb3_privates import progress_remaining


class SchedulesCallback(BaseCallback):
    """Moves momentum and the encoder's learning rate along their schedules, when a rollout starts."""

    def _on_rollout_start(self) -> None:
        self.model.policy.update_schedules(progress_remaining(self.model))  # type: ignore[operator]

    def _on_step(self) -> bool:
        return True
