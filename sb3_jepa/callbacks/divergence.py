"""Watching over a training, so that it says what went wrong before its parameters are lost."""

import warnings

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_jepa.callbacks.followed_inputs import has_passed
from sb3_jepa.common.divergence import CAUSES, check_gradients, describe_divergence, describe_rates, optimizers_of
from sb3_jepa.policies.joint import JointPolicy

# The parameters are looked at after so many time steps
STEPS_APART = 100
# The attribute of an optimiser that holds the hook of the latest watch: a training that was interrupted leaves it there
HOOK = "jepa_watch"


class DivergenceWatch:
    """
    Looks at rewards, gradients and parameters while a model is trained.

    :param model: Of any algorithm
    """

    def __init__(self, model: BaseAlgorithm):
        self.model = model
        self._was_told = False
        # A policy that learns jointly does so by itself
        self._watched = [] if isinstance(model.policy, JointPolicy) else optimizers_of(model.policy)
        self._n_steps_before = model.num_timesteps
        self.stop()
        for optimizer in self._watched:
            setattr(optimizer, HOOK, optimizer.register_step_pre_hook(lambda one, *_: check_gradients(one)))

    def check_rewards(self, rewards: np.ndarray) -> None:
        """
        :param rewards: Of a step, ``(environments,)``
        :raises ValueError: If one is not finite
        """
        if not np.isfinite(rewards).all():
            raise ValueError(
                f"The training would diverge: the environment gave the rewards {rewards} at time step "
                f"{self.model.num_timesteps}. Rewards must be finite; look at the environment and its wrappers"
            )

    def check_parameters(self) -> None:
        """Warn once if the updates have ruined the policy."""
        is_due = has_passed(self.model.num_timesteps, self._n_steps_before, STEPS_APART)
        self._n_steps_before = self.model.num_timesteps
        if self._was_told or not is_due:
            return
        problem = describe_divergence(self.model.policy.parameters())
        if problem is not None:
            self._was_told = True
            rates = describe_rates(optimizers_of(self.model.policy))
            warnings.warn(
                f"The policy has diverged: {problem}, after updates with {rates}. {CAUSES}", UserWarning, stacklevel=2
            )

    def stop(self) -> None:
        """Leave the optimisers as they were."""
        for optimizer in self._watched:
            if hasattr(optimizer, HOOK):
                getattr(optimizer, HOOK).remove()
                delattr(optimizer, HOOK)
