"""All that is measured and drawn of an encoder over some episodes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_jepa.common import checks
from sb3_jepa.common.observations import as_observations, by_key, concatenate
from sb3_jepa.diagnostics import (
    Trajectory,
    UnrolledErrors,
    assess,
    attention_maps,
    effective_rank,
    participation_ratio,
    pictures,
    probe_episodes,
)
from sb3_jepa.diagnostics import unrolled_errors as unroll
from sb3_jepa.diagnostics.birds_eye import birds_eye_figure, look_from_above
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.lidar_extractor import LidarExtractor
from sb3_jepa.inspection.episodes import Episode, frames_of, image_key
from sb3_jepa.inspection.latent_model import LatentModel
from sb3_jepa.parts import PatchTokenizer, embedding_variance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Observations whose attention is shown, and those that are shown from above
N_ATTENTION, N_BIRDS_EYE = 6, 3


class Portrait:
    """
    All that is measured and drawn of an encoder over some episodes, whose observations are embedded once.

    :param latent_model: The encoder, and its predictor if it has one
    :param episodes: At least one
    :param horizon: How many steps the predictor is unrolled
    :raises ValueError: If there is no episode, or the horizon is not positive
    """

    def __init__(self, latent_model: LatentModel, episodes: list[Episode], horizon: int = 10):
        if not episodes:
            raise ValueError("`episodes` must hold at least one, got none")
        horizon = checks.whole_number("horizon", horizon)
        self.latent_model, self.episodes, self.horizon = latent_model, episodes, horizon
        lengths = [len(episode.actions) + 1 for episode in episodes]
        self.observations = concatenate([episode.observations for episode in episodes])
        self.embeddings = latent_model.embed(self.observations)
        self.trajectories: list[Trajectory] = []
        if latent_model.has_objective:
            targets = latent_model.embed_target(self.observations)
            actions = [latent_model.encode_actions(episode.actions) for episode in episodes]
            parts = zip(self.embeddings.split(lengths), targets.split(lengths), actions, strict=True)
            self.trajectories = [Trajectory(*part) for part in parts]
        self._longest = int(np.argmax(lengths))
        self._first_row_of_longest = sum(lengths[: self._longest])
        self.variance = float(embedding_variance(self.embeddings))
        self.rank = float(effective_rank(self.embeddings))
        self.participation = float(participation_ratio(self.embeddings))
        self.first_variance = latent_model.first_embedding_variance
        self.verdict = assess(
            self.variance, self.rank, self.participation, self.embeddings.shape[1], self.first_variance
        )

    def frames(self, rows: np.ndarray) -> np.ndarray | None:
        """Frames of the images in rows, ``(rows, frames, height, width)`` or ``(..., 3)``; None without an image."""
        key = image_key(self.latent_model.policy.observation_space)
        if key is None:
            return None
        return frames_of(by_key(self.observations)[key][rows], getattr(self.latent_model.encoder, "frames", None))

    def unrolled_errors(self) -> UnrolledErrors | None:
        """See :func:`~sb3_jepa.diagnostics.unrolled_errors`; None without a predictor."""
        if not self.trajectories:
            return None
        return unroll(self.latent_model.predict, self.trajectories, self.horizon)

    def surprises(self) -> tuple[np.ndarray, np.ndarray] | None:
        """
        Surprise of the transitions as they were, and with the next observation taken from another one at random; None
        without a predictor.
        """
        if not self.trajectories:
            return None
        before = th.cat([trajectory.embeddings[:-1] for trajectory in self.trajectories])
        after = th.cat([trajectory.targets[1:] for trajectory in self.trajectories])
        expected = self.latent_model.predict(before, th.cat([one.actions for one in self.trajectories]))
        swapped = after[np.random.default_rng(0).permutation(len(after))]
        true, false = ((expected - one).square().sum(dim=1).cpu().numpy() for one in (after, swapped))
        return true, false

    def probe(self, names: Sequence[str] | None = None) -> dict[str, float]:
        """
        How well linear probes find variables in the embeddings, see :func:`~sb3_jepa.diagnostics.probe_episodes`.

        :param names: Of the variables; numbers by default
        :return: R² of each variable that varies; empty if the episodes have none
        :raises ValueError: If there are more or fewer variables than names
        """
        variables = [episode.variables for episode in self.episodes if episode.variables is not None]
        if not variables:
            return {}
        lengths = [len(one) for one in variables]
        # The last observation of an episode has no variables: it is before no step
        is_known = np.concatenate([np.arange(length + 1) < length for length in lengths])
        embeddings = self.embeddings.double().cpu().numpy()[is_known]
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        return probe_episodes(embeddings, np.concatenate(variables), numbers, names)

    def pictures(self) -> "dict[str, Figure]":
        """
        :return: By name: ``spectrum``, ``trajectory``, ``unrolled`` (with a predictor), ``attention`` (of a
            :class:`~sb3_jepa.JepaExtractor` with a class token) and ``birds_eye`` (of a
            :class:`~sb3_jepa.LidarExtractor`); none if the encoder has diverged
        :raises ImportError: If Matplotlib is not installed
        """
        if self.verdict.label == "diverged":
            return {}
        figures = dict(
            spectrum=pictures.spectrum_figure(self.embeddings, self.first_variance, self.rank, self.verdict),
            trajectory=self._trajectory_picture(),
        )
        errors = self.unrolled_errors()
        if errors is not None:
            figures["unrolled"] = pictures.unrolled_figure(errors, self.verdict)
        encoder = self.latent_model.encoder
        if isinstance(encoder, LidarExtractor):
            figures["birds_eye"] = self._birds_eye_picture(encoder)
        if isinstance(encoder, JepaExtractor) and encoder.encoder.class_tokens > 0:
            figures["attention"] = self._attention_picture(encoder)
        return figures

    def _rows_of_longest(self) -> np.ndarray:
        return self._first_row_of_longest + np.arange(len(self.episodes[self._longest].actions) + 1)

    def _trajectory_picture(self) -> "Figure":
        rows = self._rows_of_longest()
        frames = self.frames(rows)
        newest = None if frames is None else frames[:, -1]
        return pictures.trajectory_figure(self.embeddings[rows], self.first_variance, newest, self.verdict)

    def _spread_rows(self, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Some rows of the longest episode, and which of its steps they are."""
        rows = self._rows_of_longest()
        places = np.unique(np.linspace(0, len(rows) - 1, n_rows + 2).round().astype(int)[1:-1])
        return rows[places], places

    def _observations_of(self, rows: np.ndarray) -> Any:
        return as_observations({key: array[rows] for key, array in by_key(self.observations).items()})

    def _birds_eye_picture(self, extractor: LidarExtractor) -> "Figure":
        rows, _ = self._spread_rows(N_BIRDS_EYE)
        objective = self.latent_model.other_objective
        (seen,) = self.latent_model.in_batches(
            self._observations_of(rows), lambda inputs: look_from_above(extractor, inputs, objective)
        )
        return birds_eye_figure(seen, self.verdict)

    def _attention_picture(self, extractor: JepaExtractor) -> "Figure":
        chosen, places = self._spread_rows(N_ATTENTION)
        batches = self.latent_model.in_batches(
            self._observations_of(chosen), lambda inputs: attention_maps(extractor.encoder, inputs)
        )
        (maps,) = ({key: one.cpu().numpy() for key, one in batch.items()} for batch in batches)
        key, frames = image_key(self.latent_model.policy.observation_space), self.frames(chosen)
        if key is None or frames is None:
            return pictures.attention_bars(maps, "attention of the class token", self.verdict)
        # All images have patches of one size
        tokenizers = [one for one in extractor.encoder.tokenizer.modules() if isinstance(one, PatchTokenizer)]
        patch_size = tokenizers[0].patch_size
        if maps[key].shape[1] > 1:
            # Show the first and the last observation only: each of their frames has a map of its own
            frames, maps[key] = frames[[0, -1]], maps[key][[0, -1]]
        return pictures.attention_figure(
            frames, maps[key], patch_size, "attention of the class token", self.verdict, places.tolist()
        )
