"""Input standardisation with frozen statistics."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn

# As VecNormalize's clip_obs
CLIP = 10.0


class InputStandardization(nn.Module):
    r"""
    Subtract each input's mean and divide by one common deviation, both measured once and then frozen:
    :math:`x' = (x - \mu) / \sigma`, with :math:`\sigma^2` the mean over all inputs of their variance.

    Rendered frames are mostly constant background. An encoder that sees them raw gives nearly the same embedding for
    all of them: it is born collapsed, and the prediction loss holds it there. A deviation per input would blow up those
    that hardly changed while they were measured; one common deviation is safe for what was not seen yet.

    From stacked frames, where things are can be read at once, but how fast they move only from small differences
    between large numbers. With ``changes_of=k`` frames, the input becomes the newest frame and the changes from each
    frame to the next, :math:`(f_k, f_2 - f_1, \dots, f_k - f_{k-1})`, each of the ``k`` with a deviation of its own:
    the same information, in a form that is learned sooner.

    The columns of a vector have units of their own. With ``per_input``, so has the deviation, and the result is clipped
    to [-10, 10], as Stable-Baselines3's ``VecNormalize`` does, against columns that hardly changed at first. NaN, a
    number that is missing, stays NaN and is not measured.

    The statistics are buffers: they travel in the state dict. Until :meth:`update` was called, nothing is subtracted
    and nothing divided.

    :param shape: Shape of one input, without the batch
    :param changes_of: Number of frames, oldest first, along the first dimension of an input
    :param per_input: Whether each input has a deviation of its own
    """

    mean: th.Tensor
    variance: th.Tensor
    deviation: th.Tensor
    n_seen: th.Tensor
    # How often each number was there
    n_present: th.Tensor | None

    def __init__(self, shape: Sequence[int], changes_of: int = 1, per_input: bool = False):
        super().__init__()
        self.changes_of = changes_of
        self.per_input = per_input
        self.is_measuring = False
        self.register_buffer("mean", th.zeros(tuple(shape)))
        self.register_buffer("variance", th.zeros(tuple(shape)))
        self.register_buffer("deviation", th.ones(shape if per_input else (shape[0], *[1] * (len(shape) - 1))))
        self.register_buffer("n_seen", th.zeros((), dtype=th.long))
        n_present = th.zeros(tuple(shape), dtype=th.long) if per_input else None
        self.register_buffer("n_present", n_present, persistent=False)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        # Files do not tell
        if self.n_present is not None:
            self.n_present.copy_(self.n_seen)

    @th.no_grad()
    def update(self, inputs: th.Tensor) -> None:
        """
        Merge a batch into the statistics (Chan, Golub and LeVeque 1979).

        :param inputs: ``(batch, *shape)``
        """
        variance, mean = self._of_batch(self._changes(inputs))
        n_before, n_after = self.n_seen.clone(), self.n_seen.add_(len(inputs))
        if self.n_present is not None:
            n_before, n_after = self.n_present.clone(), self.n_present.add_((~inputs.isnan()).sum(dim=0))
        # Of what was never there, neither changes
        fraction = 1.0 - n_before / n_after.clamp(min=1)
        difference = mean - self.mean
        self.variance.lerp_(variance, fraction).add_(difference.square() * fraction * (1.0 - fraction))
        self.mean.add_(difference * fraction)
        if self.per_input:
            deviation = self.variance.sqrt()
        else:
            deviation = self.variance.reshape(self.changes_of, -1).mean(dim=1).sqrt()
            deviation = deviation.repeat_interleave(len(self.deviation) // self.changes_of).view_as(self.deviation)
        # Inputs that never changed leave nothing to divide by
        self.deviation.copy_(th.where(deviation > 0, deviation, 1.0))

    def _of_batch(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if not self.per_input:
            return th.var_mean(inputs, dim=0, correction=0)
        mean = inputs.nanmean(dim=0)
        # Of a column that is missing in the whole batch, nothing is new
        mean = th.where(mean.isnan(), self.mean, mean)
        variance = (inputs - mean).square().nanmean(dim=0)
        return th.where(variance.isnan(), self.variance, variance), mean

    def _changes(self, inputs: th.Tensor) -> th.Tensor:
        if self.changes_of == 1:
            return inputs
        # (batch, frames * channels, ...): where a frame begins
        channels = inputs.shape[1] // self.changes_of
        return th.cat((inputs[:, -channels:], inputs[:, channels:] - inputs[:, :-channels]), dim=1)

    def changes_to_frames(self, weights: th.Tensor) -> th.Tensor:
        """
        :param weights: Of the newest frame and of the changes from frame to frame, ``(..., changes_of, pixels)``
        :return: Those of the frames that have the same effect, oldest first
        """
        if self.changes_of == 1:
            return weights
        newest, changes = weights[..., :1, :], weights[..., 1:, :]
        return th.cat(
            (-changes[..., :1, :], changes[..., :-1, :] - changes[..., 1:, :], newest + changes[..., -1:, :]), dim=-2
        )

    @property
    def mean_of_frames(self) -> th.Tensor:
        """Mean of the inputs themselves, and not of their changes, of the shape of one input."""
        if self.changes_of == 1:
            return self.mean
        newest, changes = self.mean.unflatten(0, (self.changes_of, -1)).split([1, self.changes_of - 1])
        # From the newest frame back to the oldest
        return th.cat((newest, -changes.flip(0))).cumsum(dim=0).flip(0).flatten(0, 1)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: ``(batch, *shape)``
        :return: Standardised inputs of the same shape
        """
        if self.is_measuring:
            self.update(inputs)
        standardized = (self._changes(inputs) - self.mean).div_(self.deviation)
        return standardized.clamp_(-CLIP, CLIP) if self.per_input else standardized


@contextmanager
def measuring(standardizations: Iterable[InputStandardization]) -> Iterator[None]:
    """
    While it lasts, what is standardised is measured first.

    :param standardizations: Those that measure
    """
    measured = list(standardizations)
    for standardization in measured:
        standardization.is_measuring = True
    try:
        yield
    finally:
        for standardization in measured:
            standardization.is_measuring = False
