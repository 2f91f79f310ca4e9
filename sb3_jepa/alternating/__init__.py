"""
Training of encoders between the rollouts of algorithms that are not touched.

An :class:`EncoderLearner` is an encoder with its objective and optimiser. It learns from a *source* of transitions, the
latest rollout or the replay buffer, and its *gauge* measures what is logged.
"""

from sb3_jepa.alternating.learner import EncoderLearner, find_objectives
from sb3_jepa.alternating.training import AlternatingTraining

__all__ = ["AlternatingTraining", "EncoderLearner", "find_objectives"]
