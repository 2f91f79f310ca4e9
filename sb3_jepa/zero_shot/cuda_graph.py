"""An update that is recorded once, and then replayed on the GPU without Python."""

from collections.abc import Callable, Iterable
from typing import Any

import torch as th


def can_be_recorded(optimizers: Iterable[th.optim.Optimizer | None]) -> bool:
    """
    :param optimizers: Of the update
    :return: Whether PyTorch can record their steps
    """
    return all("capturable" in one.defaults for one in optimizers if one is not None)


class RecordedUpdate:
    """
    A CUDA graph of an update. Small networks wait for Python at each of several hundred operations; a graph launches
    them all at once.

    The first updates run as usual, since PyTorch allocates memory in them that a graph must find in place. Learning
    rates become tensors that the graph reads, so that a schedule takes effect.

    :param update: Gets a batch, and gives tensors to log. It must neither read a tensor's value nor change shapes.
    :param optimizers: That it steps
    :param n_first: How many updates run as usual
    """

    def __init__(
        self,
        update: Callable[[Any], dict[str, th.Tensor]],
        optimizers: Iterable[th.optim.Optimizer | None],
        n_first: int = 3,
    ):
        self._update, self._n_left = update, n_first
        self._groups = [group for one in optimizers if one is not None for group in one.param_groups]
        # Learning rates as numbers, and as the tensors that the graph reads
        self._known = [float(group["lr"]) for group in self._groups]
        self._rates = [th.tensor(float(group["lr"]), device=group["params"][0].device) for group in self._groups]
        self._graph: th.cuda.CUDAGraph | None = None
        self._batch: Any = None
        self._outputs: dict[str, th.Tensor] = {}

    def __call__(self, batch: Any) -> dict[str, th.Tensor]:
        """
        :param batch: Tensors, or tuples and dictionaries of such, of the same shapes each time
        :return: What the update gives; overwritten by the next one
        """
        self._keep_rates()
        if self._graph is None and self._n_left > 0:
            self._n_left -= 1
            side = th.cuda.Stream()
            side.wait_stream(th.cuda.current_stream())
            with th.cuda.stream(side):
                outputs = self._update(batch)
            th.cuda.current_stream().wait_stream(side)
            return outputs
        if self._graph is None:
            self._batch, graph = _map(th.clone, batch), th.cuda.CUDAGraph()
            with th.cuda.graph(graph):
                self._outputs = self._update(self._batch)
            self._graph = graph
        else:
            _copy(batch, self._batch)
        self._graph.replay()
        return self._outputs

    def _keep_rates(self) -> None:
        for i, (group, rate) in enumerate(zip(self._groups, self._rates, strict=True)):
            if group["lr"] is not rate:
                # Skip the launch if the rate has not changed
                if group["lr"] != self._known[i]:
                    rate.fill_(group["lr"])
                self._known[i], group["lr"], group["capturable"] = group["lr"], rate, True

    def release(self) -> None:
        """Give the optimizers plain learning rates again, so that they can be saved and go on elsewhere."""
        for group, rate in zip(self._groups, self._known, strict=True):
            group["capturable"], group["lr"] = False, rate


def _map(function: Callable[[th.Tensor], th.Tensor], batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _map(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        values = [_map(function, value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    return None if batch is None else function(batch)


def _copy(source: Any, target: Any) -> None:
    if isinstance(source, dict):
        for key, value in source.items():
            _copy(value, target[key])
    elif isinstance(source, tuple):
        for one, other in zip(source, target, strict=True):
            _copy(one, other)
    elif source is not None:
        target.copy_(source)
