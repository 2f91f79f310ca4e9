"""sb3-contrib's policies, which learn a JEPA objective in the same backward pass."""

from typing import Any

from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from torch import nn

from sb3_jepa.policies.joint import JointPolicy
from sb3_jepa.policies.off_policy import OffPolicyJointPolicy


class MaskableJepaPolicy(JointPolicy, MaskableActorCriticPolicy):  # type: ignore[misc]
    """
    Policy for ``MaskablePPO`` whose features extractor also learns a JEPA objective, see
    :class:`~sb3_jepa.policies.JointPolicy` for its parameters.
    """


class RecurrentJepaPolicy(JointPolicy, RecurrentActorCriticPolicy):  # type: ignore[misc]
    """
    Policy for ``RecurrentPPO`` whose features extractor also learns a JEPA objective, see
    :class:`~sb3_jepa.policies.JointPolicy` for its parameters. The embedding that is predicted is the one that goes
    into the LSTM.
    """

    lstm_actor: nn.LSTM

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # sb3-contrib forgets these
        return dict(
            super()._get_constructor_parameters(),
            lstm_hidden_size=self.lstm_output_dim,
            n_lstm_layers=self.lstm_actor.num_layers,
            shared_lstm=self.shared_lstm,
            enable_critic_lstm=self.enable_critic_lstm,
            lstm_kwargs=self.lstm_kwargs,
        )


class QRDQNJepaPolicy(OffPolicyJointPolicy, QRDQNPolicy):
    """
    Policy for ``QRDQN`` whose quantile network also learns a JEPA objective, see
    :class:`~sb3_jepa.policies.off_policy.OffPolicyJointPolicy` for its parameters.
    """

    learner = "quantile_net"


class TQCJepaPolicy(OffPolicyJointPolicy, TQCPolicy):
    """
    Policy for ``TQC`` whose critic also learns a JEPA objective, see
    :class:`~sb3_jepa.policies.off_policy.OffPolicyJointPolicy` for its parameters.
    """
