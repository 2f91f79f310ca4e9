"""Gauges of what an encoder learns, cheap enough to be always on."""

from collections import deque
from functools import partial
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common.torch_privates import add_to_each
from sb3_jepa.objectives.output import ObjectiveOutput
from sb3_jepa.parts.losses import covariance_loss, deviation_loss, prediction_loss

# So many of the latest embeddings are kept for what is computed once an update
N_RECENT_EMBEDDINGS = 1024
# The gradients of so many minibatches are kept, of every fourth minibatch
N_RECENT_GRADIENTS = 8
GRADIENTS_APART = 4


@th.no_grad()
def effective_rank(embeddings: th.Tensor) -> th.Tensor:
    r"""
    RankMe: :math:`\exp\left(-\sum_k p_k \log p_k\right)` with :math:`p_k = \sigma_k / \lVert\sigma\rVert_1`, the
    singular values :math:`\sigma` of the embedding matrix (Garrido et al. 2023, arXiv 2210.02885, eq. 1). Between 1,
    all embeddings on one line, and ``embed_dim``.

    :param embeddings: ``(samples, embed_dim)``, more samples than dimensions
    :return: Scalar; NaN if an embedding is not finite, or the computation does not converge
    :raises ValueError: If the embeddings are not two-dimensional
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must have shape (samples, embed_dim), got {tuple(embeddings.shape)}")
    if not th.isfinite(embeddings).all():
        return th.full((), th.nan)
    try:
        singular_values = th.linalg.svdvals(embeddings)
    except th.linalg.LinAlgError:
        # A diagnostic that fails to converge should not end a training
        return th.full((), th.nan)
    p = singular_values / singular_values.sum().clamp(min=th.finfo(embeddings.dtype).tiny)
    return th.exp(th.special.entr(p).sum())


@th.no_grad()
def participation_ratio(embeddings: th.Tensor) -> th.Tensor:
    r"""
    In how many directions the embeddings vary, :math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2` with the eigenvalues
    :math:`\lambda` of their covariance: ``embed_dim`` if they vary equally in all, 1 if in a single one. Unlike
    :func:`effective_rank`, it does not depend on their mean.

    :param embeddings: ``(samples, embed_dim)``
    :return: Scalar; 1 if nothing varies
    """
    centered = embeddings - embeddings.mean(dim=0)
    covariance = centered.T @ centered
    squares = covariance.square().sum()
    return th.where(squares > 0, covariance.trace().square() / squares, 1.0)


class ObjectiveGauge(nn.Module):
    """
    Gathers what an objective says of itself over the minibatches of an update, without waiting for the device. For each
    minibatch it only keeps references; what costs time is computed once an update, in :meth:`scalars`.

    ``first_embedding_variance`` is that of the untrained encoder; 0 until then. It is saved, so that a run that goes on
    knows how it began, and so is ``warned_of_collapse``.
    """

    first_embedding_variance: th.Tensor
    warned_of_collapse: th.Tensor
    warned_of_low_rank: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first_embedding_variance", th.zeros(()))
        self.register_buffer("warned_of_collapse", th.zeros((), dtype=th.bool))
        self.register_buffer("warned_of_low_rank", th.zeros((), dtype=th.bool), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Forget the terms, embeddings and gradients of past minibatches."""
        # Embedding, prediction, target, validity
        self._recent: deque[tuple[th.Tensor, th.Tensor | None, th.Tensor | None, th.Tensor | None]] = deque()
        self._n_recent = 0
        self._gradients: dict[str, deque[th.Tensor]] = {}
        self._is_untrained = float(self.first_embedding_variance) == 0.0
        self._term_sums: dict[str, th.Tensor] = {}
        self.n_minibatches = 0
        self.n_samples = 0

    def __getstate__(self) -> dict[str, Any]:
        # Do not copy or pickle megabytes of embeddings with a policy
        past = ("_recent", "_gradients", "_term_sums")
        return {name: value for name, value in vars(self).items() if name not in past}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.reset()

    @property
    def embed_dim(self) -> int:
        """Width of the latest embedding."""
        return self._recent[-1][0].shape[1]

    def watch_gradient(self, source: str, embedding: th.Tensor) -> th.Tensor:
        """
        Keep the gradient that will flow back into the embedding.

        :param source: Whose gradient it is: ``"rl"`` for that of actor and critic, ``"all"`` for all together
        :param embedding: Of a minibatch, ``(batch, embed_dim)``
        :return: The embedding
        """
        if embedding.requires_grad and self.n_minibatches % GRADIENTS_APART == 0:
            embedding.register_hook(partial(self._keep_gradient, source))
        return embedding

    def _keep_gradient(self, source: str, gradient: th.Tensor) -> None:
        self._gradients.setdefault(source, deque(maxlen=N_RECENT_GRADIENTS)).append(gradient.detach())

    def add(self, embedding: th.Tensor, output: ObjectiveOutput) -> None:
        """
        :param embedding: Of a minibatch, ``(batch, embed_dim)``
        :param output: What the objective made of it
        """
        if self._is_untrained:
            self.first_embedding_variance.copy_(output.terms["embedding_variance"])
            self._is_untrained = False
        prediction = None if output.prediction is None else output.prediction.detach()
        target = None if output.target is None else output.target.detach()
        self._recent.append((embedding.detach(), prediction, target, output.valid))
        self._n_recent += len(embedding)
        while self._n_recent - len(self._recent[0][0]) >= N_RECENT_EMBEDDINGS:
            self._n_recent -= len(self._recent.popleft()[0])
        if not self._term_sums:
            self._term_sums = {name: term.clone() for name, term in output.terms.items()}
        else:
            add_to_each(list(self._term_sums.values()), [output.terms[name] for name in self._term_sums])
        self.n_samples += len(embedding)
        self.n_minibatches += 1

    def means(self) -> dict[str, float]:
        """The terms, averaged over the minibatches since :meth:`reset`; empty if there was none."""
        return {name: float(term_sum) / self.n_minibatches for name, term_sum in self._term_sums.items()}

    @th.no_grad()
    def scalars(self) -> dict[str, float]:
        """
        The terms, averaged over the minibatches since :meth:`reset`, and of the latest minibatches, those with the last
        1,024 embeddings:

        - ``effective_rank`` and ``participation_ratio``, see :func:`effective_rank` and :func:`participation_ratio`
        - ``smallest_deviation`` and ``largest_deviation``: standard deviations of single dimensions
        - ``deviation_loss`` and ``covariance_loss``, if the objective has no such terms
        - ``prediction_to_copy_ratio``: the prediction loss divided by that of a predictor that copies, which takes the
          context embedding for the next one. From 1 on, the predictor knows nothing.
        - ``target_cosine``: mean cosine between context embedding and target
        - ``rl_gradient_norm`` and ``jepa_gradient_norm``: norms of the gradients that reach the encoder's output, and
          ``gradient_cosine`` between the two, averaged over 8 minibatches. Where the embedding goes to one of them
          only, that one: masked prediction makes tokens of its own, and its gradient does not pass here.

        :return: Empty if there was no minibatch
        """
        scalars = self.means()
        if not self._recent:
            return scalars
        embeddings = th.cat([kept[0] for kept in self._recent])
        for name, term in (("deviation_loss", deviation_loss), ("covariance_loss", covariance_loss)):
            if name not in scalars:
                scalars[name] = float(term(embeddings))
        # Contiguous rows are many times faster
        deviations = embeddings.T.contiguous().std(dim=1, correction=0)
        scalars["smallest_deviation"] = float(deviations.min())
        scalars["largest_deviation"] = float(deviations.max())
        scalars["effective_rank"] = float(effective_rank(embeddings))
        scalars["participation_ratio"] = float(participation_ratio(embeddings))
        return {**scalars, **self._of_predictions(embeddings), **self._of_gradients()}

    def _of_predictions(self, embeddings: th.Tensor) -> dict[str, float]:
        _, predictions, targets, valids = zip(*self._recent, strict=True)
        if any(prediction is None for prediction in predictions):
            return {}
        prediction, target = th.cat(predictions), th.cat(targets)
        # Some objectives predict something else than one embedding for each sample
        if prediction.shape != embeddings.shape:
            return {}
        valid = th.ones_like(embeddings[:, 0]) if valids[0] is None else th.cat(valids)
        cosine = F.cosine_similarity(embeddings, target) * valid
        scalars = dict(target_cosine=float(cosine.sum() / valid.sum().clamp(min=1.0)))
        copy_loss = float(prediction_loss(embeddings, target, valid))
        # Zero if all embeddings are equal, or no pair counts
        if copy_loss > 0.0:
            scalars["prediction_to_copy_ratio"] = float(prediction_loss(prediction, target, valid)) / copy_loss
        return scalars

    def _of_gradients(self) -> dict[str, float]:
        of_all, of_rl = (list(self._gradients.get(source, ())) for source in ("all", "rl"))
        # Take the difference from the sum, which is computed anyway: another backward pass would change the rounding
        of_jepa = [both - rl for both, rl in zip(of_all, of_rl, strict=False)] if of_rl else of_all
        if of_rl and not any(gradient.any() for gradient in of_jepa):
            of_jepa = []
        scalars = {
            f"{source}_gradient_norm": float(th.stack([gradient.norm() for gradient in gradients]).mean())
            for source, gradients in (("rl", of_rl), ("jepa", of_jepa))
            if gradients
        }
        if of_rl and of_jepa:
            pairs = zip(of_rl, of_jepa, strict=False)
            cosines = [F.cosine_similarity(rl.flatten(), jepa.flatten(), dim=0) for rl, jepa in pairs]
            scalars["gradient_cosine"] = float(th.stack(cosines).mean())
        return scalars
