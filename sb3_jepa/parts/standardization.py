"""Input standardisation: statistics that are measured once, and follow the data without changing what is computed."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.common import checks

# The same as VecNormalize's clip_obs
CLIP = 10.0
# A value counts as an outlier if it is so many times further from the median than nearly all others
OUTLIER_FACTOR, ORDINARY_FRACTION = 4.0, 0.99
# Statistics that follow the data are those of so many of the latest observations
WINDOW = 10_000
# Weights are rescaled by at most this factor since the deviation was first measured, and biases shifted by at most so
# many of these deviations (beyond, a LayerNorm leaves little of the input)
MAX_RESCALING, MAX_SHIFT = 10.0, 1.0
# More rows would not make the statistics more exact
MAX_ROWS = 100_000
# A deviation below this fraction of the mean is a rounding error of float32
ROUNDING = 5e-7


class InputStandardization(nn.Module):
    r"""
    Subtract each input's mean and divide by a deviation, :math:`x' = (x - \mu) / \sigma`.

    Of images, both are measured once and then frozen, and all inputs have one common deviation, with :math:`\sigma^2`
    the mean over all inputs of their variance. Rendered frames are mostly constant background. An encoder that sees
    them raw gives nearly the same embedding for all of them: it is born collapsed, and the prediction loss holds it
    there. A deviation per input would blow up those that hardly changed while they were measured; one common deviation
    is safe for what was not seen yet.

    From stacked frames, where things are can be read at once, but how fast they move only from small differences
    between large numbers. With ``changes_of=k`` frames, the input becomes the newest frame and the changes from each
    frame to the next, :math:`(f_k, f_2 - f_1, \dots, f_k - f_{k-1})`, each of the ``k`` with a deviation of its own:
    the same information, in a form that is learned sooner.

    The columns of a vector, and the channels of a grid, have units of their own. With ``per="input"`` or
    ``per="channel"``, each has its own mean and deviation. Single values far from all others do not count, and the
    result is clipped to [-10, 10], as Stable-Baselines3's ``VecNormalize`` does. NaN, a number that is missing, stays
    NaN and is not measured. These statistics :meth:`follow` the data for the whole training.

    The statistics are buffers: they travel in the state dict. Until :meth:`update` was called, nothing is subtracted
    and nothing divided.

    :param shape: Shape of one input, without the batch; channels first
    :param changes_of: Number of frames, oldest first, along the first dimension of an input
    :param per: What has a deviation of its own: ``"frame"``, ``"channel"`` or ``"input"``
    :raises ValueError: If an argument is not among those accepted
    """

    mean: th.Tensor
    variance: th.Tensor
    deviation: th.Tensor
    n_seen: th.Tensor
    # How often each number was present
    n_present: th.Tensor | None
    # Deviation and mean when the input first varied; until then, the deviation is 0
    first_deviation: th.Tensor | None
    first_mean: th.Tensor | None

    def __init__(self, shape: Sequence[int], changes_of: int = 1, per: str = "frame"):
        super().__init__()
        # The shape of a single number is ()
        shape = () if shape == () else checks.sizes("shape", shape)
        self.changes_of = checks.whole_number("changes_of", changes_of)
        if shape and shape[0] % self.changes_of != 0:
            raise ValueError(f"`changes_of` must divide the first side of `shape`, {shape}, got {changes_of}")
        self.per = checks.choice("per", per, ("frame", "channel", "input"))
        self.is_measuring = False
        # Of each input, the largest distance from the mean in the latest batch, in deviations; 0 if 99 in 100 are equal
        self.largest: th.Tensor | None = None
        of_channel = (shape[0], *[1] * (len(shape) - 1)) if len(shape) > 0 else ()
        measured = of_channel if per == "channel" else tuple(shape)
        self.register_buffer("mean", th.zeros(measured))
        self.register_buffer("variance", th.zeros(measured))
        self.register_buffer("deviation", th.ones(tuple(shape) if per == "input" else of_channel))
        self.register_buffer("n_seen", th.zeros((), dtype=th.long))
        self.register_buffer("n_present", th.zeros(measured, dtype=th.long) if self.follows else None)
        self.register_buffer("first_deviation", th.zeros(measured) if self.follows else None)
        self.register_buffer("first_mean", th.zeros(measured) if self.follows else None)

    @property
    def follows(self) -> bool:
        """Whether the statistics follow the data."""
        return self.per != "frame"

    @property
    def varies(self) -> th.Tensor:
        """Whether anything has varied while it was measured, a scalar."""
        return (self.variance > 0).any()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Files of older versions lack these
        if self.n_present is not None and f"{prefix}n_seen" in state_dict:
            n_seen = state_dict[f"{prefix}n_seen"]
            state_dict.setdefault(f"{prefix}n_present", n_seen.expand_as(self.n_present).clone())
        if self.first_deviation is not None and f"{prefix}variance" in state_dict:
            state_dict.setdefault(f"{prefix}first_deviation", state_dict[f"{prefix}variance"].sqrt())
            state_dict.setdefault(f"{prefix}first_mean", state_dict[f"{prefix}mean"].clone())
        super()._load_from_state_dict(state_dict, prefix, *args)

    @th.no_grad()
    def update(self, inputs: th.Tensor) -> None:
        """
        Merge a batch into the statistics (Chan, Golub and LeVeque 1979). This changes what is computed.

        :param inputs: ``(batch, *shape)``
        """
        self._merge(inputs)
        if self.first_deviation is not None and self.first_mean is not None:
            self.first_deviation.copy_(th.where(self.variance > 0, self.deviation, 0.0))
            self.first_mean.copy_(self.mean)

    @th.no_grad()
    def follow(self, inputs: th.Tensor, mean_stays: bool = False) -> tuple[th.Tensor, th.Tensor]:
        r"""
        Let the statistics follow the data: they are those of the latest 10,000 observations then. What comes next can
        make up for it, as PopArt does for outputs (van Hasselt et al. 2016, arXiv 1602.07714): with weights that are
        multiplied by the ratio :math:`r = \sigma' / \sigma`, and with a bias to which these new weights times the shift
        :math:`(\mu' - \mu) / \sigma'` are added, it computes what it has computed, of all that is not clipped.

        Both are limited. After all updates, the weights have grown or shrunk at most tenfold, and the shifts amount to
        at most one of the deviations that were first measured. An input that moves much more or much further than it
        once did, or that has never moved, has no weights worth keeping; it is better learned anew than to let weights
        grow a thousandfold, which no learning rate fits, or a bias that leaves nothing to see of the input beside it.

        :param inputs: ``(batch, *shape)``
        :param mean_stays: Whether to leave the mean as it is, and to measure the deviation from it
        :return: Ratio and shift, of the shape of the mean
        """
        assert self.first_deviation is not None
        assert self.first_mean is not None
        mean, deviation, first = self.mean.clone(), self.deviation.clone(), self.first_deviation
        self._merge(inputs, WINDOW, mean_stays)
        varied = first > 0
        varies_now = ~varied & (self.variance > 0)
        first.copy_(th.where(varies_now, self.deviation, first))
        self.first_mean.copy_(th.where(varies_now, mean, self.first_mean))
        before, after = (
            (one / first.clamp(min=th.finfo(first.dtype).tiny)).clamp(1 / MAX_RESCALING, MAX_RESCALING)
            for one in (deviation, self.deviation)
        )
        unit = th.where(first > 0, first, self.deviation)
        moved, moved_before = (
            ((one - self.first_mean) / unit).clamp(-MAX_SHIFT, MAX_SHIFT) for one in (self.mean, mean)
        )
        return th.where(varied, after / before, 1.0), (moved - moved_before) * unit / self.deviation

    def _rows(self, inputs: th.Tensor) -> th.Tensor:
        """What is measured, ``(rows, *shape of the mean)``."""
        inputs = self._changes(inputs)
        if self.per == "channel":
            inputs = inputs.movedim(1, -1).reshape(-1, *self.mean.shape)
        return inputs

    def _merge(self, inputs: th.Tensor, window: int | None = None, mean_stays: bool = False) -> None:
        all_rows = self._rows(inputs)
        n_rows_of_one, stride = len(all_rows) // len(inputs), 1 if window is None else len(all_rows) // MAX_ROWS + 1
        all_rows = all_rows[::stride]
        rows, is_spread = without_outliers(all_rows) if self.follows else (all_rows, None)
        variance, mean = self._of_batch(rows)
        if mean_stays:
            variance, mean = variance + (mean - self.mean).square(), self.mean
        n_before, n_new = self.n_seen.clone(), th.full_like(self.n_seen, len(inputs))
        self.n_seen.add_(len(inputs))
        if self.n_present is not None:
            n_before, n_new = self.n_present.clone(), stride * (~rows.isnan()).sum(dim=0)
            self.n_present.add_(n_new)
        if window is not None:
            n_before = n_before.clamp(max=window * n_rows_of_one)
        # Leave mean and variance of a number that was never present
        fraction = n_new / (n_before + n_new).clamp(min=1)
        difference = mean - self.mean
        self.variance.lerp_(variance, fraction).add_(difference.square() * fraction * (1.0 - fraction))
        self.mean.add_(difference * fraction)
        if self.follows:
            self.variance.masked_fill_(self.variance.sqrt() <= ROUNDING * self.mean.abs(), 0.0)
        self._set_deviation()
        if is_spread is not None:
            far = ((all_rows - self.mean) / self.deviation).abs().nan_to_num(0.0).amax(dim=0)
            self.largest = far.masked_fill(~is_spread, 0.0)

    def _set_deviation(self) -> None:
        if self.follows:
            deviation = self.variance.sqrt()
        else:
            deviation = self.variance.reshape(self.changes_of, -1).mean(dim=1).sqrt()
            deviation = deviation.repeat_interleave(len(self.deviation) // self.changes_of).view_as(self.deviation)
        # Do not divide inputs that never changed
        self.deviation.copy_(th.where(deviation > 0, deviation, 1.0))

    def _of_batch(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if not self.follows:
            return th.var_mean(rows, dim=0, correction=0)
        mean = rows.nanmean(dim=0)
        # Keep the statistics of a column that is missing in the whole batch
        mean = th.where(mean.isnan(), self.mean, mean)
        variance = (rows - mean).square().nanmean(dim=0)
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
        # Subtract the changes from the newest frame, one after the other
        return th.cat((newest, -changes.flip(0))).cumsum(dim=0).flip(0).flatten(0, 1)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: ``(batch, *shape)``
        :return: Standardised inputs of the same shape
        """
        if self.is_measuring:
            self.update(inputs)
        standardized = (self._changes(inputs) - self.mean).div_(self.deviation)
        return standardized.clamp_(-CLIP, CLIP) if self.follows else standardized


def without_outliers(rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Move values that are far from all others closer. Far is more than four times as far from the median as 99 in 100
    values are (as all but one are, of few): of normally distributed values, beyond ten deviations.

    :param rows: ``(rows, ...)``; NaN stays NaN
    :return: The same, with the outliers at that limit; and where there is one. Where 99 in 100 values are the same,
        those that are not are what there is to tell, and none is an outlier.
    """
    some = rows[:: len(rows) // MAX_ROWS + 1]
    center = some.nanmedian(dim=0).values
    distances = (some - center).abs().nan_to_num(0.0)
    n_ordinary = 1 + int(ORDINARY_FRACTION * (len(some) - 1))
    ordinary = distances.movedim(0, -1).contiguous().kthvalue(n_ordinary).values
    is_spread = ordinary > 0
    limit = th.where(is_spread, OUTLIER_FACTOR * ordinary, th.inf)
    return rows.clamp(center - limit, center + limit), is_spread


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
