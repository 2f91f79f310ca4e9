"""Environments with rendered frames for observations, drawn fast, and with the surprise of a model as a reward."""

from sb3_jepa.envs.pixels import PixelObservation, make_pixel_vec_env, state_names
from sb3_jepa.envs.vec_surprise import VecSurprise

__all__ = ["PixelObservation", "VecSurprise", "make_pixel_vec_env", "state_names"]
