"""Warn of a divergence before the parameters are lost."""

import warnings

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_jepa.callbacks.followed_inputs import has_passed
from sb3_jepa.common.divergence import CAUSES, check_gradients, describe_divergence, describe_rates, optimizers_of
from sb3_jepa.policies.learns_jointly import LearnsJointly

# The parameters are looked at after so many time steps
STEPS_APART = 100
# The attribute of an optimiser that holds the hook of the latest training, which may have been interrupted
HOOK = "jepa_watch"


class DivergenceCallback(BaseCallback):
    """Looks at rewards, gradients and parameters: raises if one of the first two is not finite, warns of the last."""

    def _on_training_start(self) -> None:
        self._has_warned = False
        self._n_steps_before = self.model.num_timesteps
        # A policy that learns jointly checks its gradients by itself
        self._optimizers = [] if isinstance(self.model.policy, LearnsJointly) else optimizers_of(self.model.policy)
        self._remove_hooks()
        for optimizer in self._optimizers:
            setattr(optimizer, HOOK, optimizer.register_step_pre_hook(lambda one, *_: check_gradients(one)))

    def _on_rollout_start(self) -> None:
        is_due = has_passed(self.model.num_timesteps, self._n_steps_before, STEPS_APART)
        self._n_steps_before = self.model.num_timesteps
        if self._has_warned or not is_due:
            return
        problem = describe_divergence(self.model.policy.parameters())
        if problem is not None:
            self._has_warned = True
            rates = describe_rates(optimizers_of(self.model.policy))
            warnings.warn(
                f"The policy has diverged: {problem}, after updates with {rates}. {CAUSES}", UserWarning, stacklevel=2
            )

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        if not np.isfinite(rewards).all():
            raise ValueError(
                f"The training would diverge: the environment gave the rewards {rewards} at time step "
                f"{self.model.num_timesteps}. Rewards must be finite; look at the environment and its wrappers"
            )
        return True

    def _on_training_end(self) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for optimizer in self._optimizers:
            if hasattr(optimizer, HOOK):
                getattr(optimizer, HOOK).remove()
                delattr(optimizer, HOOK)
