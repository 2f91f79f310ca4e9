"""Ranks: processes that train one model together, each on a part of the batch. Pure PyTorch."""

import atexit
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch as th
from torch import distributed as dist
from torch import nn

from sb3_jepa.common.torch_privates import call_after_backward

# Join only while all ranks train: in the diagnostics of one rank, a collective would wait for the others for ever
_trains_jointly: ContextVar[bool] = ContextVar("trains_jointly", default=False)


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _from_torchrun(name: str, default: int) -> int:
    is_launched = dist.is_available() and dist.is_torchelastic_launched()
    return int(os.environ.get(name, default)) if is_launched else default


def n_ranks() -> int:
    """Number of processes that train together: those that ``torchrun`` started, or of the process group; else 1."""
    return dist.get_world_size() if _has_group() else _from_torchrun("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if _has_group() else _from_torchrun("RANK", 0)


def own_device(device: th.device) -> th.device:
    """
    :param device: That was asked for
    :return: The GPU of this rank, if it is one of several on GPUs and none of them was named; else the same
    """
    if n_ranks() == 1 or device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    device = th.device("cuda", int(os.environ["LOCAL_RANK"]))
    th.cuda.set_device(device)
    return device


def start(device: th.device) -> None:
    """
    Make the process group of what ``torchrun`` started, unless there is one. All ranks have to call it.

    :param device: Of the model: NCCL on GPUs, else gloo
    """
    if n_ranks() > 1 and not _has_group():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_stop)


def _stop() -> None:
    if _has_group():
        dist.destroy_process_group()


def gather_objects(value: Any) -> list[Any]:
    """
    :param value: Anything that can be pickled
    :return: That of each rank
    """
    if n_ranks() == 1:
        return [value]
    gathered = [None] * n_ranks()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_batch(batch: th.Tensor) -> th.Tensor:
    """
    Without gradient, see :func:`join_batches`.

    :param batch: ``(batch, ...)``, as many rows on all ranks
    :return: The rows of all ranks, in their order, ``(ranks * batch, ...)``
    """
    if n_ranks() == 1:
        return batch
    joined = batch.new_empty(n_ranks() * len(batch), *batch.shape[1:])
    dist.all_gather(list(joined.chunk(n_ranks())), batch.detach().contiguous())
    return joined


def average(value: float) -> float:
    """
    :param value: A number
    :return: Its mean over the ranks
    """
    if n_ranks() == 1:
        return value
    total = th.tensor(value, dtype=th.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return float(total) / n_ranks()


@th.no_grad()
def broadcast(tensors: Iterable[th.Tensor]) -> None:
    """
    Give all ranks the values of the first one.

    :param tensors: Of the same shapes on all ranks; overwritten
    """
    tensors = list(tensors)
    if n_ranks() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        of_dtype = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = th.cat([tensor.flatten() for tensor in of_dtype])
        dist.broadcast(flat, src=0)
        for tensor, values in zip(of_dtype, flat.split([tensor.numel() for tensor in of_dtype]), strict=True):
            tensor.copy_(values.view_as(tensor))


def broadcast_optimizer(optimizer: th.optim.Optimizer) -> None:
    """
    Give all ranks the state of the first one's optimiser, which only that may have loaded.

    :param optimizer: Of the same parameters on all ranks; its state is overwritten
    """
    if n_ranks() == 1:
        return
    file = io.BytesIO()
    th.save(optimizer.state_dict(), file)
    sent = [file.getvalue()]
    dist.broadcast_object_list(sent, src=0)
    if rank() > 0:
        # Load on the CPU: each rank has another GPU
        optimizer.load_state_dict(th.load(io.BytesIO(sent[0]), map_location="cpu", weights_only=False))


@th.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """
    Replace gradients by their mean over the ranks, in one flattened all-reduce. A parameter that has one on some ranks
    only counts as 0 on the others; one that has none anywhere keeps none.

    :param parameters: The same on all ranks
    """
    if n_ranks() == 1:
        return
    gradients = [th.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    has_gradient = th.tensor([float(p.grad is not None) for p in parameters], device=gradients[0].device)
    flat = th.cat([*(gradient.flatten() for gradient in gradients), has_gradient])
    dist.all_reduce(flat)
    flat /= n_ranks()
    *means, has_gradient = flat.split([*(gradient.numel() for gradient in gradients), len(gradients)])
    for index, (parameter, mean) in enumerate(zip(parameters, means, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(mean.view_as(parameter))
        elif has_gradient[index] > 0:
            parameter.grad = mean.view_as(parameter).clone()


@contextmanager
def training_jointly(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """
    While it lasts, each backward pass ends with :func:`average_gradients`, and :func:`join_batches` joins.

    :param parameters: That learn
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    is_queued = False

    def average_at_the_end(_: th.Tensor) -> None:
        nonlocal is_queued
        if not is_queued:
            is_queued = True
            call_after_backward(end)

    def end() -> None:
        nonlocal is_queued
        is_queued = False
        average_gradients(learning)

    hooks = [parameter.register_post_accumulate_grad_hook(average_at_the_end) for parameter in learning]
    token = _trains_jointly.set(True)
    try:
        yield
    finally:
        _trains_jointly.reset(token)
        for hook in hooks:
            hook.remove()


class _JoinBatch(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: th.Tensor) -> th.Tensor:
        ctx.n_rows = len(batch)
        return gather_batch(batch)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:  # type: ignore[override]
        # Multiply by the number of ranks, by which the mean of their gradients divides this sum over all rows
        return gradient[rank() * ctx.n_rows :][: ctx.n_rows] * n_ranks()


def join_batches(*batches: th.Tensor | None) -> tuple[Any, ...]:
    """
    The rows of all ranks, for a loss that is no mean over the rows, such as one of their variance: computed from these,
    the mean of all ranks' gradients is the gradient for the joined batch. Outside of :func:`training_jointly` they stay
    as they are.

    :param batches: ``(batch, ...)``, as many rows on all ranks, or None
    :return: The same, of all ranks in their order, ``(ranks * batch, ...)``
    """
    if n_ranks() == 1 or not _trains_jointly.get():
        return batches
    given = [batch for batch in batches if batch is not None]
    columns = [batch.reshape(len(batch), -1) for batch in given]
    joined = _JoinBatch.apply(th.cat(columns, dim=1)).split([column.shape[1] for column in columns], dim=1)
    views = iter([rows.reshape(-1, *batch.shape[1:]) for rows, batch in zip(joined, given, strict=True)])
    return tuple(None if batch is None else next(views) for batch in batches)
