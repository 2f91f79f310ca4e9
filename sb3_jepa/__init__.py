"""Joint-Embedding Predictive Architectures for Stable-Baselines3."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sb3_jepa import old_paths
from sb3_jepa.algorithms import A2C, PPO
from sb3_jepa.buffers import (
    FrameDictReplayBuffer,
    FrameReplayBuffer,
    JepaDictRolloutBuffer,
    JepaRolloutBuffer,
    Transitions,
)
from sb3_jepa.callbacks import JepaCallback, PictureCallback, ProbeCallback
from sb3_jepa.data import Recordings
from sb3_jepa.envs import VecSurprise
from sb3_jepa.extractors import JepaExtractor, load_encoder, read_encoder, save_encoder
from sb3_jepa.inspection import LatentModel, noise_diagnostic, surprise
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
from sb3_jepa.policies import JepaPolicy, export_policy
from sb3_jepa.pretrain import pretrain, pretrain_salt

__version__ = version("sb3-jepa")
old_paths.install()

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
    from sb3_jepa.algorithms.contrib import MaskablePPO as MaskablePPO
    from sb3_jepa.algorithms.contrib import RecurrentPPO as RecurrentPPO
    from sb3_jepa.policies.contrib import MaskableJepaPolicy as MaskableJepaPolicy
    from sb3_jepa.policies.contrib import RecurrentJepaPolicy as RecurrentJepaPolicy

# They need sb3-contrib
_CONTRIB = ("MaskableJepaPolicy", "MaskablePPO", "RecurrentJepaPolicy", "RecurrentPPO")


def __getattr__(name: str) -> Any:
    if name in _CONTRIB:
        from sb3_jepa.algorithms import contrib

        return getattr(contrib, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
