"""sb3-contrib's algorithms, trained jointly with a JEPA objective."""

from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy
from torch import nn

try:
    import sb3_contrib
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
except ImportError as error:
    raise ImportError('MaskablePPO and RecurrentPPO need sb3-contrib: pip install "sb3-jepa[contrib]"') from error

from sb3_jepa.algorithms import JointPPO
from sb3_jepa.buffers import NextObservations
from sb3_jepa.policies import JointPolicy


class JepaMaskableRolloutBuffer(NextObservations, MaskableRolloutBuffer):  # type: ignore[misc]
    """``MaskableRolloutBuffer`` whose samples carry next observations: :class:`~sb3_jepa.buffers.NextObservations`."""


class JepaMaskableDictRolloutBuffer(NextObservations, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """The same for ``Dict`` observations."""


class JepaRecurrentRolloutBuffer(NextObservations, RecurrentRolloutBuffer):  # type: ignore[misc]
    """``RecurrentRolloutBuffer`` whose samples carry next observations: :class:`~sb3_jepa.buffers.NextObservations`."""


class JepaRecurrentDictRolloutBuffer(NextObservations, RecurrentDictRolloutBuffer):  # type: ignore[misc]
    """The same for ``Dict`` observations."""


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
