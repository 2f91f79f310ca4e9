"""Training of encoders between the rollouts of algorithms that are not touched."""

from sb3_jepa.alternating.learner import EncoderLearner, find_objectives
from sb3_jepa.alternating.training import AlternatingTraining

__all__ = ["AlternatingTraining", "EncoderLearner", "find_objectives"]
