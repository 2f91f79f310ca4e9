"""JEPA for RL: predict the next observation's embedding, given the action."""

from typing import Any

from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.ranks import join_batches
from sb3_jepa.objectives.objective import Objective
from sb3_jepa.objectives.output import ObjectiveInput, ObjectiveOutput
from sb3_jepa.parts.losses import prediction_loss
from sb3_jepa.parts.predictors import ActionConditionedPredictor


class NextLatentPrediction(Objective):
    r"""
    *JEPA for RL* (Kenneweg, Kenneweg, Hammer 2025, arXiv 2504.16591): a predictor that knows the action guesses the
    embedding of the next observation as a momentum copy of the encoder sees it,

    .. math:: L = c_p\,\lVert g_\phi(s_x, a) - \mathrm{sg}(s_y) \rVert_2^2
              - c_v \min\left(1, \frac{1}{d}\sum_i \mathrm{Var}(s_x)_i\right)

    (eq. 1 and 2), with :math:`s_x = f_\theta(x)` and :math:`s_y = f_{\bar\theta}(y)`. It is the default::

        from sb3_jepa import PPO, NextLatentPrediction

        policy_kwargs = dict(objective_class=NextLatentPrediction, objective_kwargs=dict(momentum=0.99))
        PPO("JepaPolicy", "CartPole-v1", policy_kwargs=policy_kwargs).learn(10_000)

    What differs from the paper: its variance loss has no weight by default, and the two terms of *VICReg* (arXiv
    2105.04906) keep every dimension alive, and different from the others. By default ``prediction_coef`` and
    ``deviation_coef`` are 0.2, and ``covariance_coef`` is 0.01. With ``prediction_coef=1`` and 0 for these two, it is
    the paper's objective.

    :param encoder: The context encoder; the target encoder starts as its copy
    :param embed_dim: Width of the embedding
    :param action_dim: Width of the encoded action
    :param hidden_dim: Hidden width of the predictor
    :param predictor_gain: Gain of the predictor's initialisation, see
        :class:`~sb3_jepa.parts.ActionConditionedPredictor`; ``None`` for PyTorch's own
    :param target_refresh: For how long target embeddings hold: ``"step"``, the target encoder embeds every minibatch
        anew, as in the paper; ``"epoch"``, all of a rollout once for each pass over it; ``"rollout"``, once for all
        passes, which is the fastest. (The target encoder itself always moves on after each step.) Alternating training,
        which goes over a rollout once, and training without a :class:`~sb3_jepa.JepaCallback` embed every minibatch.
    :param kwargs: The momentum and the coefficients of :class:`Objective`
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
        hidden_dim: int = 128,
        predictor_gain: float | None = None,
        target_refresh: str = "step",
        **kwargs: Any,
    ):
        defaults = dict(prediction_coef=0.2, deviation_coef=0.2, covariance_coef=0.01)
        super().__init__(encoder, embed_dim, action_dim, **{**defaults, **kwargs})
        self.target_refresh = checks.choice("target_refresh", target_refresh, ("step", "epoch", "rollout"))
        predictor_gain = checks.optional(checks.number, "predictor_gain", predictor_gain, above=0)
        self.predictor = ActionConditionedPredictor(embed_dim, action_dim, hidden_dim, predictor_gain)

    def prediction_output(self, batch: ObjectiveInput) -> ObjectiveOutput:
        """
        :param batch: What it learns from: embedding, actions and next observations (or their target)
        :return: The prediction loss, the predicted embeddings ``(batch, embed_dim)`` and what they should have been
        """
        assert batch.embedding is not None
        assert batch.actions is not None
        prediction = self.predictor(batch.embedding, batch.actions)
        target = self.target_encoder(batch.next_observations) if batch.target is None else batch.target
        loss = prediction_loss(*join_batches(prediction, target, batch.valid))
        return ObjectiveOutput(loss, {}, prediction, target, batch.valid)
