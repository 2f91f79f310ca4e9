"""Training of one model in several processes, which ``torchrun`` starts."""

from sb3_jepa.distributed.training import TrainingOnRanks, check_ranks

__all__ = ["TrainingOnRanks", "check_ranks"]
