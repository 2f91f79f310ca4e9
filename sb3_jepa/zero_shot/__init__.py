"""
Zero-shot tasks: what is learned once without rewards, and serves any task that is named later.

- ``td_jepa``: the algorithm; ``losses``, ``networks`` and ``policies`` are what it is made of
- ``offline_learning``, ``offline``: how it learns from recordings; ``collection``: how from what it does itself
- ``inference``, ``tasks``: how rewards, a goal or a demonstration become a task
- ``callbacks``: returns of named tasks while it learns, and pictures of what they want
- ``behavior``: what keeps a policy near the actions of experts
- ``peers``: other methods with the same networks, to compare it with
"""

from sb3_jepa.zero_shot.callbacks import TaskEvalCallback, TaskPictureCallback
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
    "TaskEvalCallback",
    "TaskPictureCallback",
]
