"""What the algorithms have in common that train a policy jointly with a JEPA objective."""

import inspect
from typing import Any, ClassVar

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_jepa.algorithms.model_files import FilesOfModels
from sb3_jepa.callbacks.jepa import JepaCallback
from sb3_jepa.common import checks
from sb3_jepa.extractors.teachers import describe_teacher
from sb3_jepa.policies.learns_jointly import LearnsJointly


class JointAlgorithm(FilesOfModels):
    """
    What an algorithm of Stable-Baselines3 lacks to train a policy that learns jointly: a
    :class:`~sb3_jepa.JepaCallback`, defaults, and files that are written as a whole. With any other policy the
    algorithm is what it was.
    """

    # Defaults that differ for a policy that learns jointly
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
        if policy == "JepaPolicy" or (isinstance(policy, type) and issubclass(policy, LearnsJointly)):
            for name, value in self.jepa_defaults.items():
                bound.arguments.setdefault(name, value)
        super().__init__(**bound.arguments)

    def _setup_model(self) -> None:
        if issubclass(self.policy_class, LearnsJointly):
            accepted = self.policy_aliases["JepaPolicy"]
            if not issubclass(self.policy_class, accepted):
                raise ValueError(
                    f"{type(self).__name__} takes the policy {accepted.__name__}, got {self.policy_class.__name__}"
                )
            self._set_buffer_class()
            # These are saved: a path would be of no use where the file is not
            kwargs = self.policy_kwargs.get("objective_kwargs")
            if kwargs:
                self.policy_kwargs = dict(self.policy_kwargs, objective_kwargs=describe_teacher(kwargs))
        super()._setup_model()  # type: ignore[safe-super]

    def _set_buffer_class(self) -> None:
        """Choose and check the class of the buffer, for a policy that learns jointly."""
        raise NotImplementedError

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callback = super()._init_callback(callback, progress_bar)
        if isinstance(self.policy, LearnsJointly) and not _contains_jepa_callback(callback):
            jepa_callback = JepaCallback()
            jepa_callback.init_callback(self)
            callback = CallbackList([jepa_callback, callback])
            callback.model = self
        return callback


def _contains_jepa_callback(callback: BaseCallback) -> bool:
    if isinstance(callback, JepaCallback):
        return True
    return isinstance(callback, CallbackList) and any(map(_contains_jepa_callback, callback.callbacks))
