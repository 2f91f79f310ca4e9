"""Learning an encoder from observations alone, before or without any rewards."""

from sb3_jepa.data import Recordings, read, read_buffer, read_file, read_minari, record_env
from sb3_jepa.extractors.pretrained import read_encoder
from sb3_jepa.pretrain.salt import pretrain_salt, teacher_budget
from sb3_jepa.pretrain.training import pretrain

__all__ = [
    "Recordings",
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
