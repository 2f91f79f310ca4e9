"""
What an encoder has learned, in numbers and pictures. Nothing here knows Stable-Baselines3.

A *gauge* gathers numbers of an encoder while it trains, such as its embedding variance and effective rank. A *verdict*
is one word on them: ``"healthy"``, ``"low rank"``, ``"collapsed"`` or ``"diverged"``.
"""

from sb3_jepa.diagnostics.attention import attention_maps
from sb3_jepa.diagnostics.feature_noise import FeatureNoise, feature_noise
from sb3_jepa.diagnostics.gauges import ObjectiveGauge, effective_rank, participation_ratio
from sb3_jepa.diagnostics.latents import Trajectory, UnrolledErrors, principal_components, spectrum, unrolled_errors
from sb3_jepa.diagnostics.probes import area_under_curve, probe_episodes, probe_r2, ridge_predictions
from sb3_jepa.diagnostics.regions import similarity_gap
from sb3_jepa.diagnostics.sequences import mlp_probe_r2, sequence_probes
from sb3_jepa.diagnostics.verdict import Verdict, assess

__all__ = [
    "FeatureNoise",
    "ObjectiveGauge",
    "Trajectory",
    "UnrolledErrors",
    "Verdict",
    "area_under_curve",
    "assess",
    "attention_maps",
    "effective_rank",
    "feature_noise",
    "mlp_probe_r2",
    "participation_ratio",
    "principal_components",
    "probe_episodes",
    "probe_r2",
    "ridge_predictions",
    "sequence_probes",
    "similarity_gap",
    "spectrum",
    "unrolled_errors",
]
