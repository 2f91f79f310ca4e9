"""Stable-Baselines3's algorithms, trained jointly with a JEPA objective."""

import inspect
import io
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_jepa.algorithms.saved_models import check_model_file
from sb3_jepa.buffers.rollout import JepaDictRolloutBuffer, JepaRolloutBuffer, NextObservations
from sb3_jepa.callbacks.jepa import JepaCallback
from sb3_jepa.common import checks
from sb3_jepa.common.files import in_memory, write_file
from sb3_jepa.common.ranks import rank
from sb3_jepa.common.state_dicts import warn_if_not_finite
from sb3_jepa.distributed.training import TrainingOnRanks
from sb3_jepa.extractors.teachers import describe_teacher
from sb3_jepa.policies.joint import JepaPolicy, JointPolicy


class JointTraining(TrainingOnRanks):
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

    # Defaults that differ for a JepaPolicy
    jepa_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        bound = inspect.signature(super().__init__).bind_partial(*args, **kwargs)
        policy = bound.arguments.get("policy")
        if "policy" in bound.arguments and not isinstance(policy, str):
            checks.subclass("policy", policy, BasePolicy, also="the name of one")
        if "policy_kwargs" in bound.arguments:
            # A copy, for A2C writes its optimiser into it
            bound.arguments["policy_kwargs"] = checks.keyword_arguments(
                "policy_kwargs", bound.arguments["policy_kwargs"]
            )
        if policy == "JepaPolicy" or (isinstance(policy, type) and issubclass(policy, JointPolicy)):
            for name, value in self.jepa_defaults.items():
                bound.arguments.setdefault(name, value)
        super().__init__(**bound.arguments)

    def _setup_model(self) -> None:
        if issubclass(self.policy_class, JointPolicy):
            accepted = self.policy_aliases["JepaPolicy"]
            if not issubclass(self.policy_class, accepted):
                raise ValueError(
                    f"{type(self).__name__} takes the policy {accepted.__name__}, got {self.policy_class.__name__}"
                )
            if self.rollout_buffer_class is None:
                is_dict = isinstance(self.observation_space, spaces.Dict)
                self.rollout_buffer_class = self.jepa_rollout_buffer_classes[is_dict]
            checks.subclass("rollout_buffer_class", self.rollout_buffer_class, NextObservations)
            # These are saved: a path would be of no use where the file is not
            kwargs = self.policy_kwargs.get("objective_kwargs")
            if kwargs:
                self.policy_kwargs = dict(self.policy_kwargs, objective_kwargs=describe_teacher(kwargs))
        super()._setup_model()

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callback = super()._init_callback(callback, progress_bar)
        if isinstance(self.policy, JointPolicy) and not _contains_jepa_callback(callback):
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
        as it was. On several ranks, only the first one writes files.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        if rank() > 0 and isinstance(path, (str, pathlib.Path)):
            return
        warn_if_not_finite(self.policy.state_dict(), "The policy")
        write_file(path, in_memory(lambda file: super(JointTraining, self).save(file, exclude, include)), ".zip")

    @classmethod
    def load(cls, path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> Any:
        """
        Load the model from a zip-file.

        :param path: path to the file (or a file-like) where to load the agent from
        :param args: The further parameters of Stable-Baselines3's ``load``
        :param kwargs: The further parameters of Stable-Baselines3's ``load``
        :return: new model instance with loaded parameters
        :raises ValueError: If the file is no saved model, or holds another policy than its settings say
        """
        check_model_file(path)
        return super().load(path, *args, **kwargs)


def _contains_jepa_callback(callback: BaseCallback) -> bool:
    if isinstance(callback, JepaCallback):
        return True
    return isinstance(callback, CallbackList) and any(map(_contains_jepa_callback, callback.callbacks))


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
