"""JEPA for RL: predict the next observation's embedding, given the action."""

import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.ranks import join_batches
from sb3_jepa.objectives.objective import Momentum, Objective
from sb3_jepa.objectives.output import ObjectiveInput
from sb3_jepa.parts.losses import prediction_loss
from sb3_jepa.parts.predictors import ActionConditionedPredictor


class NextLatentPrediction(Objective):
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
    :param momentum: ``m`` of the target encoder in [0, 1]; or a pair, its values at the start and at the end of the
        training; or a schedule of the remaining progress (from 1 to 0)
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

    needs_actions = True
    needs_next_observations = True
    horizon = 1

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        action_dim: int,
        momentum: Momentum = 0.99,
        prediction_coef: float = 0.2,
        variance_coef: float = 0.0,
        deviation_coef: float = 0.2,
        covariance_coef: float = 0.01,
        hidden_dim: int = 128,
        predictor_gain: float | None = None,
        target_refresh: str = "step",
    ):
        super().__init__(
            encoder, embed_dim, action_dim, momentum, prediction_coef, variance_coef, deviation_coef, covariance_coef
        )
        self.target_refresh = checks.choice("target_refresh", target_refresh, ("step", "epoch", "rollout"))
        predictor_gain = checks.optional(checks.number, "predictor_gain", predictor_gain, above=0)
        self.predictor = ActionConditionedPredictor(embed_dim, action_dim, hidden_dim, predictor_gain)

    def predict(self, batch: ObjectiveInput) -> tuple[th.Tensor, th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """
        :param batch: What it learns from: embedding, actions and next observations (or their target)
        :return: The prediction loss, the predicted embeddings ``(batch, embed_dim)``, what they should have been, and
            no further terms
        """
        assert batch.embedding is not None
        assert batch.actions is not None
        prediction = self.predictor(batch.embedding, batch.actions)
        target = self.target_encoder(batch.next_observations) if batch.target is None else batch.target
        return prediction_loss(*join_batches(prediction, target, batch.valid)), prediction, target, {}
