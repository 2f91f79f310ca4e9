"""sb3-contrib's algorithms, trained jointly with a JEPA objective."""

from typing import ClassVar

from stable_baselines3.common.policies import BasePolicy

try:
    import sb3_contrib
except ImportError as error:
    raise ImportError(
        'The algorithms of sb3_jepa.algorithms.contrib need sb3-contrib: pip install "sb3-jepa[contrib]"'
    ) from error

from sb3_jepa.algorithms.joint import JointPPO
from sb3_jepa.algorithms.off_policy import JointOffPolicyTraining
from sb3_jepa.buffers.contrib import (
    JepaMaskableDictRolloutBuffer,
    JepaMaskableRolloutBuffer,
    JepaRecurrentDictRolloutBuffer,
    JepaRecurrentRolloutBuffer,
)
from sb3_jepa.policies.contrib import MaskableJepaPolicy, QRDQNJepaPolicy, RecurrentJepaPolicy, TQCJepaPolicy
from sb3_jepa.policies.joint import JointPolicy


class MaskablePPO(JointPPO, sb3_contrib.MaskablePPO):
    """
    sb3-contrib's PPO with invalid action masking, with ``MaskableJepaPolicy`` (by its name, ``"JepaPolicy"``) among its
    policies. The parameters are those of ``sb3_contrib.MaskablePPO``, and some defaults those of
    :class:`~sb3_jepa.PPO`.
    """

    jepa_rollout_buffer_classes = (JepaMaskableRolloutBuffer, JepaMaskableDictRolloutBuffer)
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3_contrib.MaskablePPO.policy_aliases,
        "JepaPolicy": MaskableJepaPolicy,
    }


class RecurrentPPO(JointPPO, sb3_contrib.RecurrentPPO):
    """
    sb3-contrib's PPO with an LSTM, with ``RecurrentJepaPolicy`` (by its name, ``"JepaPolicy"``) among its policies. The
    parameters are those of ``sb3_contrib.RecurrentPPO``, and some defaults those of :class:`~sb3_jepa.PPO`.
    """

    trains_on_ranks = False
    jepa_rollout_buffer_classes = (JepaRecurrentRolloutBuffer, JepaRecurrentDictRolloutBuffer)
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3_contrib.RecurrentPPO.policy_aliases,
        "JepaPolicy": RecurrentJepaPolicy,
    }

    def _setup_model(self) -> None:
        super()._setup_model()
        # It does not ask for a class
        if isinstance(self.policy, JointPolicy):
            self.rollout_buffer = self.rollout_buffer_class(  # type: ignore[misc]
                self.n_steps,
                self.observation_space,
                self.action_space,
                self.rollout_buffer.hidden_state_shape,  # type: ignore[attr-defined]
                self.device,  # type: ignore[arg-type]
                gamma=self.gamma,
                gae_lambda=self.gae_lambda,
                n_envs=self.n_envs,
            )


class QRDQN(JointOffPolicyTraining, sb3_contrib.QRDQN):
    """
    sb3-contrib's Quantile Regression DQN, with ``JepaPolicy`` among its policies. Parameters and defaults are those of
    ``sb3_contrib.QRDQN``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3_contrib.QRDQN.policy_aliases,
        "JepaPolicy": QRDQNJepaPolicy,
    }


class TQC(JointOffPolicyTraining, sb3_contrib.TQC):
    """
    sb3-contrib's Truncated Quantile Critics, with ``JepaPolicy`` among its policies. Parameters and defaults are those
    of ``sb3_contrib.TQC``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **sb3_contrib.TQC.policy_aliases,
        "JepaPolicy": TQCJepaPolicy,
    }
