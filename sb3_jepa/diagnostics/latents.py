"""What a set of embeddings looks like, and how far the predictor sees."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_jepa.common import checks


def spectrum(embeddings: th.Tensor) -> th.Tensor:
    """
    Eigenvalues of the embeddings' covariance, largest first: their sum is ``embed_dim`` times the embedding variance,
    and how many of them count is how many dimensions are used.

    :param embeddings: ``(samples, embed_dim)``
    :return: ``(embed_dim,)``
    """
    # In single precision, fewer samples than dimensions may not converge
    centered = (embeddings - embeddings.mean(dim=0)).double()
    eigenvalues = th.linalg.eigvalsh(centered.T @ centered / len(embeddings))
    return eigenvalues.flip(0).clamp(min=0.0).to(embeddings.dtype)


def principal_components(embeddings: th.Tensor, n_components: int = 3) -> tuple[th.Tensor, th.Tensor]:
    """
    Projection on the directions in which the embeddings vary most.

    :param embeddings: ``(samples, embed_dim)``
    :param n_components: Number of directions; what the embeddings do not have is zero
    :return: ``(samples, n_components)``, centred, and the share of the variance that each has, ``(n_components,)``
    """
    n_components = checks.whole_number("n_components", n_components)
    centered = embeddings - embeddings.mean(dim=0)
    _, singular_values, directions = th.linalg.svd(centered, full_matrices=False)
    # Fix the sign, which is arbitrary, so that pictures of two rounds do not differ by it
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    projected = centered @ (directions * largest.sign()).T[:, :n_components]
    shares = singular_values.square() / singular_values.square().sum().clamp(min=th.finfo(embeddings.dtype).tiny)
    n_missing = n_components - projected.shape[1]
    return F.pad(projected, (0, n_missing)), F.pad(shares[:n_components], (0, n_missing))


class Trajectory(NamedTuple):
    """
    One episode as an encoder sees it.

    :param embeddings: Context embeddings ``(steps + 1, embed_dim)``
    :param targets: The same observations as the target encoder sees them ``(steps + 1, embed_dim)``
    :param actions: Encoded actions ``(steps, action_dim)``
    """

    embeddings: th.Tensor
    targets: th.Tensor
    actions: th.Tensor


class UnrolledErrors(NamedTuple):
    """
    Squared errors by horizon, ``(horizon,)`` each, in units of the targets' variance: to guess the mean embedding
    at every step is an error of one.

    :param predictor: The predictor, fed with its own predictions and the true actions
    :param copy: A predictor that repeats the first embedding
    """

    predictor: th.Tensor
    copy: th.Tensor


@th.no_grad()
def unrolled_errors(
    predict: Callable[[th.Tensor, th.Tensor], th.Tensor], trajectories: Sequence[Trajectory], horizon: int = 10
) -> UnrolledErrors:
    r"""
    Unroll the predictor in latent space, :math:`\hat s_{t+h} = g_\phi(\hat s_{t+h-1}, a_{t+h-1})` from
    :math:`\hat s_t = s_t`, and compare it with the true target embeddings, from every step of every episode that goes
    on for long enough.

    :param predict: Maps embeddings ``(batch, embed_dim)`` and encoded actions ``(batch, action_dim)`` to embeddings
    :param trajectories: Episodes
    :param horizon: Number of steps; fewer are returned if no episode is as long
    :return: Errors of the predictor and of the copy
    :raises ValueError: If the horizon is not positive, or there is not a single step
    """
    predict, horizon = checks.function("predict", predict), checks.whole_number("horizon", horizon)
    is_sequence = isinstance(trajectories, Sequence)
    if not is_sequence or not all(isinstance(trajectory, Trajectory) for trajectory in trajectories):
        checks.refuse("trajectories", "a list of Trajectory", trajectories)
    horizon = min(horizon, max((len(trajectory.actions) for trajectory in trajectories), default=0))
    if horizon == 0:
        raise ValueError("`trajectories` must hold an episode of at least one step")
    targets = th.cat([trajectory.targets for trajectory in trajectories])
    variance = targets.var(dim=0, correction=0).sum().clamp(min=th.finfo(targets.dtype).tiny)
    sums = th.zeros(2, horizon, dtype=targets.dtype, device=targets.device)
    counts = th.zeros(horizon, dtype=targets.dtype, device=targets.device)
    for embeddings, true, actions in trajectories:
        unrolled = embeddings[:-1]
        for step in range(min(horizon, len(actions))):
            n_starts = len(actions) - step
            unrolled = predict(unrolled[:n_starts], actions[step:])
            for guess, row in ((unrolled, 0), (embeddings[:n_starts], 1)):
                sums[row, step] += (guess - true[step + 1 :]).square().sum()
            counts[step] += n_starts
    errors = sums / counts / variance
    return UnrolledErrors(errors[0], errors[1])
