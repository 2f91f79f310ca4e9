"""
Environments with rendered frames for observations, drawn fast, with histories, and with the surprise of a model as a
reward.
"""

from sb3_jepa.envs.history import HistoryObservation, VecHistory
from sb3_jepa.envs.pixels import PixelObservation, make_pixel_vec_env, state_names
from sb3_jepa.envs.vec_surprise import VecSurprise

__all__ = ["HistoryObservation", "PixelObservation", "VecHistory", "VecSurprise", "make_pixel_vec_env", "state_names"]
