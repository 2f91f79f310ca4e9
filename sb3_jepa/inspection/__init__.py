"""A trained model, looked at: embeddings, predictions, episodes, surprise, noise."""

from sb3_jepa.inspection.latent_model import LatentModel
from sb3_jepa.inspection.noise_diagnostic import noise_diagnostic
from sb3_jepa.inspection.surprise import surprise

__all__ = ["LatentModel", "noise_diagnostic", "surprise"]
