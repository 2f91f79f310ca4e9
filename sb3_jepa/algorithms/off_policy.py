"""Stable-Baselines3's off-policy algorithms, trained jointly with a JEPA objective."""

from typing import Any, ClassVar

import stable_baselines3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa.algorithms.joint_algorithm import JointAlgorithm
from sb3_jepa.buffers.replay import frame_buffer_class
from sb3_jepa.buffers.replay_transitions import sample_transitions
from sb3_jepa.policies.off_policy import DQNJepaPolicy, OffPolicyJointPolicy, SACJepaPolicy, TD3JepaPolicy


class JointOffPolicyTraining(JointAlgorithm, OffPolicyAlgorithm):
    """
    What an off-policy algorithm lacks to train a policy that learns jointly: what the objective needs of each
    minibatch, and a :class:`~sb3_jepa.JepaCallback`. With any other policy the algorithm is what it was.

    Images are stored by :class:`~sb3_jepa.FrameReplayBuffer`, each frame once, unless another buffer is asked for.
    """

    def _set_buffer_class(self) -> None:
        asks_for_another = (
            self.replay_buffer_class is not None or self.optimize_memory_usage or getattr(self, "n_steps", 1) > 1
        )
        if not asks_for_another:
            self.replay_buffer_class = frame_buffer_class(self.observation_space)

    def train(self, gradient_steps: int, *args: Any, **kwargs: Any) -> None:
        """
        Sample the replay buffer and do the updates.

        :param gradient_steps: Number of updates
        :param args: As the algorithm takes them
        :param kwargs: As the algorithm takes them
        """
        policy, buffer = self.policy, self.replay_buffer
        if not isinstance(policy, OffPolicyJointPolicy):
            super().train(gradient_steps, *args, **kwargs)
            return
        assert buffer is not None
        self.replay_buffer = _AnnouncedMinibatches(buffer, policy)  # type: ignore[assignment]
        try:
            super().train(gradient_steps, *args, **kwargs)
        finally:
            self.replay_buffer = buffer
            policy.begin_minibatch(None)


class _AnnouncedMinibatches:
    """A replay buffer that tells a policy what it has sampled."""

    def __init__(self, buffer: ReplayBuffer, policy: OffPolicyJointPolicy):
        self._buffer, self._policy = buffer, policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        objective = self._policy.objective
        samples, transitions = sample_transitions(
            self._buffer, batch_size, env, objective.horizon, objective.needs_rewards
        )
        self._policy.begin_minibatch(transitions, samples.next_observations)
        return samples


class DQN(JointOffPolicyTraining, stable_baselines3.DQN):
    """
    Stable-Baselines3's Deep Q-Network, with ``JepaPolicy`` among its policies. Parameters and defaults are those of
    ``stable_baselines3.DQN``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.DQN.policy_aliases,
        "JepaPolicy": DQNJepaPolicy,
    }


class SAC(JointOffPolicyTraining, stable_baselines3.SAC):
    """
    Stable-Baselines3's Soft Actor-Critic, with ``JepaPolicy`` among its policies. Parameters and defaults are those of
    ``stable_baselines3.SAC``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.SAC.policy_aliases,
        "JepaPolicy": SACJepaPolicy,
    }


class TD3(JointOffPolicyTraining, stable_baselines3.TD3):
    """
    Stable-Baselines3's Twin Delayed DDPG, with ``JepaPolicy`` among its policies. Parameters and defaults are those of
    ``stable_baselines3.TD3``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.TD3.policy_aliases,
        "JepaPolicy": TD3JepaPolicy,
    }


class DDPG(JointOffPolicyTraining, stable_baselines3.DDPG):
    """
    Stable-Baselines3's Deep Deterministic Policy Gradient, with ``JepaPolicy`` among its policies. Parameters and
    defaults are those of ``stable_baselines3.DDPG``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.DDPG.policy_aliases,
        "JepaPolicy": TD3JepaPolicy,
    }
