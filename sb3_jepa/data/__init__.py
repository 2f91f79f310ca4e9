"""Recordings of episodes: collected, kept in folders, and read from what is there already."""

from sb3_jepa.data.collection import record_env
from sb3_jepa.data.folders import save_recordings
from sb3_jepa.data.from_buffers import read_buffer
from sb3_jepa.data.from_files import read_file
from sb3_jepa.data.from_minari import read_minari
from sb3_jepa.data.readers import read
from sb3_jepa.data.recordings import Recordings, Windows

__all__ = [
    "Recordings",
    "Windows",
    "read",
    "read_buffer",
    "read_file",
    "read_minari",
    "record_env",
    "save_recordings",
]
