"""Joint-Embedding Predictive Architectures for Stable-Baselines3."""

from importlib.metadata import version

from sb3_jepa.algorithms import A2C, PPO
from sb3_jepa.buffers import JepaDictRolloutBuffer, JepaRolloutBuffer, Transitions
from sb3_jepa.callbacks import JepaCallback
from sb3_jepa.extractors import JepaExtractor
from sb3_jepa.objectives import NextLatentPrediction
from sb3_jepa.policies import JepaPolicy

__version__ = version("sb3-jepa")

__all__ = [
    "A2C",
    "PPO",
    "JepaCallback",
    "JepaDictRolloutBuffer",
    "JepaExtractor",
    "JepaPolicy",
    "JepaRolloutBuffer",
    "NextLatentPrediction",
    "Transitions",
]
