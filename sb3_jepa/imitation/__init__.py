"""
Imitation: learning from demonstrations, and on to reinforcement learning.

- ``act_jepa``: the algorithm; ``policies`` are its networks, and how they act
- ``latent_future``: the JEPA branch; ``actions``: chunks of actions of any space; ``queue``: how they are executed
- ``demonstrations``: what is learned from; ``schedule``: how fast
- ``held_out``: what has been learned, on episodes that were not learned from
"""

from sb3_jepa.imitation.act_jepa import ACTJEPA
from sb3_jepa.imitation.held_out import ImitationFit
from sb3_jepa.imitation.policies import ACTJEPAPolicy

__all__ = ["ACTJEPA", "ACTJEPAPolicy", "ImitationFit"]
