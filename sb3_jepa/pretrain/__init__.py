"""Learning an encoder from observations alone, before or without any rewards."""

from sb3_jepa.pretrain.collection import record_env
from sb3_jepa.pretrain.readers import read, read_buffer, read_file, read_minari
from sb3_jepa.pretrain.recordings import Recordings

__all__ = ["Recordings", "read", "read_buffer", "read_file", "read_minari", "record_env"]
