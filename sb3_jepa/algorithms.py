"""Stable-Baselines3's algorithms, trained jointly with a JEPA objective."""

import io
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import stable_baselines3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_jepa.buffers import JepaRolloutBuffer
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
            self.rollout_buffer_class = JepaRolloutBuffer
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

    For a ``JepaPolicy`` two defaults are others, which suit pixels and several environments better.

    :param policy: The policy model to use (JepaPolicy, MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update; 128 by default (with any other policy
        than ``JepaPolicy``: 2048)
    :param batch_size: Minibatch size; 128 by default (with any other policy than ``JepaPolicy``: 64)
    :param args: The further parameters of ``stable_baselines3.PPO``, in its order
    :param kwargs: The further parameters of ``stable_baselines3.PPO``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **stable_baselines3.PPO.policy_aliases,
        "JepaPolicy": JepaPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        batch_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ):
        is_jepa = policy == "JepaPolicy" or (isinstance(policy, type) and issubclass(policy, JepaPolicy))
        if n_steps is None:
            n_steps = 128 if is_jepa else 2048
        if batch_size is None:
            batch_size = 128 if is_jepa else 64
        super().__init__(policy, env, learning_rate, n_steps, batch_size, *args, **kwargs)
