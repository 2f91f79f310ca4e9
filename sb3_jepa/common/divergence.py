"""Detect a training that has diverged, before its parameters are lost."""

from collections.abc import Iterable

import torch as th
from torch import nn

from sb3_jepa.common.torch_privates import norms

# A network with larger parameters no longer learns
LARGE_PARAMETER = 1e3
CAUSES = (
    "The learning rate is too large, or rewards, observations or returns are huge or not finite: look at these first "
    "(VecNormalize scales rewards)"
)


@th.no_grad()
def check_gradients(optimizer: th.optim.Optimizer, others: Iterable[th.optim.Optimizer] = ()) -> None:
    """
    To be called before a step of the optimiser, which would turn all parameters into NaN. On a GPU it does nothing,
    since it would have to wait for it.

    :param optimizer: Whose parameters have their gradients
    :param others: That have changed these parameters too
    :raises ValueError: If a gradient is not finite
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or gradients[0].device.type != "cpu":
        return
    if not th.stack(norms(gradients)).isfinite().all():
        raise ValueError(
            f"The training has diverged: a gradient is NaN or infinite, at {describe_rates([optimizer, *others])}. The "
            f"parameters are still those of before this step. {CAUSES}"
        )


def describe_rates(optimizers: Iterable[th.optim.Optimizer]) -> str:
    """
    :param optimizers: Of a model
    :return: Their learning rates, in words
    """
    rates = sorted({float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups})
    return f"the learning rate {' and '.join(f'{rate:.1e}' for rate in rates)}"


@th.no_grad()
def describe_divergence(parameters: Iterable[th.Tensor]) -> str | None:
    """
    :param parameters: Of a policy
    :return: What is wrong with them; None if nothing is
    """
    # Skip parameters of no elements, such as the class tokens of an encoder that has none
    largest_of_each = norms([parameter for parameter in parameters if parameter.numel() > 0], float("inf"))
    largest = th.stack([one.float() for one in largest_of_each]).max()
    if not largest.isfinite():
        return "its parameters are NaN or infinite"
    return f"it has parameters as large as {float(largest):.1e}" if largest > LARGE_PARAMETER else None


def optimizers_of(policy: nn.Module) -> list[th.optim.Optimizer]:
    """
    :param policy: Of any algorithm
    :return: The optimisers of its networks
    """
    found = [getattr(module, "optimizer", None) for module in policy.modules()]
    return [one for one in found if isinstance(one, th.optim.Optimizer)]
