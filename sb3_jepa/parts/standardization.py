"""Input standardisation with frozen statistics."""

from collections.abc import Sequence

import torch as th
from torch import nn


class InputStandardization(nn.Module):
    r"""
    Subtract each input's mean and divide by one common deviation, both measured once and then frozen:
    :math:`x' = (x - \mu) / \sigma`, with :math:`\sigma^2` the mean over all inputs of their variance.

    Rendered frames are mostly constant background. An encoder that sees them raw gives nearly the same embedding for
    all of them: it is born collapsed, and the prediction loss holds it there. A deviation per input would blow up those
    that hardly changed while they were measured; one common deviation is safe for what was not seen yet.

    The statistics are buffers: they travel in the state dict and, until :meth:`update` was called, change nothing.

    :param shape: Shape of one input, without the batch
    """

    mean: th.Tensor
    variance: th.Tensor
    deviation: th.Tensor
    n_seen: th.Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("mean", th.zeros(*shape))
        self.register_buffer("variance", th.zeros(*shape))
        self.register_buffer("deviation", th.ones(()))
        self.register_buffer("n_seen", th.zeros((), dtype=th.long))

    @th.no_grad()
    def update(self, inputs: th.Tensor) -> None:
        """
        Merge a batch into the statistics (Chan, Golub and LeVeque 1979).

        :param inputs: ``(batch, *shape)``
        """
        variance, mean = th.var_mean(inputs, dim=0, correction=0)
        n_before = self.n_seen.clone()
        self.n_seen += len(inputs)
        fraction = len(inputs) / self.n_seen
        difference = mean - self.mean
        self.variance.lerp_(variance, fraction).add_(difference.square() * fraction * n_before / self.n_seen)
        self.mean.add_(difference * fraction)
        # Inputs that never changed leave nothing to divide by
        deviation = self.variance.mean().sqrt()
        self.deviation.copy_(th.where(deviation > 0, deviation, 1.0))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: ``(batch, *shape)``
        :return: Standardised inputs of the same shape
        """
        return (inputs - self.mean).div_(self.deviation)
