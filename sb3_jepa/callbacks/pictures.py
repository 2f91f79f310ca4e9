"""Pictures of what an encoder makes of the latest episodes."""

import warnings
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    Figure,
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    TensorBoardOutputFormat,
)
from torch.nn import functional as F

from sb3_jepa.callbacks.every_n_rollouts import EveryNRollouts
from sb3_jepa.common import checks
from sb3_jepa.common.sb3_privates import last_observations
from sb3_jepa.diagnostics.pictures import new_figure
from sb3_jepa.inspection.episodes import EpisodeRecorder, executed_actions
from sb3_jepa.inspection.latent_model import LatentModel
from sb3_jepa.inspection.portrait import Portrait

# Logger outputs that hold tables of numbers
TABLE_FORMATS = (CSVOutputFormat, HumanOutputFormat, JSONOutputFormat)


class PictureCallback(EveryNRollouts):
    """
    Draws, every ``N`` rollouts and at the end, what the encoder makes of the latest episodes of the first environment,
    for TensorBoard and other outputs that take figures. Tables (stdout, log, CSV, JSON) get none.

    - ``jepa_pictures/attention``: the class token's attention over the patches, laid over the frames
    - ``jepa_pictures/trajectory``: the path of an episode in latent space, and a strip of its colours
    - ``jepa_pictures/unrolled``: how far the predictor sees, beside a copy
    - ``jepa_pictures/spectrum``: eigenvalues of the embeddings' covariance
    - ``jepa_pictures/birds_eye``: LiDAR from above: what is hidden, what is predicted, which cells are alike
    - ``jepa_pictures/embedding``: a histogram of the embeddings' values
    - In TensorBoard's projector: the embeddings, with the frames as thumbnails

    Each title begins with a verdict: healthy, low rank or collapsed. (If the encoder has diverged, nothing is drawn.)

    :param every_n_rollouts: How often; by default every 20 rollouts on-policy, and off-policy, where a rollout may be a
        single step, every 10,000 time steps
    :param horizon: How many steps the predictor is unrolled
    :param max_steps: Of the latest episodes, about how many steps are looked at
    :param projector: Whether to write embeddings and thumbnails for the projector, a few hundred kB each time
    :param encoder: Name of the network whose encoder is looked at, such as ``"critic"``; by default the first
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If a number is not positive; when the training starts, if there is no such encoder
    :raises ImportError: If Matplotlib is not installed
    """

    def __init__(
        self,
        every_n_rollouts: int | None = None,
        horizon: int = 10,
        max_steps: int = 500,
        projector: bool = True,
        encoder: str | None = None,
        verbose: int = 0,
    ):
        super().__init__(every_n_rollouts, encoder, verbose)
        self.horizon = checks.whole_number("horizon", horizon)
        self.max_steps = checks.whole_number("max_steps", max_steps)
        self.projector = checks.flag("projector", projector)
        # Objects now, if Matplotlib is not installed
        new_figure(1, 1, "")
        self._recorder = EpisodeRecorder(1, self.max_steps, self.max_steps)

    @property
    def _outputs(self) -> list[KVWriter]:
        return [output for output in self.logger.output_formats if not isinstance(output, TABLE_FORMATS)]

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._recorder = EpisodeRecorder(1, self.max_steps, self.max_steps)
        if not self._outputs:
            warnings.warn(
                "PictureCallback draws for TensorBoard, and nothing here takes pictures: pass `tensorboard_log` to the "
                "model",
                UserWarning,
                stacklevel=2,
            )

    def _on_step(self) -> bool:
        step = self.locals
        before = last_observations(self.model)
        self._recorder.record_step(
            before, executed_actions(step), step["rewards"], step["new_obs"], step["dones"], step["infos"]
        )
        return True

    def _look(self) -> None:
        episodes = self._recorder.latest()
        if not self._outputs or not episodes:
            return
        portrait = Portrait(LatentModel(self.model, self.encoder), episodes, self.horizon)
        # Not by record() and dump(): at the end of a training, tables would get an empty row
        values: dict[str, Any] = {name: Figure(one, close=False) for name, one in portrait.pictures().items()}
        values["embedding"] = portrait.embeddings.cpu()
        named = {f"jepa_pictures/{name}": value for name, value in values.items()}
        for output in self._outputs:
            output.write(named, dict.fromkeys(named), self.num_timesteps)  # type: ignore[arg-type]
            if self.projector and isinstance(output, TensorBoardOutputFormat):
                self._write_projector(output, portrait)

    def _write_projector(self, output: TensorBoardOutputFormat, portrait: Portrait) -> None:
        rows = np.arange(len(portrait.embeddings))
        frames = portrait.frames(rows)
        thumbnails = None
        if frames is not None:
            newest = th.as_tensor(frames[:, -1])
            newest = newest.float() / (255.0 if newest.dtype == th.uint8 else 1.0)
            # (samples, channels, height, width)
            thumbnails = newest.movedim(-1, 1) if newest.ndim == 4 else newest[:, None].expand(-1, 3, -1, -1)
            # TensorBoard's writer fails on pictures that are higher than wide
            thumbnails = F.pad(thumbnails, (0, max(0, thumbnails.shape[2] - thumbnails.shape[3])))
        metadata = [
            [str(number), str(step)]
            for number, episode in enumerate(portrait.episodes)
            for step in range(len(episode.actions) + 1)
        ]
        output.writer.add_embedding(  # type: ignore[no-untyped-call]
            portrait.embeddings.cpu(),
            metadata=metadata,
            metadata_header=["episode", "step"],
            label_img=thumbnails,
            global_step=self.num_timesteps,
            tag="embedding",
        )
