"""Joint-Embedding Predictive Architectures for Stable-Baselines3."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sb3_jepa.algorithms import A2C, PPO
from sb3_jepa.buffers import JepaDictRolloutBuffer, JepaRolloutBuffer, Transitions
from sb3_jepa.callbacks import JepaCallback
from sb3_jepa.encoders import load_encoder, save_encoder
from sb3_jepa.export import export_policy
from sb3_jepa.extractors import JepaExtractor
from sb3_jepa.latent_model import LatentModel
from sb3_jepa.monitors import PictureCallback, ProbeCallback
from sb3_jepa.noise import noise_diagnostic
from sb3_jepa.objectives import (
    DmtJepa,
    MaskedPrediction,
    NextLatentPrediction,
    Objective,
    ObjectiveInput,
    ObjectiveOutput,
    Salt,
    SaltTeacher,
    TJepa,
)
from sb3_jepa.policies import JepaPolicy
from sb3_jepa.pretrain import Recordings, pretrain, pretrain_salt, read_encoder
from sb3_jepa.replay import FrameDictReplayBuffer, FrameReplayBuffer
from sb3_jepa.surprises import VecSurprise, surprise

__version__ = version("sb3-jepa")

__all__ = [
    "A2C",
    "PPO",
    "DmtJepa",
    "FrameDictReplayBuffer",
    "FrameReplayBuffer",
    "JepaCallback",
    "JepaDictRolloutBuffer",
    "JepaExtractor",
    "JepaPolicy",
    "JepaRolloutBuffer",
    "LatentModel",
    "MaskedPrediction",
    "NextLatentPrediction",
    "Objective",
    "ObjectiveInput",
    "ObjectiveOutput",
    "PictureCallback",
    "ProbeCallback",
    "Recordings",
    "Salt",
    "SaltTeacher",
    "TJepa",
    "Transitions",
    "VecSurprise",
    "export_policy",
    "load_encoder",
    "noise_diagnostic",
    "pretrain",
    "pretrain_salt",
    "read_encoder",
    "save_encoder",
    "surprise",
]

if TYPE_CHECKING:
    from sb3_jepa.contrib import MaskableJepaPolicy as MaskableJepaPolicy
    from sb3_jepa.contrib import MaskablePPO as MaskablePPO
    from sb3_jepa.contrib import RecurrentJepaPolicy as RecurrentJepaPolicy
    from sb3_jepa.contrib import RecurrentPPO as RecurrentPPO

# They need sb3-contrib
_CONTRIB = ("MaskableJepaPolicy", "MaskablePPO", "RecurrentJepaPolicy", "RecurrentPPO")


def __getattr__(name: str) -> Any:
    if name in _CONTRIB:
        from sb3_jepa import contrib

        return getattr(contrib, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
