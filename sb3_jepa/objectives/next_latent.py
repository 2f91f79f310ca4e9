"""JEPA for RL: predict the next observation's embedding, given the action."""

from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.common.ranks import join_batches
from sb3_jepa.objectives.objective import Objective
from sb3_jepa.objectives.output import ObjectiveInput, ObjectiveOutput
from sb3_jepa.parts.heads import InverseDynamics
from sb3_jepa.parts.losses import prediction_loss, weighted_mean
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

    With ``steps_ahead=K`` the predictor goes on from its own guess, over the actions that were taken, as in *SPR*
    (Schwarzer et al. 2021, arXiv 2007.05929):

    .. math:: \hat s_0 = s_{x_0}, \quad \hat s_{k+1} = g_\phi(\hat s_k, a_k), \quad
              L_\mathrm{prediction} = \frac{\sum_k v_k \lVert \hat s_{k+1} - \mathrm{sg}(s_{y_k}) \rVert_2^2}
              {\sum_k v_k}

    with :math:`y_k` the observation after the action :math:`a_k`, and :math:`v_k` 1 as long as the episode lasts, then
    0. What differs from SPR: the mean over all these pairs, where SPR sums over the steps, so that ``prediction_coef``
    means the same for each ``K``; the distance of the embeddings themselves, where SPR projects and normalises them;
    and all targets come from one pass of the target encoder.

    Each of three heads has a weight of its own, and is made only if that is above 0. Reward (squared error) and end of
    the episode (binary cross entropy) are linear in the predicted embeddings :math:`\hat s_{k+1}`. They count while the
    episode lasts, and where it ends even if its last observation is unknown. The inverse dynamics guesses the encoded
    action :math:`a_0` from :math:`s_{x_0}` and :math:`s_{y_0}` (squared error, as of the prediction), see
    :class:`~sb3_jepa.parts.InverseDynamics`.

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
    :param steps_ahead: Number of steps ``K`` that the predictor is unrolled; 1 as in the paper
    :param reward_coef: Weight of the squared error of the rewards
    :param end_coef: Weight of the cross entropy of the ends of episodes; one that was truncated has not ended
    :param inverse_coef: Weight of the squared error of the inverse dynamics
    :param random_shift: By how many pixels images are shifted at random before they are embedded; 0 for none
    :param kwargs: The momentum and the coefficients of :class:`Objective`
    :raises ValueError: If the momentum leaves [0, 1], a coefficient is negative, ``target_refresh`` is none of these,
        ``steps_ahead`` is less than 1, ``random_shift`` is negative, or a head has a weight and the prediction has none
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
        steps_ahead: int = 1,
        reward_coef: float = 0.0,
        end_coef: float = 0.0,
        inverse_coef: float = 0.0,
        random_shift: int = 0,
        **kwargs: Any,
    ):
        defaults = dict(prediction_coef=0.2, deviation_coef=0.2, covariance_coef=0.01)
        super().__init__(encoder, embed_dim, action_dim, **{**defaults, **kwargs})
        self.target_refresh = checks.choice("target_refresh", target_refresh, ("step", "epoch", "rollout"))
        predictor_gain = checks.optional(checks.number, "predictor_gain", predictor_gain, above=0)
        self.horizon = checks.whole_number("steps_ahead", steps_ahead)
        self.random_shift = checks.whole_number("random_shift", random_shift, 0)
        coefs = dict(reward_coef=reward_coef, end_coef=end_coef, inverse_coef=inverse_coef)
        coefs = {name: checks.number(name, coef, least=0) for name, coef in coefs.items()}
        weighted = [name for name, coef in coefs.items() if coef > 0]
        if weighted and self.prediction_coef == 0:
            raise ValueError(
                f"`{'`, `'.join(weighted)}` must be 0 without a prediction, got "
                f"{', '.join(str(coefs[name]) for name in weighted)}: the heads read what is predicted, give "
                "`prediction_coef` a value above 0"
            )
        self.term_coefs = {name.replace("_coef", "_loss"): coefs[name] for name in weighted}
        self.needs_rewards = coefs["reward_coef"] > 0 or coefs["end_coef"] > 0
        self.predictor = ActionConditionedPredictor(embed_dim, action_dim, hidden_dim, predictor_gain)
        # After the predictor: what it begins with does not depend on them
        if coefs["reward_coef"] > 0:
            self.reward_head = nn.Linear(embed_dim, 1)
        if coefs["end_coef"] > 0:
            self.end_head = nn.Linear(embed_dim, 1)
        if coefs["inverse_coef"] > 0:
            self.inverse_head = InverseDynamics(embed_dim, action_dim, hidden_dim)

    def unroll(self, embedding: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param embedding: Context embedding ``(batch, embed_dim)``
        :param actions: Encoded actions ``(batch, action_dim)``; for a horizon above 1 ``(batch, horizon, action_dim)``
        :return: Predicted embeddings ``(batch, embed_dim)``; for a horizon above 1 ``(batch, horizon, embed_dim)``
        :raises ValueError: If the actions are no windows of ``steps_ahead`` steps
        """
        if self.horizon == 1:
            return self.predictor(embedding, actions)
        if actions.ndim != 3 or actions.shape[1] != self.horizon:
            raise ValueError(
                f"`steps_ahead={self.horizon}` needs windows of actions (batch, {self.horizon}, action_dim), got "
                f"{tuple(actions.shape)}: pass a JepaCallback to learn(), which tells the buffer"
            )
        predictions = []
        for actions_of_step in actions.unbind(dim=1):
            embedding = self.predictor(embedding, actions_of_step)
            predictions.append(embedding)
        return th.stack(predictions, dim=1)

    def prediction_output(self, batch: ObjectiveInput) -> ObjectiveOutput:
        """
        :param batch: What it learns from: embedding, actions and next observations (or their target); rewards and ends
            of episodes, if their heads have a weight
        :return: The prediction loss, those of single steps and of the heads, the predicted embeddings of the first step
            ``(batch, embed_dim)`` and what they should have been
        :raises ValueError: If the batch lacks windows, rewards or ends that it learns from
        """
        assert batch.embedding is not None
        assert batch.actions is not None
        prediction = self.unroll(batch.embedding, batch.actions)
        target = self.target_encoder(batch.next_observations) if batch.target is None else batch.target
        if self.horizon > 1 and target.ndim == 2:
            # One pass for the observations of all steps
            target = target.view_as(prediction)
        joined = join_batches(prediction, target, batch.valid)
        loss = prediction_loss(*joined)
        terms = self._losses_of_heads(batch, prediction, target)
        if self.horizon == 1:
            return ObjectiveOutput(loss, terms, prediction, target, batch.valid)
        terms.update(self._losses_of_steps(*joined))
        return ObjectiveOutput(loss, terms, prediction[:, 0], target[:, 0], _first_step(batch.valid))

    @th.no_grad()
    def _losses_of_steps(
        self, prediction: th.Tensor, target: th.Tensor, valid: th.Tensor | None
    ) -> dict[str, th.Tensor]:
        valids = [None] * self.horizon if valid is None else valid.unbind(dim=1)
        steps = zip(prediction.unbind(dim=1), target.unbind(dim=1), valids, strict=True)
        return {f"prediction_loss_step_{k}": prediction_loss(*step) for k, step in enumerate(steps, start=1)}

    def _losses_of_heads(self, batch: ObjectiveInput, prediction: th.Tensor, target: th.Tensor) -> dict[str, th.Tensor]:
        losses = {}
        if self.needs_rewards:
            if batch.rewards is None or batch.ends is None:
                raise ValueError(
                    "`reward_coef` and `end_coef` need rewards and ends of episodes, got a batch without them: pass a "
                    "JepaCallback to learn(), which tells the buffer, or set both to 0"
                )
            # A step that ended the episode belongs to it, whether or not its last observation is known
            weights = None if batch.valid is None else batch.valid.maximum(batch.ends)
            if "reward_loss" in self.term_coefs:
                guesses = self.reward_head(prediction).squeeze(-1)
                guesses, rewards, joined_weights = join_batches(guesses, batch.rewards, weights)
                losses["reward_loss"] = weighted_mean((guesses - rewards).square(), joined_weights)
            if "end_loss" in self.term_coefs:
                logits = self.end_head(prediction).squeeze(-1)
                logits, ends, joined_weights = join_batches(logits, batch.ends, weights)
                entropies = F.binary_cross_entropy_with_logits(logits, ends, reduction="none")
                losses["end_loss"] = weighted_mean(entropies, joined_weights)
        if "inverse_loss" in self.term_coefs:
            assert batch.embedding is not None
            assert batch.actions is not None
            actions, led_to, valid = batch.actions, target, batch.valid
            if self.horizon > 1:
                actions, led_to, valid = actions[:, 0], led_to[:, 0], _first_step(valid)
            guesses = self.inverse_head(batch.embedding, led_to)
            losses["inverse_loss"] = prediction_loss(*join_batches(guesses, actions, valid))
        return losses


def _first_step(valid: th.Tensor | None) -> th.Tensor | None:
    return None if valid is None else valid[:, 0]
