"""
Joint-Embedding Predictive Architectures for Stable-Baselines3: a representation that predicts its own future, trained
beside the policy. ``PPO(JepaPolicy, env).learn(100_000)`` is all that changes in a script.

The folders, from the ground up; each imports only those above it in this list:

- ``common``: checks of arguments, files, observations by key, ranks. No learning.
- ``parts``: tokenizers, transformer, predictors, masks, targets, losses. Pure PyTorch, as are the next two.
- ``objectives``: what is learned, a file for each method. A new loss is one more file here.
- ``diagnostics``: measures of collapse, probes, attention, and pictures of them
- ``buffers``: rollout and replay buffers of Stable-Baselines3 that know what came next
- ``extractors``: the context encoder as features extractor, and encoder files
- ``policies``: policies that learn the objective in the backward pass of their algorithm
- ``alternating``: training of encoders between the rollouts of any algorithm
- ``inspection``: a trained model's embeddings, predictions, surprise and episodes
- ``envs``: pixel environments, histories, and surprise as a reward
- ``distributed``: training of one model in several processes
- ``callbacks``: what belongs into ``learn(callback=...)``
- ``algorithms``: Stable-Baselines3's with all of this added; a new algorithm is one more folder or file here
- ``data``: recordings of episodes, and readers of such
- ``zero_shot``: what is learned without rewards and then does any task that is named
- ``imitation``: learning from demonstrations
- ``pretrain``: learning an encoder from recordings alone
- ``report``: a page that shows what a model has learned

The methods, and where their code is:

- *JEPA for RL* (arXiv 2504.16591): ``objectives/next_latent.py`` and ``policies``
- *T-JEPA* (arXiv 2410.05016): ``objectives/t_jepa.py``
- *SALT* (arXiv 2509.24317): ``objectives/salt.py`` and ``pretrain/salt.py``
- *DMT-JEPA* (arXiv 2405.17995): ``objectives/dmt_jepa.py``
- implicit bias (arXiv 2407.03475): ``diagnostics/feature_noise.py`` and ``inspection/noise_diagnostic.py``
- *TD-JEPA* (arXiv 2510.00739): ``zero_shot/td_jepa.py``
- *seq-JEPA* (arXiv 2505.03176): ``extractors/sequence_extractor.py``, ``objectives/seq_jepa.py`` and
  ``envs/history.py``
- *ACT-JEPA* (arXiv 2501.14622): ``imitation/act_jepa.py`` and ``imitation/latent_future.py``
- *AD-L-JEPA* (arXiv 2501.04969): ``objectives/ad_l_jepa.py`` and ``extractors/lidar_extractor.py``
- Not there yet, with the folder that it belongs into: *UI-JEPA* (``pretrain``)

``old_paths`` lets files that were saved before the folders were made find their classes.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sb3_jepa import old_paths
from sb3_jepa.algorithms import A2C, DDPG, DQN, PPO, SAC, TD3
from sb3_jepa.buffers import (
    FrameDictReplayBuffer,
    FrameReplayBuffer,
    JepaDictRolloutBuffer,
    JepaRolloutBuffer,
    Transitions,
)
from sb3_jepa.callbacks import JepaCallback, PictureCallback, ProbeCallback, SequenceProbeCallback
from sb3_jepa.data import Recordings
from sb3_jepa.envs import VecSurprise
from sb3_jepa.extractors import (
    DrqExtractor,
    JepaExtractor,
    LidarExtractor,
    MlpExtractor,
    SequenceExtractor,
    load_encoder,
    read_encoder,
    save_encoder,
)
from sb3_jepa.imitation import ACTJEPA
from sb3_jepa.inspection import LatentModel, noise_diagnostic, surprise
from sb3_jepa.objectives import (
    BevPrediction,
    DmtJepa,
    MaskedPrediction,
    NextLatentPrediction,
    Objective,
    ObjectiveInput,
    ObjectiveOutput,
    Salt,
    SaltTeacher,
    SeqJepa,
    SequencePrediction,
    TJepa,
)
from sb3_jepa.policies import JepaPolicy, export_policy
from sb3_jepa.pretrain import pretrain, pretrain_salt
from sb3_jepa.zero_shot import TDJEPA, Task, TaskEvalCallback, TaskPictureCallback

__version__ = version("sb3-jepa")
old_paths.install()

__all__ = [
    "A2C",
    "ACTJEPA",
    "DDPG",
    "DQN",
    "PPO",
    "SAC",
    "TD3",
    "TDJEPA",
    "BevPrediction",
    "DmtJepa",
    "DrqExtractor",
    "FrameDictReplayBuffer",
    "FrameReplayBuffer",
    "JepaCallback",
    "JepaDictRolloutBuffer",
    "JepaExtractor",
    "JepaPolicy",
    "JepaRolloutBuffer",
    "LatentModel",
    "LidarExtractor",
    "MaskedPrediction",
    "MlpExtractor",
    "NextLatentPrediction",
    "Objective",
    "ObjectiveInput",
    "ObjectiveOutput",
    "PictureCallback",
    "ProbeCallback",
    "Recordings",
    "Salt",
    "SaltTeacher",
    "SeqJepa",
    "SequenceExtractor",
    "SequencePrediction",
    "SequenceProbeCallback",
    "TJepa",
    "Task",
    "TaskEvalCallback",
    "TaskPictureCallback",
    "Transitions",
    "VecSurprise",
    "export_policy",
    "load_encoder",
    "noise_diagnostic",
    "pretrain",
    "pretrain_salt",
    "read_encoder",
    "save_encoder",
    "surprise",
]

if TYPE_CHECKING:
    from sb3_jepa.algorithms.contrib import QRDQN as QRDQN
    from sb3_jepa.algorithms.contrib import TQC as TQC
    from sb3_jepa.algorithms.contrib import MaskablePPO as MaskablePPO
    from sb3_jepa.algorithms.contrib import RecurrentPPO as RecurrentPPO
    from sb3_jepa.policies.contrib import MaskableJepaPolicy as MaskableJepaPolicy
    from sb3_jepa.policies.contrib import RecurrentJepaPolicy as RecurrentJepaPolicy

# They need sb3-contrib
_CONTRIB = ("MaskableJepaPolicy", "MaskablePPO", "QRDQN", "RecurrentJepaPolicy", "RecurrentPPO", "TQC")


def __getattr__(name: str) -> Any:
    if name in _CONTRIB:
        from sb3_jepa.algorithms import contrib

        return getattr(contrib, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
