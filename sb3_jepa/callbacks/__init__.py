"""
Callbacks: what a JEPA needs from a running training, and what it tells about itself.

:class:`JepaCallback` is a list of callbacks with one job each, and ``_start`` of ``jepa.py`` says in which order. A
*verdict* is what it logs about an encoder: healthy, low rank, collapsed or diverged.
"""

from sb3_jepa.callbacks.jepa import JepaCallback
from sb3_jepa.callbacks.pictures import PictureCallback
from sb3_jepa.callbacks.probes import ProbeCallback
from sb3_jepa.callbacks.sequence_probes import SequenceProbeCallback

__all__ = ["JepaCallback", "PictureCallback", "ProbeCallback", "SequenceProbeCallback"]
