"""Trainings that have diverged, found out before their parameters are lost."""

from collections.abc import Iterable

import torch as th

# No parameter of a network that still learns is as large
LARGE_PARAMETER = 1e3
CAUSES = (
    "The learning rate is too large, or rewards, observations or returns are huge or not finite: look at these first "
    "(VecNormalize scales rewards)"
)


@th.no_grad()
def check_gradients(parameters: Iterable[th.Tensor], learning_rate: float) -> None:
    """
    To be called before a step of the optimiser, which would turn all parameters into NaN. On a GPU it does nothing,
    since it would have to wait for it.

    :param parameters: With their gradients
    :param learning_rate: Of the step
    :raises ValueError: If a gradient is not finite
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or gradients[0].device.type != "cpu":
        return
    if not th.stack(th._foreach_norm(gradients)).isfinite().all():
        raise ValueError(
            f"The training has diverged: a gradient is NaN or infinite, at a learning rate of {learning_rate:.1e}. The "
            f"parameters are still those of before this step. {CAUSES}"
        )


@th.no_grad()
def describe_divergence(parameters: Iterable[th.Tensor]) -> str | None:
    """
    :param parameters: Of a policy
    :return: What is wrong with them; None if nothing is
    """
    largest = th.stack([norm.float() for norm in th._foreach_norm(list(parameters), float("inf"))]).max()
    if not largest.isfinite():
        return "its parameters are NaN or infinite"
    return f"it has parameters as large as {float(largest):.1e}" if largest > LARGE_PARAMETER else None
