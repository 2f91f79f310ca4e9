"""Rollout and replay buffers that know what came next, and store the frames of images once."""

from sb3_jepa.buffers.replay import FrameDictReplayBuffer, FrameReplayBuffer
from sb3_jepa.buffers.rollout import JepaDictRolloutBuffer, JepaRolloutBuffer
from sb3_jepa.buffers.transitions import Transitions

__all__ = [
    "FrameDictReplayBuffer",
    "FrameReplayBuffer",
    "JepaDictRolloutBuffer",
    "JepaRolloutBuffer",
    "Transitions",
]
