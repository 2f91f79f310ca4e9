"""seq-JEPA: the next view of a history is predicted, given the action."""

import math
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.common.ranks import join_batches
from sb3_jepa.objectives.objective import Objective
from sb3_jepa.objectives.output import ObjectiveInput, ObjectiveOutput
from sb3_jepa.parts.losses import weighted_mean


class SequencePrediction(Objective):
    r"""
    *seq-JEPA* (Ghaemi, Muller, Bakhtiari 2025, arXiv 2505.03176): from the aggregate of the last views and the actions
    between them, and from the action that follows, a two-layer MLP guesses the embedding of the next view, as a
    momentum copy of the encoder of single views sees it,

    .. math:: L = 1 - \cos\left(h([z_\mathrm{AGG} ; e(a_M)]),\ \mathrm{sg}(\bar f(x_{M+1}))\right)

    (section 3). So the aggregate learns what has been seen, and views learn how they differ. It goes with a
    :class:`~sb3_jepa.SequenceExtractor`, which see for an example.

    What differs from the paper: the predictor has no batch norm, and the terms of :class:`Objective` that keep every
    dimension of the features alive (``deviation_coef`` 0.2, ``covariance_coef`` 0.01) are in the place of the encoder's
    batch norm. With :class:`SeqJepa` they have no weight.

    :param encoder: The context encoder, a :class:`~sb3_jepa.SequenceExtractor`
    :param embed_dim: Width of its features
    :param action_dim: Width of the encoded action
    :param hidden_dim: Hidden width of the predictor
    :param predict_with_action: Whether the predictor is told the action that follows
    :param kwargs: The momentum and the coefficients of :class:`Objective`
    :raises ValueError: If the encoder has no histories, or an argument is out of range
    """

    needs_actions = True
    needs_next_observations = True
    horizon = 1

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        hidden_dim: int = 128,
        predict_with_action: bool = True,
        **kwargs: Any,
    ):
        checks.instance("encoder", encoder, nn.Module)
        aggregator = getattr(encoder, "aggregator", None)
        if aggregator is None:
            raise ValueError(
                f"`features_extractor_class` must be sb3_jepa.SequenceExtractor for a {type(self).__name__}, which "
                f"predicts views from histories, got {type(encoder).__name__}"
            )
        defaults = dict(prediction_coef=0.2, deviation_coef=0.2, covariance_coef=0.01)
        super().__init__(encoder, embed_dim, action_dim, **{**defaults, **kwargs})
        hidden_dim, action_dim = (
            checks.whole_number("hidden_dim", hidden_dim),
            checks.whole_number("action_dim", action_dim),
        )
        self.predict_with_action = checks.flag("predict_with_action", predict_with_action)
        self.aggregate_dim = aggregator.dim
        self.hidden = nn.Linear(self.aggregate_dim, hidden_dim)
        self.action = nn.Linear(action_dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, aggregator.view_dim)

    def predict(self, aggregate: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param aggregate: ``(batch, aggregate_dim)``
        :param actions: Encoded actions that follow, ``(batch, action_dim)``
        :return: Predicted embedding of the next view, ``(batch, view_dim)``
        """
        hidden = self.hidden(aggregate)
        if self.predict_with_action:
            hidden = hidden + self.action(actions)
        return self.output(F.relu(hidden))

    def prediction_output(self, batch: ObjectiveInput) -> ObjectiveOutput:
        """
        :param batch: Features, actions and the histories that they led to
        :return: The cosine loss, what was predicted ``(batch, view_dim)`` and what it should have been
        """
        assert batch.embedding is not None
        assert batch.actions is not None
        prediction = self.predict(batch.embedding[:, : self.aggregate_dim], batch.actions)
        target = self.target_encoder(batch.next_observations) if batch.target is None else batch.target
        joined_prediction, joined_target, valid = join_batches(prediction, target, batch.valid)
        distances = 1.0 - F.cosine_similarity(joined_prediction, joined_target, dim=1)
        return ObjectiveOutput(weighted_mean(distances, valid), {}, prediction, target, batch.valid)


def cosine_momentum(progress_remaining: float) -> float:
    """
    :param progress_remaining: Remaining progress of the training, from 1 to 0
    :return: Momentum from 0.996 to 1, as a cosine
    """
    return 1.0 - 0.004 * (math.cos(math.pi * (1.0 - progress_remaining)) + 1.0) / 2.0


class SeqJepa(SequencePrediction):
    """
    The paper's own: the cosine loss alone, a predictor of 1,024 hidden units, and a momentum from 0.996 to 1. The
    encoder that goes with it has ``dict(order_code=False, output="aggregate", depth=3, mlp_ratio=4.0,
    action_embed_dim=128)``. Against collapse it needs an encoder with batch norm.

    :param encoder: The context encoder, a :class:`~sb3_jepa.SequenceExtractor`
    :param embed_dim: Width of its features
    :param action_dim: Width of the encoded action
    :param kwargs: Further parameters of :class:`SequencePrediction`
    """

    def __init__(self, encoder: nn.Module, embed_dim: int, action_dim: int, **kwargs: Any):
        defaults = dict(
            hidden_dim=1024, momentum=cosine_momentum, prediction_coef=1.0, deviation_coef=0.0, covariance_coef=0.0
        )
        super().__init__(encoder, embed_dim, action_dim, **{**defaults, **kwargs})
