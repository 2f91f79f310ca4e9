"""What this package uses of PyTorch's private names: a new release breaks one file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch as th
from torch.distributions import Distribution


def norms(tensors: list[th.Tensor], order: float = 2.0) -> list[th.Tensor]:
    """The norm of each of at least one tensor, in one call."""
    return list(th._foreach_norm(tensors, order))


def add_to_each(tensors: list[th.Tensor], others: list[th.Tensor]) -> None:
    """Add to each of at least one tensor in place."""
    th._foreach_add_(tensors, others)


def interpolate_each(tensors: list[th.Tensor], others: list[th.Tensor], weight: float) -> None:
    """Move each of at least one tensor in place towards another, by a weight from 0 to 1."""
    th._foreach_lerp_(tensors, others, weight)


def version(tensor: th.Tensor) -> int:
    """How often a tensor was changed in place."""
    return tensor._version


def call_after_backward(function: Callable[[], None]) -> None:
    """Within a backward pass: call a function when all gradients are there, as DistributedDataParallel does."""
    th.autograd.Variable._execution_engine.queue_callback(function)


@contextmanager
def without_distribution_checks() -> Iterator[None]:
    """While it lasts, distributions do not check their arguments."""
    validates = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(validates)
