"""How good an encoder is while it is pretrained: on observations that were put aside."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.diagnostics import effective_rank
from sb3_jepa.diagnostics.probes import probe_r2
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.objectives import Objective
from sb3_jepa.parts import embedding_variance
from sb3_jepa.parts.targets import target_module
from sb3_jepa.pretrain.loading import Loader

# At most so many observations are measured
MAX_TRAINING_ROWS, MAX_VALIDATION_ROWS = 2048, 1024
# Number of principal components of the observations that the probe reads without labels
N_COMPONENTS = 16

# Terms of the objective that are measured otherwise
REPLACED_TERMS = ("prediction_loss", "embedding_variance", "variance_loss", "deviation_loss", "covariance_loss")


class Validation:
    """
    Measures an encoder and its objective, always on the same observations and masks.

    :param load: Makes what is learned from of the numbers of rows
    :param training_rows: What is learned from
    :param validation_rows: What was put aside
    :param labels: What a linear probe is to read from the embedding, ``(rows, variables)``; by default the principal
        components of the (standardised) observations themselves
    :param batch_size: Observations at once
    :param seed: Of the choice of rows, and of the masks
    """

    def __init__(
        self,
        load: Loader,
        training_rows: np.ndarray,
        validation_rows: np.ndarray,
        labels: np.ndarray | None,
        batch_size: int,
        seed: int,
    ):
        generator = np.random.default_rng(seed)
        self._training_rows, self._validation_rows = (
            np.sort(generator.permutation(rows)[:limit])
            for rows, limit in ((training_rows, MAX_TRAINING_ROWS), (validation_rows, MAX_VALIDATION_ROWS))
        )
        self._load, self._labels, self._batch_size, self._seed = load, labels, batch_size, seed
        self._probe_targets: np.ndarray | None = None

    def _batches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(rows), self._batch_size):
            yield rows[start : start + self._batch_size]

    def _embed(self, encoder: nn.Module, rows: np.ndarray) -> th.Tensor:
        return th.cat([encoder(self._load.observations(batch, encoder)) for batch in self._batches(rows)])

    @th.no_grad()
    def measure(self, encoder: nn.Module, objective: Objective, result: nn.Module) -> dict[str, float]:
        """
        :param encoder: The context encoder
        :param objective: What it learns
        :param result: The encoder that is kept in the end, see :func:`result_of`
        :return: ``validation_loss``, the prediction loss, and the objective's further terms; and of the embeddings of
            ``result`` ``embedding_variance``, ``effective_rank``, and ``probe_r2``, how much a linear probe reads
        """
        was_training = encoder.training
        encoder.train(False)
        # Draw the same masks each time, and no random numbers of the training
        with isolated_random_numbers(self._seed):
            sums: dict[str, th.Tensor] = {}
            for rows in self._batches(self._validation_rows):
                for name, term in objective(self._load.batch(rows, encoder, False)).terms.items():
                    # The last batch may be smaller
                    sums[name] = sums.get(name, 0.0) + term * len(rows)
            if self._probe_targets is None:
                self._probe_targets = self._make_probe_targets(encoder)
        validated, of_training = self._embed(result, self._validation_rows), self._embed(result, self._training_rows)
        encoder.train(was_training)
        inputs = th.cat((of_training, validated)).double().cpu().numpy()
        is_held_out = np.arange(len(inputs)) >= len(of_training)
        r2 = probe_r2(inputs, self._probe_targets, is_held_out)
        terms = {name: float(total / len(validated)) for name, total in sums.items()}
        return dict(
            {name: term for name, term in terms.items() if name not in REPLACED_TERMS},
            validation_loss=terms["prediction_loss"],
            embedding_variance=float(embedding_variance(validated)),
            effective_rank=float(effective_rank(validated)),
            probe_r2=float(np.nanmean(r2)) if np.isfinite(r2).any() else float("nan"),
        )

    def some_observations(self, encoder: nn.Module, n_rows: int = 3) -> Any:
        """
        :param encoder: The context encoder
        :param n_rows: How many at most
        :return: Observations that were put aside, as it takes them
        """
        places = np.unique(np.linspace(0, len(self._validation_rows) - 1, n_rows).astype(int))
        return self._load.observations(self._validation_rows[places], encoder)

    def _make_probe_targets(self, encoder: nn.Module) -> np.ndarray:
        if self._labels is not None:
            labels = np.asarray(self._labels, dtype=np.float64)
            return np.concatenate([labels[self._training_rows], labels[self._validation_rows]])

        def inputs(rows: np.ndarray) -> Iterator[th.Tensor]:
            for batch in self._batches(rows):
                observations = self._load.observations(batch, encoder)
                yield encoder.token_inputs(observations).flatten(1).nan_to_num(0.0)  # type: ignore[operator]

        # Subtract in place: the pixels of images take hundreds of megabytes
        training = th.cat(list(inputs(self._training_rows)))
        mean = training.mean(dim=0)
        training -= mean
        # Components of the training rows alone
        _, _, directions = th.pca_lowrank(training, min(N_COMPONENTS, *training.shape), center=False)
        projected = [training @ directions, *((one - mean) @ directions for one in inputs(self._validation_rows))]
        return th.cat(projected).double().cpu().numpy()


def result_of(encoder: JepaExtractor, objective: Objective) -> JepaExtractor:
    """
    :param encoder: The context encoder
    :param objective: What it learns
    :return: The encoder that is kept: the momentum copy of all of it, if there is one, as in I-JEPA and T-JEPA
    """
    is_copied = objective.has_momentum_target and target_module(encoder) is encoder
    return objective.target_encoder.encoder if is_copied else encoder  # type: ignore[return-value]
