"""Recordings of episodes: collected, kept in folders, and read from what is there already."""

from sb3_jepa.data.collection import record_env
from sb3_jepa.data.readers import read, read_buffer, read_file, read_minari
from sb3_jepa.data.recordings import Recordings

__all__ = ["Recordings", "read", "read_buffer", "read_file", "read_minari", "record_env"]
