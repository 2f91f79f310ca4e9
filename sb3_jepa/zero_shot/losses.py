"""The losses of zero-shot learning, each a pure function."""

import torch as th

from sb3_jepa.zero_shot.networks import project


def temporal_difference_loss(predictions: th.Tensor, targets: th.Tensor, weights: th.Tensor | None = None) -> th.Tensor:
    r"""
    :math:`\frac{1}{2B} \sum_i \lVert T(\varphi(s_i), a_i, z_i) - y_i \rVert^2`, the mean over all predictors
    (*TD-JEPA*, arXiv 2510.00739, algorithm 1; its code leaves out the factor one half).

    :param predictions: ``(predictors, batch, dim)``
    :param targets: ``(batch, dim)``; no gradient flows into them
    :param weights: ``(batch,)``, 0 for what does not count; None if all do
    :return: Scalar
    """
    distances = 0.5 * (predictions - targets.detach()).square().sum(dim=-1)
    if weights is None:
        return distances.mean()
    return (distances.mean(dim=0) * weights).sum() / weights.sum().clamp(min=1.0)


def orthonormality_loss(embeddings: th.Tensor) -> th.Tensor:
    r"""
    :math:`\frac{1}{2B(B-1)} \sum_{i \ne j} (e_i^\top e_j)^2 - \frac{1}{B} \sum_i e_i^\top e_i` (*TD-JEPA*, arXiv
    2510.00739, algorithm 1). Of embeddings of one norm the second term is constant, and what is left makes those of
    different observations orthogonal.

    :param embeddings: ``(batch, dim)``
    :return: Scalar
    """
    n, squares = len(embeddings), embeddings.square().sum(dim=1)
    # The squares of all products are those of the small matrix, too
    gram = embeddings.T @ embeddings
    off_diagonal = (gram.square().sum() - squares.square().sum()) / (2 * n * max(1, n - 1))
    return off_diagonal - squares.mean()


def forward_backward_loss(
    predictions: th.Tensor,
    next_predictions: th.Tensor,
    backward: th.Tensor,
    target_backward: th.Tensor,
    discounts: th.Tensor,
) -> th.Tensor:
    r"""
    The loss of forward-backward representations (Touati and Ollivier 2021, arXiv 2103.07945),
    :math:`\frac{1}{2 B (B-1)} \sum_{i \ne j} (F_i^\top B_j - \gamma \bar F_i^\top \bar B_j)^2 - \frac{1}{B} \sum_i
    F_i^\top B_i`, the mean over all predictors.

    :param predictions: :math:`F(s_i, a_i, z_i)`, ``(predictors, batch, dim)``
    :param next_predictions: :math:`\bar F(s'_i, a'_i, z_i)`, ``(batch, dim)``; no gradient flows into them
    :param backward: :math:`B(s'_j)`, ``(batch, dim)``
    :param target_backward: :math:`\bar B(s'_j)`, ``(batch, dim)``; no gradient flows into them
    :param discounts: :math:`\gamma`, 0 where the episode ended, ``(batch,)``
    :return: Scalar
    """
    n = len(backward)
    measures = predictions @ backward.T
    targets = discounts[:, None] * (next_predictions @ target_backward.T).detach()
    errors = (measures - targets).square()
    diagonal = th.diagonal(errors, dim1=1, dim2=2)
    off_diagonal = (errors.sum(dim=(1, 2)) - diagonal.sum(dim=1)) / (2 * n * max(1, n - 1))
    return (off_diagonal - th.diagonal(measures, dim1=1, dim2=2).mean(dim=1)).mean()


def draw_tasks(n_tasks: int, task_dim: int, device: th.device | str = "cpu") -> th.Tensor:
    r"""
    :param n_tasks: How many
    :param task_dim: Their width
    :param device: PyTorch device
    :return: Task vectors ``(n_tasks, task_dim)`` of norm :math:`\sqrt d`, evenly over all directions
    """
    return project(th.randn(n_tasks, task_dim, device=device))


def fit_task(embeddings: th.Tensor, rewards: th.Tensor, ridge: float = 1e-6) -> th.Tensor:
    r"""
    Least squares of rewards on embeddings, :math:`(\psi^\top \psi / n + \epsilon I)^{-1} \psi^\top r / n`, in double
    precision.

    :param embeddings: Of what the rewards were given for, ``(samples, task_dim)``
    :param rewards: ``(samples,)``
    :param ridge: :math:`\epsilon`, which decides where embeddings do not
    :return: ``(task_dim,)``, not projected
    """
    psi, r = embeddings.double(), rewards.double()
    gram = psi.T @ psi / len(psi) + ridge * th.eye(psi.shape[1], dtype=th.double, device=psi.device)
    return th.linalg.solve(gram, psi.T @ r / len(psi))
