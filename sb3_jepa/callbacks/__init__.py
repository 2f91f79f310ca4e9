"""Callbacks: what a JEPA needs from a running training, and what it tells about itself."""

from sb3_jepa.callbacks.jepa import JepaCallback
from sb3_jepa.callbacks.pictures import PictureCallback
from sb3_jepa.callbacks.probes import ProbeCallback

__all__ = ["JepaCallback", "PictureCallback", "ProbeCallback"]
