"""Stable-Baselines3's algorithms, trained jointly with a JEPA objective."""

import io
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule

from sb3_jepa.buffers import JepaDictRolloutBuffer, JepaRolloutBuffer
from sb3_jepa.callbacks import JepaCallback
from sb3_jepa.policies import JepaPolicy
from sb3_jepa.saving import replace_when_complete


class JointTraining(OnPolicyAlgorithm):
    """
    What an on-policy algorithm lacks to train a :class:`~sb3_jepa.JepaPolicy`: the rollout buffer that knows next
    observations, and a :class:`~sb3_jepa.JepaCallback`. With any other policy the algorithm is what it was.
    """

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None and issubclass(self.policy_class, JepaPolicy):
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = JepaDictRolloutBuffer if is_dict else JepaRolloutBuffer
        super()._setup_model()

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callback = super()._init_callback(callback, progress_bar)
        if isinstance(self.policy, JepaPolicy) and not _contains_jepa_callback(callback):
            jepa_callback = JepaCallback()
            jepa_callback.init_callback(self)
            callback = CallbackList([jepa_callback, callback])
            callback.model = self
        return callback

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. If that fails, an older file stays
        as it was.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        with replace_when_complete(path, suffix=".zip") as unfinished:
            super().save(unfinished, exclude, include)


def _contains_jepa_callback(callback: BaseCallback) -> bool:
    if isinstance(callback, CallbackList):
        return any(map(_contains_jepa_callback, callback.callbacks))
    return isinstance(callback, JepaCallback)


class PPO(JointTraining, stable_baselines3.PPO):
    """
    Stable-Baselines3's Proximal Policy Optimization, with ``JepaPolicy`` among its policies.

    For a ``JepaPolicy`` some defaults are others, which were found on pixels with several environments.

    :param policy: The policy model to use (JepaPolicy, MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0). By
        default it falls from 1e-3 to 1e-4 in the course of the training (with a policy that is no ``JepaPolicy``: 3e-4)
    :param n_steps: The number of steps to run for each environment per update; 128 by default (otherwise 2048)
    :param batch_size: Minibatch size; 128 by default (otherwise 64)
    :param n_epochs: Number of epochs when optimizing the surrogate loss; 5 by default (otherwise 10)
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator; 0.9 by default
        (otherwise 0.95)
    :param args: The further parameters of ``stable_baselines3.PPO``, in its order
    :param kwargs: The further parameters of ``stable_baselines3.PPO``. One more has another default: ``target_kl`` is
        0.02 (otherwise None), since a policy whose encoder learns too goes further in an update than it was meant to
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.PPO.policy_aliases,
        "JepaPolicy": JepaPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        is_jepa = policy == "JepaPolicy" or (isinstance(policy, type) and issubclass(policy, JepaPolicy))

        def choose(given: Any, jepa: Any, otherwise: Any) -> Any:
            if given is not None:
                return given
            return jepa if is_jepa else otherwise

        # An eleventh further parameter is target_kl
        if is_jepa and len(args) <= 10:
            kwargs.setdefault("target_kl", 0.02)
        super().__init__(
            policy,
            env,
            # Not to 0: who calls learn() again and again would else learn next to nothing
            choose(learning_rate, LinearSchedule(1e-3, 1e-4, 1.0), 3e-4),
            choose(n_steps, 128, 2048),
            choose(batch_size, 128, 64),
            choose(n_epochs, 5, 10),
            gamma,
            choose(gae_lambda, 0.9, 0.95),
            *args,
            **kwargs,
        )


class A2C(JointTraining, stable_baselines3.A2C):
    """
    Stable-Baselines3's Advantage Actor Critic, with ``JepaPolicy`` among its policies. Parameters and defaults
    are those of ``stable_baselines3.A2C``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.A2C.policy_aliases,
        "JepaPolicy": JepaPolicy,
    }
