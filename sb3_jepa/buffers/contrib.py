"""sb3-contrib's rollout buffers, with next observations."""

from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer

from sb3_jepa.buffers.rollout import NextObservations


class JepaMaskableRolloutBuffer(NextObservations, MaskableRolloutBuffer):  # type: ignore[misc]
    """``MaskableRolloutBuffer`` whose samples are those of :class:`~sb3_jepa.buffers.rollout.NextObservations`."""


class JepaMaskableDictRolloutBuffer(NextObservations, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """The same for ``Dict`` observations."""


class JepaRecurrentRolloutBuffer(NextObservations, RecurrentRolloutBuffer):  # type: ignore[misc]
    """``RecurrentRolloutBuffer`` whose samples are those of :class:`~sb3_jepa.buffers.rollout.NextObservations`."""


class JepaRecurrentDictRolloutBuffer(NextObservations, RecurrentDictRolloutBuffer):  # type: ignore[misc]
    """The same for ``Dict`` observations."""
