"""Context encoders as Stable-Baselines3 knows them, features extractors: made, found, saved and loaded."""

from sb3_jepa.extractors.drq_extractor import DrqExtractor
from sb3_jepa.extractors.files import describe_encoder, read_encoder
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.lidar_extractor import LidarExtractor
from sb3_jepa.extractors.mlp_extractor import MlpExtractor
from sb3_jepa.extractors.sequence_extractor import SequenceExtractor
from sb3_jepa.extractors.transfer import load_encoder, save_encoder

__all__ = [
    "DrqExtractor",
    "JepaExtractor",
    "LidarExtractor",
    "MlpExtractor",
    "SequenceExtractor",
    "describe_encoder",
    "load_encoder",
    "read_encoder",
    "save_encoder",
]
