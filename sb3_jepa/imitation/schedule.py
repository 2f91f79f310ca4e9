"""The learning rate of transformers that learn from data."""

import math

from sb3_jepa.common import checks


class WarmupCosine:
    """
    A learning rate that rises linearly to its peak, and then falls to zero along a cosine.

    :param peak: The largest learning rate
    :param warmup: During which share of the training it rises
    """

    def __init__(self, peak: float, warmup: float = 0.04):
        self.peak = checks.number("peak", peak, above=0)
        self.warmup = checks.number("warmup", warmup, least=0, below=1)

    def __call__(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: From 1 to 0
        :return: The learning rate
        """
        progress = 1.0 - progress_remaining
        if progress < self.warmup:
            # Not zero: the first update shall have an effect
            return self.peak * max(progress / self.warmup, 1e-2)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * (progress - self.warmup) / (1.0 - self.warmup)))
