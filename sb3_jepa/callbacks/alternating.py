"""Train encoders in turn with an algorithm."""

from stable_baselines3.common.callbacks import BaseCallback

from sb3_jepa.alternating.training import AlternatingTraining
from sb3_jepa.common.sb3_privates import progress_remaining


class AlternatingCallback(BaseCallback):
    """
    Lets encoders learn after the algorithm has learned, when the next rollout starts.

    :param training: Of these encoders
    """

    def __init__(self, training: AlternatingTraining):
        super().__init__()
        self.training = training

    def _on_rollout_start(self) -> None:
        self.training.train(progress_remaining(self.model))

    def _on_step(self) -> bool:
        self.training.source.on_step(self.locals)
        return True

    def _on_rollout_end(self) -> None:
        self.training.source.on_rollout_end()

    def _on_training_end(self) -> None:
        self.training.train(progress_remaining(self.model))
