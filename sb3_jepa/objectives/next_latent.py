"""JEPA for RL: predict the next observation's embedding, given the action."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.objectives.output import ObjectiveOutput
from sb3_jepa.parts.losses import (
    covariance_loss,
    deviation_loss,
    embedding_variance,
    prediction_loss,
    variance_loss,
)
from sb3_jepa.parts.predictors import ActionConditionedPredictor
from sb3_jepa.parts.ranks import join_batches
from sb3_jepa.parts.targets import MomentumEncoder


class NextLatentPrediction(nn.Module):
    r"""
    *JEPA for RL* (Kenneweg, Kenneweg, Hammer 2025, arXiv 2504.16591): a predictor that knows the action guesses the
    embedding of the next observation as a momentum copy of the encoder sees it,

    .. math:: L = c_p\,\lVert g_\phi(s_x, a) - \mathrm{sg}(s_y) \rVert_2^2
              - c_v \min\left(1, \frac{1}{d}\sum_i \mathrm{Var}(s_x)_i\right)

    (eq. 1 and 2), with :math:`s_x = f_\theta(x)` and :math:`s_y = f_{\bar\theta}(y)`. Beside them, the two terms of
    *VICReg* (arXiv 2105.04906), which keep every dimension alive, and different from the others. With
    ``prediction_coef=1`` and 0 for these two, it is the paper's objective.

    :param encoder: The context encoder; the target encoder starts as its copy
    :param embed_dim: Width of the embedding
    :param action_dim: Width of the encoded action
    :param momentum: ``m`` of the target encoder in [0, 1], or a schedule of the remaining progress (from 1 to 0)
    :param prediction_coef: Weight of the prediction loss; 0 switches the target's forward pass off
    :param variance_coef: Weight of the paper's variance loss
    :param deviation_coef: Weight of the hinge on the deviation, see :func:`~sb3_jepa.parts.deviation_loss`
    :param covariance_coef: Weight of the covariance, see :func:`~sb3_jepa.parts.covariance_loss`
    :param hidden_dim: Hidden width of the predictor
    :param predictor_gain: Gain of the predictor's initialisation, see
        :class:`~sb3_jepa.parts.ActionConditionedPredictor`; ``None`` for PyTorch's own
    :param target_refresh: For how long target embeddings hold: ``"step"``, the target encoder embeds every minibatch
        anew, as in the paper; ``"epoch"``, all of a rollout once for each pass over it; ``"rollout"``, once for all
        passes, which is the fastest. (The target encoder itself always moves on after each step.) Alternating training,
        which goes over a rollout once, and training without a :class:`~sb3_jepa.JepaCallback` embed every minibatch.
    :raises ValueError: If the momentum leaves [0, 1], a coefficient is negative, or ``target_refresh`` is none of these
    """

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        momentum: float | Callable[[float], float] = 0.99,
        prediction_coef: float = 0.2,
        variance_coef: float = 0.0,
        deviation_coef: float = 0.2,
        covariance_coef: float = 0.01,
        hidden_dim: int = 128,
        predictor_gain: float | None = None,
        target_refresh: str = "step",
    ):
        super().__init__()
        if target_refresh not in ("step", "epoch", "rollout"):
            raise ValueError(f'`target_refresh` must be "step", "epoch" or "rollout", got {target_refresh!r}')
        self.target_refresh = target_refresh
        for name, coefficient in dict(
            prediction_coef=prediction_coef,
            variance_coef=variance_coef,
            deviation_coef=deviation_coef,
            covariance_coef=covariance_coef,
        ).items():
            if not 0 <= coefficient < float("inf"):
                raise ValueError(f"`{name}` must be finite and not negative, got {coefficient}")
        self.momentum_schedule = momentum if callable(momentum) else None
        # A schedule that goes wrong should do so now and not in the middle of the training
        for progress_remaining in (0.0, 0.5, 1.0):
            self.momentum = self._momentum_at(momentum, progress_remaining)
        self.prediction_coef = prediction_coef
        self.variance_coef = variance_coef
        self.deviation_coef = deviation_coef
        self.covariance_coef = covariance_coef
        self.target_encoder = MomentumEncoder(encoder)
        self.predictor = ActionConditionedPredictor(embed_dim, action_dim, hidden_dim, predictor_gain)

    @staticmethod
    def _momentum_at(momentum: float | Callable[[float], float], progress_remaining: float) -> float:
        value = float(momentum(progress_remaining) if callable(momentum) else momentum)
        if not 0.0 <= value <= 1.0:
            where = f" at progress_remaining={progress_remaining}" if callable(momentum) else ""
            raise ValueError(f"`momentum` must lie in [0, 1], got {value}{where}")
        return value

    def update_momentum(self, progress_remaining: float) -> None:
        """
        Follow the momentum's schedule, if it has one.

        :param progress_remaining: Remaining progress of the training, from 1 to 0
        """
        if self.momentum_schedule is not None:
            self.momentum = self._momentum_at(self.momentum_schedule, progress_remaining)

    def update_target(self, encoder: nn.Module) -> None:
        """
        Move the target encoder one step of momentum. To be called after each optimiser step.

        :param encoder: The context encoder
        """
        self.target_encoder.update(encoder, self.momentum)

    @property
    def keeps_targets(self) -> bool:
        """Whether target embeddings hold for longer than a minibatch."""
        return self.target_refresh != "step" and self.prediction_coef > 0

    def forward(
        self,
        embedding: th.Tensor,
        actions: th.Tensor,
        next_observations: Any,
        valid: th.Tensor | None = None,
        target: th.Tensor | None = None,
    ) -> ObjectiveOutput:
        """
        :param embedding: Context embedding ``(batch, embed_dim)``, with its gradient
        :param actions: Encoded actions ``(batch, action_dim)``
        :param next_observations: What the encoder takes, of the next time step
        :param valid: ``(batch,)``, 1 where the next observation belongs to the same episode and is known
        :param target: Target embedding of the next observations ``(batch, embed_dim)``, where it is known already
        :return: The loss, its terms, and what was predicted
        """
        # With several ranks, of all of them
        (embeddings,) = join_batches(embedding)
        # Where it is only a gauge it needs no gradient
        variance = embedding_variance(embeddings if self.variance_coef > 0 else embeddings.detach())
        terms = {"embedding_variance": variance, "variance_loss": variance_loss(variance)}
        loss = self.variance_coef * terms["variance_loss"]
        if self.deviation_coef > 0:
            terms["deviation_loss"] = deviation_loss(embeddings)
            loss = loss + self.deviation_coef * terms["deviation_loss"]
        if self.covariance_coef > 0:
            terms["covariance_loss"] = covariance_loss(embeddings)
            loss = loss + self.covariance_coef * terms["covariance_loss"]
        prediction = None
        if self.prediction_coef > 0:
            prediction = self.predictor(embedding, actions)
            target = self.target_encoder(next_observations) if target is None else target
            terms["prediction_loss"] = prediction_loss(*join_batches(prediction, target, valid))
            loss = loss + self.prediction_coef * terms["prediction_loss"]
        terms = {name: term.detach() for name, term in terms.items()}
        return ObjectiveOutput(loss, terms, prediction, target, valid)
