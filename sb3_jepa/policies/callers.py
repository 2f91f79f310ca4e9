"""What only the call stack tells a policy: the algorithm that builds it, and who makes its optimiser step."""

import inspect

from stable_baselines3.common.base_class import BaseAlgorithm
from torch.amp import GradScaler

from sb3_jepa.buffers.rollout import NextObservations


def check_algorithm() -> None:
    """
    Raise if the Stable-Baselines3 algorithm that is building the policy has no transitions to train it with.

    An algorithm tells its policy nothing about its rollout buffer: to object before the first rollout there is only the
    call stack. Should that fail, the optimiser's hook still objects.
    """
    frame = inspect.currentframe()
    while frame is not None:
        algorithm = frame.f_locals.get("self") if frame.f_code.co_name == "_setup_model" else None
        if isinstance(algorithm, BaseAlgorithm):
            buffer_class = getattr(algorithm, "rollout_buffer_class", None)
            if buffer_class is None or not issubclass(buffer_class, NextObservations):
                raise ValueError(
                    f"{type(algorithm).__name__} cannot train a JepaPolicy, since its rollouts have no next "
                    "observations: use an algorithm of sb3_jepa, such as `sb3_jepa.PPO`, or pass "
                    "`rollout_buffer_class=sb3_jepa.JepaRolloutBuffer` (JepaDictRolloutBuffer for a Dict) to PPO or A2C"
                )
            return
        frame = frame.f_back


def steps_for_grad_scaler() -> bool:
    """
    :return: Whether it is a ``torch.amp.GradScaler`` that makes the optimiser step, which has scaled the gradients
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is GradScaler.step.__code__:
            return frame.f_locals["self"].is_enabled()
        frame = frame.f_back
    return False
