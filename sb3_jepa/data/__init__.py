"""
Recordings of episodes: what encoders are pretrained on, outside of an algorithm's own training.

A source is whatever :func:`read` makes recordings of: an environment (``collection``), a buffer (``from_buffers``), a
file or folder (``from_files``, ``folders``, ``from_episodes``), or a data set of Minari (``from_minari``).
"""

from sb3_jepa.data.collection import record_env
from sb3_jepa.data.episodes import record_episodes
from sb3_jepa.data.folders import save_recordings
from sb3_jepa.data.from_buffers import read_buffer
from sb3_jepa.data.from_episodes import read_episodes
from sb3_jepa.data.from_files import read_file
from sb3_jepa.data.from_lerobot import read_lerobot
from sb3_jepa.data.from_minari import read_minari
from sb3_jepa.data.from_robomimic import read_robomimic
from sb3_jepa.data.from_sweeps import read_sweeps
from sb3_jepa.data.histories import HistoryRecordings
from sb3_jepa.data.readers import read
from sb3_jepa.data.recordings import Recordings, Windows
from sb3_jepa.data.to_buffers import add_to_replay_buffer
from sb3_jepa.data.transformed_views import transformed_views

__all__ = [
    "HistoryRecordings",
    "Recordings",
    "Windows",
    "add_to_replay_buffer",
    "read",
    "read_buffer",
    "read_episodes",
    "read_file",
    "read_lerobot",
    "read_minari",
    "read_robomimic",
    "read_sweeps",
    "record_env",
    "record_episodes",
    "save_recordings",
    "transformed_views",
]
