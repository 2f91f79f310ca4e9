"""What all objectives share: a target encoder that follows, and the terms that keep an embedding from collapsing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.ranks import join_batches
from sb3_jepa.objectives.output import ObjectiveInput, ObjectiveOutput
from sb3_jepa.parts.losses import covariance_loss, deviation_loss, embedding_variance, variance_loss
from sb3_jepa.parts.targets import MomentumEncoder, TargetEncoder

# A constant, a pair of the values at the start and at the end, or a schedule of the remaining progress (from 1 to 0)
Momentum = float | Sequence[float] | Callable[[float], float]


class Objective(nn.Module):
    r"""
    A prediction loss, and beside it three terms of the embedding,

    .. math:: L = c_p\,L_\mathrm{prediction} + c_v\,L_\mathrm{variance} + c_d\,L_\mathrm{deviation}
              + c_c\,L_\mathrm{covariance}

    see :mod:`sb3_jepa.parts.losses`. One of your own makes its predictor after ``super().__init__``, computes in
    :meth:`prediction_output` what is predicted, and says by ``needs_actions``, ``needs_next_observations`` and
    ``horizon`` what it learns from.

    :param encoder: The context encoder; the target encoder starts as its copy
    :param embed_dim: Width of the embedding
    :param action_dim: Width of the encoded action; 0 if the objective uses none
    :param momentum: ``m`` of the target encoder in [0, 1]; or a pair, its values at the start and at the end of the
        training; or a schedule of the remaining progress (from 1 to 0)
    :param prediction_coef: Weight of the prediction loss; 0 switches the prediction off
    :param variance_coef: Weight of the variance loss of *JEPA for RL*
    :param deviation_coef: Weight of the hinge on the deviation, see :func:`~sb3_jepa.parts.deviation_loss`
    :param covariance_coef: Weight of the covariance, see :func:`~sb3_jepa.parts.covariance_loss`
    :param target_encoder: What gives the targets; by default a momentum copy of the context encoder
    :raises ValueError: If the momentum leaves [0, 1], or a coefficient is negative
    """

    # Whether it learns from actions, and from what the next observations are
    needs_actions = False
    needs_next_observations = False
    # Number of consecutive observations after the first that it predicts
    horizon = 0
    # Whether it learns from rewards and ends of episodes
    needs_rewards = False
    # By how many pixels images are shifted at random before they are embedded for it; 0 for none
    random_shift = 0
    # For how long target embeddings hold: "step", "epoch" or "rollout"
    target_refresh = "step"

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int = 0,
        momentum: Momentum = 0.99,
        prediction_coef: float = 1.0,
        variance_coef: float = 0.0,
        deviation_coef: float = 0.0,
        covariance_coef: float = 0.0,
        target_encoder: TargetEncoder | None = None,
    ):
        super().__init__()
        checks.instance("encoder", encoder, nn.Module)
        checks.whole_number("embed_dim", embed_dim)
        checks.whole_number("action_dim", action_dim, 0)
        self.prediction_coef = checks.number("prediction_coef", prediction_coef, least=0)
        self.variance_coef = checks.number("variance_coef", variance_coef, least=0)
        self.deviation_coef = checks.number("deviation_coef", deviation_coef, least=0)
        self.covariance_coef = checks.number("covariance_coef", covariance_coef, least=0)
        # Weights of further terms of what is predicted, by their names
        self.term_coefs: dict[str, float] = {}
        check_momentum(momentum)
        self.momentum_schedule = momentum
        self.update_momentum(1.0)
        self.target_encoder = checks.optional(
            checks.instance, "target_encoder", target_encoder, cls=TargetEncoder
        ) or MomentumEncoder(encoder)

    def update_momentum(self, progress_remaining: float) -> None:
        """
        Follow the momentum's schedule, if it has one.

        :param progress_remaining: Remaining progress of the training, from 1 to 0
        """
        self.momentum = _momentum_at(self.momentum_schedule, progress_remaining)

    def update_target(self, encoder: nn.Module) -> None:
        """
        Move the target encoder one step of momentum. To be called after each optimiser step.

        :param encoder: The context encoder
        """
        self.target_encoder.update(encoder, self.momentum)

    @property
    def has_momentum_target(self) -> bool:
        """Whether the target encoder is a momentum copy of the context encoder."""
        return isinstance(self.target_encoder, MomentumEncoder)

    @property
    def has_fixed_target(self) -> bool:
        """Whether its prediction loss means the same during all of a training, so that it can be compared."""
        return not self.has_momentum_target

    @property
    def keeps_targets(self) -> bool:
        """Whether target embeddings hold for longer than a minibatch."""
        return self.target_refresh != "step" and self.prediction_coef > 0

    @property
    def regularizes_embedding(self) -> bool:
        """Whether its loss has terms of the embedding itself."""
        return max(self.variance_coef, self.deviation_coef, self.covariance_coef) > 0

    def prediction_output(self, batch: ObjectiveInput) -> ObjectiveOutput:
        """
        :param batch: What it learns from
        :return: The prediction loss as ``loss``, without its coefficient; further terms for the logger, and those that
            have a weight in ``term_coefs``; and what was predicted, if it is an embedding
        """
        raise NotImplementedError

    def forward(self, batch: ObjectiveInput) -> ObjectiveOutput:
        """
        :param batch: What it learns from
        :return: The loss, its terms, and what was predicted
        """
        loss = th.zeros(())
        terms = {}
        if batch.embedding is not None:
            # The embeddings of all ranks
            (embeddings,) = join_batches(batch.embedding)
            # Without a weight it is only logged, and needs no gradient
            variance = embedding_variance(embeddings if self.variance_coef > 0 else embeddings.detach())
            terms = {"embedding_variance": variance, "variance_loss": variance_loss(variance)}
            loss = self.variance_coef * terms["variance_loss"]
            if self.deviation_coef > 0:
                terms["deviation_loss"] = deviation_loss(embeddings)
                loss = loss + self.deviation_coef * terms["deviation_loss"]
            if self.covariance_coef > 0:
                terms["covariance_loss"] = covariance_loss(embeddings)
                loss = loss + self.covariance_coef * terms["covariance_loss"]
        output = ObjectiveOutput(loss, {})
        if self.prediction_coef > 0:
            output = self.prediction_output(batch)
            terms.update(prediction_loss=output.loss, **output.terms)
            loss = loss + self.prediction_coef * output.loss
            for name, coef in self.term_coefs.items():
                loss = loss + coef * output.terms[name]
        return output._replace(loss=loss, terms={name: term.detach() for name, term in terms.items()})


def _momentum_at(momentum: Any, progress_remaining: float) -> float:
    if isinstance(momentum, (tuple, list)) and len(momentum) == 2:
        start, end = (checks.number(f"momentum[{index}]", momentum[index], 0, 1) for index in range(2))
        momentum = end + (start - end) * progress_remaining
    return checks.scheduled(
        "momentum", momentum, progress_remaining, also="a pair of them, or a schedule", least=0, most=1
    )


def check_momentum(momentum: Momentum) -> None:
    """
    Try a momentum at the start, in the middle and at the end, so that a bad schedule fails before the training.

    :param momentum: As of :class:`Objective`
    :raises ValueError: If it leaves [0, 1]
    """
    for progress_remaining in (0.0, 0.5, 1.0):
        _momentum_at(momentum, progress_remaining)
