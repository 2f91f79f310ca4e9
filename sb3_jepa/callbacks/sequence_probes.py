"""Probes of what an encoder of histories knows of the actions in them."""

from collections import deque
from typing import Any

import numpy as np
import torch as th

from sb3_jepa.callbacks.probes import LoggedProbes
from sb3_jepa.common import checks
from sb3_jepa.common.histories import ACTIONS, IS_REAL, is_history
from sb3_jepa.diagnostics.sequences import sequence_probes
from sb3_jepa.extractors.sequence_extractor import SequenceExtractor
from sb3_jepa.inspection.latent_model import LatentModel

MIN_HISTORIES = 64


class SequenceProbeCallback(LoggedProbes):
    """
    Asks, every ``N`` rollouts and at the end, what a :class:`~sb3_jepa.SequenceExtractor` knows of actions: R² of the
    newest action, read from the embeddings of the two newest views, ``jepa_probe/relative_action``; and of the sum of
    all encoded actions of the history, read from the aggregate, ``jepa_probe/path_integration``. What else the features
    know, such as the state, is asked by :class:`~sb3_jepa.ProbeCallback`.

    It looks at the histories that the training visits, of which only full ones count, and takes no step of its own.

    :param every_n_rollouts: How often; by default every 20 rollouts on-policy, and off-policy, where a rollout may be a
        single step, every 10,000 time steps
    :param every_n_steps: Only every ``N``-th step of the environments is kept, since those between tell little more
    :param n_samples: How many histories are kept, the latest
    :param held_out: Fraction of the histories on which R² is measured: the latest
    :param with_mlp: Whether to fit an MLP to the relative action too, ``jepa_probe/relative_action_mlp``
    :param encoder: Name of the network whose encoder is looked at, such as ``"critic"``; by default the first
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If a number is out of range; when the training starts, if there is no such encoder
    """

    def __init__(
        self,
        every_n_rollouts: int | None = None,
        every_n_steps: int = 4,
        n_samples: int = 2048,
        held_out: float = 0.25,
        with_mlp: bool = False,
        encoder: str | None = None,
        verbose: int = 0,
    ):
        super().__init__(every_n_rollouts, encoder, verbose)
        self.every_n_steps = checks.whole_number("every_n_steps", every_n_steps)
        self.n_samples = checks.whole_number("n_samples", n_samples)
        self.held_out = checks.number("held_out", held_out, above=0, below=1)
        self.with_mlp = checks.flag("with_mlp", with_mlp)
        self._histories: deque[dict[str, Any]] = deque(maxlen=self.n_samples)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        model = LatentModel(self.model, self.encoder)
        if not isinstance(model.encoder, SequenceExtractor) or not is_history(self.model.observation_space):
            raise ValueError(
                f"The encoder {model.name!r} must be a sb3_jepa.SequenceExtractor for a SequenceProbeCallback, got a "
                f"{type(model.encoder).__name__}"
            )

    def _on_step(self) -> bool:
        if self.n_calls % self.every_n_steps == 0:
            histories = self.locals["new_obs"]
            for env in np.flatnonzero(np.asarray(histories[IS_REAL]).all(axis=1)):
                self._histories.append({key: array[env].copy() for key, array in histories.items()})
        return True

    def measure(self) -> dict[str, float]:
        """
        :return: R² of each probe, see :func:`~sb3_jepa.diagnostics.sequence_probes`; empty while there are few full
            histories
        """
        if len(self._histories) < MIN_HISTORIES:
            return {}
        batch = {key: np.stack([one[key] for one in self._histories]) for key in self._histories[0]}
        model = LatentModel(self.model, self.encoder)
        extractor: Any = model.encoder

        def look(histories: Any) -> tuple[th.Tensor, th.Tensor]:
            views = extractor.embed_views(histories)
            return views, extractor.aggregator(views, histories[ACTIONS], histories[IS_REAL])

        views, aggregates = (
            th.cat(parts).double().cpu().numpy() for parts in zip(*model.in_batches(batch, look), strict=True)
        )
        # Later ones are held out: the steps of one episode are too much alike to be on both sides
        is_held_out = np.arange(len(views)) >= round((1.0 - self.held_out) * len(views))
        actions = batch[ACTIONS].astype(np.float64)
        return sequence_probes(views, aggregates, actions, actions.sum(axis=1), is_held_out, self.with_mlp)
