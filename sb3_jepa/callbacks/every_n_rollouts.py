"""What callbacks have in common that look at an encoder every few rollouts."""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_jepa.common import checks
from sb3_jepa.inspection.latent_model import LatentModel

ROLLOUTS_APART = 20
# Off-policy, where a rollout may be a single step
STEPS_APART = 10_000


class EveryNRollouts(BaseCallback):
    """
    Does something every ``N`` rollouts, and at the end.

    :param every_n_rollouts: How often; by default every 20 rollouts on-policy, and off-policy, where a rollout may be a
        single step, every 10,000 time steps
    :param encoder: Name of the network whose encoder is looked at, such as ``"critic"``; by default the first
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If the number is not positive
    """

    def __init__(self, every_n_rollouts: int | None = None, encoder: str | None = None, verbose: int = 0):
        super().__init__(checks.whole_number("verbose", verbose, 0, 2))
        self.every_n_rollouts = checks.optional(checks.whole_number, "every_n_rollouts", every_n_rollouts)
        self.encoder = checks.optional(checks.text, "encoder", encoder)
        self._n_rollouts = self._n_steps_before = 0

    def _on_training_start(self) -> None:
        # Objects now, if there is no such encoder
        LatentModel(self.model, self.encoder)
        # A training may begin anew, or go on
        self._n_steps_before = self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._n_rollouts += 1
        if self.every_n_rollouts is None and not isinstance(self.model, OnPolicyAlgorithm):
            is_due = self.num_timesteps - self._n_steps_before >= STEPS_APART
        else:
            is_due = self._n_rollouts % (self.every_n_rollouts or ROLLOUTS_APART) == 0
        if is_due:
            self._n_steps_before = self.num_timesteps
            self._look()

    def _on_training_end(self) -> None:
        if self._n_steps_before < self.num_timesteps:
            self._n_steps_before = self.num_timesteps
            self._look()

    def _look(self) -> None:
        raise NotImplementedError
