"""Objectives: what is learned beside the policy. Pure PyTorch, one class per method."""

from sb3_jepa.objectives.ad_l_jepa import BevPrediction
from sb3_jepa.objectives.dmt_jepa import DmtJepa
from sb3_jepa.objectives.masked import MaskedPrediction
from sb3_jepa.objectives.next_latent import NextLatentPrediction
from sb3_jepa.objectives.objective import Objective
from sb3_jepa.objectives.output import ObjectiveInput, ObjectiveOutput
from sb3_jepa.objectives.salt import Salt, SaltTeacher
from sb3_jepa.objectives.seq_jepa import SeqJepa, SequencePrediction
from sb3_jepa.objectives.t_jepa import TJepa

__all__ = [
    "BevPrediction",
    "DmtJepa",
    "MaskedPrediction",
    "NextLatentPrediction",
    "Objective",
    "ObjectiveInput",
    "ObjectiveOutput",
    "Salt",
    "SaltTeacher",
    "SeqJepa",
    "SequencePrediction",
    "TJepa",
]
