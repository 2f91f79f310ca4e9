"""Loss terms, each a pure function, and :func:`attach_loss`, which adds one to the loss of other code."""

import math
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_jepa.common import checks


def weighted_mean(values: th.Tensor, weights: th.Tensor | None = None) -> th.Tensor:
    """
    :param values: ``(batch, ...)``
    :param weights: Of the values, such as ``(batch,)`` or ``(batch, horizon)``: axes that they lack at the end, or that
        are 1, have the same weight all along. None if all are 1.
    :return: Scalar; 0 if all weights are 0
    """
    if weights is None:
        return values.mean()
    weights = weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim)).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


def prediction_loss(prediction: th.Tensor, target: th.Tensor, valid: th.Tensor | None = None) -> th.Tensor:
    r"""
    Squared Euclidean distance, averaged over the batch: :math:`\lVert \hat s_y - s_y \rVert_2^2`
    (*JEPA for RL*, arXiv 2504.16591, eq. 1).

    :param prediction: Predicted embedding ``(batch, embed_dim)``, or several, ``(batch, horizon, embed_dim)``
    :param target: Target embedding of the same shape; no gradient flows into it
    :param valid: ``(batch,)`` or ``(batch, horizon)``, 1 for pairs that count and 0 for those that do not; ``None``
        when all do
    :return: Scalar; 0 if no pair counts
    :raises ValueError: If the shapes differ
    """
    if prediction.shape != target.shape or prediction.ndim not in (2, 3):
        raise ValueError(
            "prediction and target must have one shape (batch, embed_dim) or (batch, horizon, embed_dim), "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    distance = (prediction - target.detach()).square().sum(dim=-1)
    if valid is not None and valid.shape not in (distance.shape, distance.shape[:1]):
        raise ValueError(f"valid must have shape (batch,) or {tuple(distance.shape)}, got {tuple(valid.shape)}")
    return weighted_mean(distance, valid)


def embedding_variance(embedding: th.Tensor) -> th.Tensor:
    r"""
    Variance over the batch, mean over the dimensions: :math:`\frac{1}{d}\sum_i \mathrm{Var}(s_x)_i`. The
    paper calls an encoder collapsed if it is below 1e-7. It is the population variance, so that a batch of one gives 0
    and not NaN.

    :param embedding: ``(batch, embed_dim)``
    :return: Scalar
    :raises ValueError: If the embedding is not two-dimensional
    """
    if embedding.ndim != 2:
        raise ValueError(f"embedding must have shape (batch, embed_dim), got {tuple(embedding.shape)}")
    return embedding.var(dim=0, correction=0).mean()


def variance_loss(variance: th.Tensor) -> th.Tensor:
    r"""
    Reward for variance, up to 1: :math:`-\min\left(1, \frac{1}{d}\sum_i \mathrm{Var}(s_x)_i\right)`
    (*JEPA for RL*, arXiv 2504.16591, eq. 2). It bounds the mean over the dimensions only: single ones may collapse.

    :param variance: The embedding variance, see :func:`embedding_variance`
    :return: Scalar in [-1, 0]
    """
    return -variance.clamp(max=1.0)


def deviation_loss(embedding: th.Tensor, epsilon: float = 1e-4) -> th.Tensor:
    r"""
    Hinge on the standard deviation of every dimension over the batch,
    :math:`\frac{1}{d}\sum_i \max\left(0, 1 - \sqrt{\mathrm{Var}(s_x)_i + \epsilon}\right)`
    (*VICReg*, arXiv 2105.04906, eq. 1). Unlike :func:`variance_loss`, it pulls the harder the less a dimension varies,
    and lets no single one collapse.

    :param embedding: ``(batch, embed_dim)``
    :param epsilon: Keeps the gradient finite where a dimension does not vary at all
    :return: Scalar in [0, 1]
    """
    epsilon = checks.number("epsilon", epsilon, least=0)
    return F.relu(1.0 - (embedding.var(dim=0, correction=0) + epsilon).sqrt()).mean()


def covariance_loss(embedding: th.Tensor) -> th.Tensor:
    r"""
    Squared covariance of different dimensions, :math:`\frac{1}{d}\sum_{i \ne j} \mathrm{Cov}(s_x)_{ij}^2` (*VICReg*,
    arXiv 2105.04906, eq. 4), so that dimensions do not repeat each other.

    :param embedding: ``(batch, embed_dim)``
    :return: Scalar
    """
    centered = embedding - embedding.mean(dim=0)
    covariance = centered.T @ centered / max(1, len(embedding) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / embedding.shape[1]


class _AttachLoss(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: th.Tensor, loss: th.Tensor, scale: float | th.Tensor) -> th.Tensor:
        ctx.dtype, ctx.scale = loss.dtype, scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, th.Tensor, None]:  # type: ignore[override]
        return grad, th.as_tensor(ctx.scale, dtype=ctx.dtype, device=grad.device), None


def attach_loss(tensor: th.Tensor, loss: th.Tensor, scale: float | th.Tensor = 1.0) -> th.Tensor:
    """
    Add ``loss`` to the loss that is computed from the returned tensor: the identity in the forward pass, a gradient of
    ``scale`` into ``loss`` in the backward pass. Stable-Baselines3's own ``loss.backward()`` then trains both, with its
    gradient clipping and one optimiser step, and its ``train()`` stays as it is.

    If the other loss is divided before ``backward()``, to accumulate gradients, or multiplied, by a ``GradScaler``,
    ``scale`` must be that factor.

    :param tensor: A tensor on the way to the other loss
    :param loss: Scalar loss to attach
    :param scale: What the other loss is multiplied by: a positive number, or a scalar tensor
    :return: ``tensor``, with the loss attached
    :raises ValueError: If ``loss`` is not a scalar, or ``scale`` is neither a positive number nor a scalar tensor
    """
    if loss.ndim != 0:
        raise ValueError(f"The attached loss must be a scalar, got shape {tuple(loss.shape)}")
    # Do not check the value of a tensor: that would wait for its device
    if scale.ndim != 0 if isinstance(scale, th.Tensor) else not 0.0 < scale < math.inf:
        raise ValueError(f"`scale` of an attached loss must be a positive number or a scalar tensor, got {scale}")
    return _AttachLoss.apply(tensor, loss, scale)
