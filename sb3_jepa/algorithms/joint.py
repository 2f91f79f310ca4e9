"""Stable-Baselines3's on-policy algorithms, trained jointly with a JEPA objective."""

from typing import Any, ClassVar

import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import LinearSchedule

from sb3_jepa.algorithms.joint_algorithm import JointAlgorithm
from sb3_jepa.buffers.rollout import JepaDictRolloutBuffer, JepaRolloutBuffer, NextObservations
from sb3_jepa.common import checks
from sb3_jepa.distributed.training import TrainingOnRanks
from sb3_jepa.policies.joint import JepaPolicy


class JointTraining(JointAlgorithm, TrainingOnRanks):
    """
    What an on-policy algorithm lacks to train a :class:`~sb3_jepa.JepaPolicy`: the rollout buffer that knows next
    observations, and a :class:`~sb3_jepa.JepaCallback`. With any other policy the algorithm is what it was. In several
    processes it trains one model, see :class:`~sb3_jepa.distributed.TrainingOnRanks`.
    """

    # For observations of a single array, and for a Dict
    jepa_rollout_buffer_classes: ClassVar[tuple[type[NextObservations], type[NextObservations]]] = (
        JepaRolloutBuffer,
        JepaDictRolloutBuffer,
    )

    def _set_buffer_class(self) -> None:
        if self.rollout_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = self.jepa_rollout_buffer_classes[is_dict]
        checks.subclass("rollout_buffer_class", self.rollout_buffer_class, NextObservations)


# Found on pixels with several environments
PPO_DEFAULTS: dict[str, Any] = dict(
    # Not to 0: each of several short calls of learn() would end without learning
    learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
    n_steps=128,
    batch_size=128,
    n_epochs=5,
    # A policy whose encoder learns too goes further in an update than it was meant to
    target_kl=0.05,
)


class JointPPO(JointTraining):
    """PPO and its variants: for a :class:`~sb3_jepa.JepaPolicy` some defaults are others."""

    jepa_defaults = PPO_DEFAULTS


class PPO(JointPPO, stable_baselines3.PPO):
    """
    Stable-Baselines3's Proximal Policy Optimization, with ``JepaPolicy`` among its policies.

    The parameters are those of ``stable_baselines3.PPO``. For a ``JepaPolicy`` some defaults are others, which were
    found on pixels with several environments: ``learning_rate`` falls from 1e-3 to 1e-4 in the course of the training,
    ``n_steps=128``, ``batch_size=128``, ``n_epochs=5`` and ``target_kl=0.05``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.PPO.policy_aliases,
        "JepaPolicy": JepaPolicy,
    }


class A2C(JointTraining, stable_baselines3.A2C):
    """
    Stable-Baselines3's Advantage Actor Critic, with ``JepaPolicy`` among its policies. Parameters and defaults
    are those of ``stable_baselines3.A2C``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.A2C.policy_aliases,
        "JepaPolicy": JepaPolicy,
    }
