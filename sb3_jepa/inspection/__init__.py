"""
A trained model, looked at: embeddings, predictions, episodes, surprise, noise. Nothing is learned here.

Words of this folder: an *episode* is what a policy observed, did and got, with *variables* of the environment, such as
its state, for linear probes. A *portrait* is all that is measured and drawn of one encoder over some episodes:
:class:`~sb3_jepa.PictureCallback` logs it during a training, and ``python -m sb3_jepa.report`` shows it afterwards.
The *surprise* of a transition is its prediction loss.
"""

from sb3_jepa.inspection.latent_model import LatentModel
from sb3_jepa.inspection.noise_diagnostic import noise_diagnostic
from sb3_jepa.inspection.surprise import surprise

__all__ = ["LatentModel", "noise_diagnostic", "surprise"]
