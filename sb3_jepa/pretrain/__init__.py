"""Learning an encoder from observations alone, before or without any rewards."""

from sb3_jepa.data import Recordings, read, read_buffer, read_file, read_minari, record_env
from sb3_jepa.extractors.files import describe_encoder, read_encoder
from sb3_jepa.pretrain.pretraining import pretrain
from sb3_jepa.pretrain.salt import pretrain_salt, teacher_budget

__all__ = [
    "Recordings",
    "describe_encoder",
    "pretrain",
    "pretrain_salt",
    "read",
    "read_buffer",
    "read_encoder",
    "read_file",
    "read_minari",
    "record_env",
    "teacher_budget",
]
