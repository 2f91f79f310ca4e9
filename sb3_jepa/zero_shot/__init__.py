"""
Zero-shot tasks: what is learned once without rewards, and serves any task that is named later.

``td_jepa`` has the algorithm and its losses; ``policies`` and ``networks`` what it learns; ``offline_learning`` how it
learns from recordings; ``inference`` and ``tasks`` how rewards, a goal or a demonstration become a task; ``peers`` what to compare it with.
"""

from sb3_jepa.zero_shot.peers import ForwardBackward, RandomTaskFeatures
from sb3_jepa.zero_shot.policies import TDJEPACnnPolicy, TDJEPAMultiInputPolicy, TDJEPAPolicy
from sb3_jepa.zero_shot.tasks import Fit, Task
from sb3_jepa.zero_shot.td_jepa import TDJEPA

__all__ = [
    "TDJEPA",
    "Fit",
    "ForwardBackward",
    "RandomTaskFeatures",
    "TDJEPACnnPolicy",
    "TDJEPAMultiInputPolicy",
    "TDJEPAPolicy",
    "Task",
]
