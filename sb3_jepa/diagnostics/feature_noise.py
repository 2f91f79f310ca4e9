r"""
Which features are noise: what a reconstruction loss would chase and a JEPA skip, from observations alone.

*How JEPA Avoids Noisy Features* (Littwin et al. 2024, arXiv 2407.03475) trains deep linear encoders from a small start.
They learn feature by feature, and when they learn feature :math:`i` depends on two numbers: its cross-covariance
:math:`\lambda_i = \mathbb E[y_i x_i]` of two views, here an observation and a later one, and its regression
coefficient :math:`\rho_i = \lambda_i / \sigma^2_i`, how well :math:`x_i` predicts :math:`y_i`. Reconstruction learns in
the order of :math:`\lambda`, a JEPA the more in that of :math:`\rho` the deeper its encoder is.

:math:`\lambda` has units: what is measured in millimetres is learned before what is measured in metres. Give the
features as the loss would see them (normalised if the encoder's inputs are).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from sb3_jepa.common import checks
from sb3_jepa.common.random_numbers import isolated_random_numbers

# Observations of more features, such as images, are replaced by their principal components
MAX_FEATURES = 64
# With more layers, learning times can no longer be told apart
MAX_DEPTH = 1000
# A JEPA skips a feature if learning it takes longer, by this factor, than one that reconstruction learns later
MARGIN = 1.25
# A variance below this share of the largest is a rounding error
RANK_TOLERANCE = 1e-9
# From this share of off-diagonal mass on, the table says that it is only approximate
LARGE_OFF_DIAGONAL = 0.1


def jepa_learning_times(lambda_: np.ndarray, rho: np.ndarray, depth: int = 4, scale: float = 0.01) -> np.ndarray:
    r"""
    When a deep linear JEPA learns each feature, to leading orders in the scale of its start:
    :math:`t = \frac{1}{\lambda} \sum_{n=1}^{2L-1} \frac{1}{n \rho^{2L-n-1} \epsilon^{n/L}}` (Littwin et al. 2024,
    arXiv 2407.03475, theorem 4.5, divided by :math:`L`: in the time of gradient flow, of which the paper's clock shows
    :math:`L` times as much). It comes too late where :math:`\epsilon^{1/L} / \rho` is not small.

    :param lambda_: Cross-covariances of the features, ``(features,)``
    :param rho: Their regression coefficients, ``(features,)``
    :param depth: Number of layers :math:`L` of the encoder
    :param scale: :math:`\epsilon`, what the encoder multiplies every feature with at the start
    :return: ``(features,)``, infinite where ``lambda_`` is not positive: that is never learned
    :raises ValueError: If ``depth`` is less than 1, or ``scale`` is not between 0 and 1
    """
    depth = checks.whole_number("depth", depth, most=MAX_DEPTH)
    scale = checks.number("scale", scale, above=0, below=1)
    lambda_, rho = np.asarray(lambda_, np.float64), np.asarray(rho, np.float64)
    times = np.full(lambda_.shape, np.inf)
    is_learned = (lambda_ > 0.0) & (rho > 0.0)
    n = np.arange(1, 2 * depth)
    with np.errstate(divide="ignore", over="ignore"):
        terms = 1.0 / (n * rho[is_learned, None] ** (2 * depth - n - 1) * scale ** (n / depth))
        times[is_learned] = terms.sum(axis=1) / lambda_[is_learned]
    return times


@dataclass(frozen=True, eq=False)
class FeatureNoise:
    r"""
    What :func:`feature_noise` found, per feature. ``print`` shows it as a table.

    :param names: Of the features
    :param sigma2: Variances :math:`\sigma^2`, ``(features,)``
    :param lambda_: Covariances :math:`\lambda` of a feature and its later self, ``(features,)``
    :param rho: :math:`\rho = \lambda / \sigma^2`, ``(features,)``; 0 for constant features
    :param jepa_times: When a deep linear JEPA learns them, see :func:`jepa_learning_times`, ``(features,)``
    :param off_diagonal: How far the features are from the paper's assumption that :math:`\Sigma_{xx}` and
        :math:`\Sigma_{yx}` are diagonal: the share of their squared entries that is off the diagonal, every feature in
        units of its deviation. Chance alone gives about ``features / samples``.
    :param eigenvalues: What takes the place of ``rho`` if ``off_diagonal`` is large: the generalised eigenvalues of
        :math:`((\Sigma_{yx} + \Sigma_{yx}^T) / 2, \Sigma_{xx})`, the largest first. Those of the diagonal case are
        ``rho``, in order.
    :param canonical_correlations: Singular values of
        :math:`\Sigma_{yy}^{-1/2} \Sigma_{yx} \Sigma_{xx}^{-1/2}`, the largest first: without units, and right for
        processes that are not reversible, too: for a quarter turn these are 1 and the eigenvalues are 0. With not many
        more samples than features they come out too large.
    :param n_samples: Number of pairs
    """

    names: tuple[str, ...]
    sigma2: np.ndarray
    lambda_: np.ndarray
    rho: np.ndarray
    jepa_times: np.ndarray
    off_diagonal: float
    eigenvalues: np.ndarray
    canonical_correlations: np.ndarray
    n_samples: int

    @property
    def reconstruction_order(self) -> np.ndarray:
        """Numbers of the features as a reconstruction loss learns them, by ``lambda_``: the first one first."""
        return np.argsort(-self.lambda_, kind="stable")

    @property
    def jepa_order(self) -> np.ndarray:
        """Numbers of the features as a very deep JEPA learns them, by ``rho``: the first one first."""
        return np.argsort(-self.rho, kind="stable")

    @property
    def noise_scores(self) -> np.ndarray:
        """
        ``(features,)``: the share of the other features before which reconstruction learns this one (its ``lambda_`` is
        larger), although a JEPA takes longer for it (its time is more than 1.25 times theirs). 0: no noise.
        """
        before = self.lambda_[:, None] > self.lambda_[None]
        longer = self.jepa_times[:, None] > MARGIN * self.jepa_times[None]
        n_others = max(1, int((self.sigma2 > 0.0).sum()) - 1)
        return (before & longer).sum(axis=1) / n_others

    @property
    def distractors(self) -> tuple[str, ...]:
        """Names of the features that a reconstruction loss chases and a JEPA skips: their noise score is not 0."""
        return tuple(name for name, score in zip(self.names, self.noise_scores, strict=True) if score > 0.0)

    def table(self) -> str:
        """All of it as text, one line for each feature."""
        width = max(len("feature"), *map(len, self.names))
        header = (
            f"{'feature':{width}} {'sigma2':>10} {'lambda':>10} {'rho':>7} {'reconstr.':>9} {'JEPA':>5} {'noise':>6}"
        )
        place, jepa_place = np.argsort(self.reconstruction_order) + 1, np.argsort(self.jepa_order) + 1
        lines = [header]
        for i, name in enumerate(self.names):
            numbers = (
                f"{self.sigma2[i]:10.4g} {self.lambda_[i]:10.4g} {self.rho[i]:7.3f} {place[i]:9d} {jepa_place[i]:5d}"
            )
            lines.append(f"{name:{width}} {numbers} {self.noise_scores[i]:6.2f}")
        chased = ", ".join(self.distractors) or "nothing"
        lines.append(f"A reconstruction loss chases, and a deep JEPA skips: {chased} ({self.n_samples} pairs)")
        lines.append(f"Off the diagonal: {self.off_diagonal:.0%} of the squared entries")
        if self.off_diagonal > LARGE_OFF_DIAGONAL:
            eigenvalues = " ".join(f"{value:.3f}" for value in self.eigenvalues)
            lines.append(f"The features depend on each other; in the place of rho: {eigenvalues}")
        return "\n".join(lines)

    __str__ = table


def principal_components(
    observations: np.ndarray, next_observations: np.ndarray, components: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Both views along the directions in which the first one varies most.

    :param observations: ``(samples, features)``
    :param next_observations: ``(samples, features)``
    :param components: Number of directions; fewer are used where there are not as many
    :return: Two arrays ``(samples, components)``
    :raises ValueError: If ``components`` is less than 1
    """
    if (observations == observations[0]).all():
        # If nothing varies, the components would be those of rounding errors
        return np.zeros((len(observations), 1)), np.zeros((len(observations), 1))
    x = th.as_tensor(observations)
    x = x if x.dtype == th.float64 else x.float()
    mean = x.mean(dim=0)
    # Compute more directions than asked for, so that these are exact; with a fixed seed, so that they are the same
    n_directions = min(components + 8, *x.shape)
    with isolated_random_numbers(0):
        _, deviations, directions = th.pca_lowrank(x, n_directions, center=True, niter=4)
    # Smaller deviations are rounding errors of float32
    has_variance = deviations > 1e-5 * deviations[0]
    directions = directions[:, has_variance][:, :components]
    y = th.as_tensor(next_observations).to(x.dtype)
    return ((x - mean) @ directions).numpy(), ((y - mean) @ directions).numpy()


def feature_noise(
    observations: Any,
    next_observations: Any,
    names: Sequence[str] | None = None,
    components: int | None = 16,
    depth: int = 4,
) -> FeatureNoise:
    r"""
    Which features a reconstruction loss chases and a JEPA skips (Littwin et al. 2024, arXiv 2407.03475).

    A feature counts as a distractor if there is another one that reconstruction, going by :math:`\lambda`, learns
    later, and that a deep linear JEPA learns sooner: the feature takes it more than 1.25 times as long (theorem 4.5).
    So it depends on company: where all are equally noisy, none is. A loss that reconstructs the very observation that
    it sees, not a later one, has :math:`\lambda = \sigma^2`, and goes by the variance. Noise that is new in every step
    has :math:`\lambda = 0`, but for chance: neither loss learns it that looks ahead.

    It tells predictable from unpredictable, and not relevant from irrelevant: a clock is never a distractor.

    :param observations: :math:`x`, ``(samples, ...)``; all but the first dimension are flattened
    :param next_observations: :math:`y`, what followed on each of them some steps later; of the same shape
    :param names: Of the features; by default ``x[0]``, ``x[1]``, ...
    :param components: Without ``names``, more than 64 features, as of images, are replaced by this many principal
        components of :math:`x`, in which :math:`\Sigma_{xx}` is diagonal. ``None``: never.
    :param depth: Number of layers of the linear encoder whose learning times are compared
    :return: The findings
    :raises ValueError: If the shapes differ, there are fewer than 2 samples or no features, a number is NaN or
        infinite, there are not as many names as features, or ``components`` or ``depth`` is less than 1
    """
    depth = checks.whole_number("depth", depth, most=MAX_DEPTH)
    x, y, names = named_features(observations, next_observations, names, components)
    x, y = x.astype(np.float64), y.astype(np.float64)
    is_constant = np.ptp(x, axis=0) == 0.0
    x_centered, y_centered = x - x.mean(axis=0), y - y.mean(axis=0)
    sigma2 = np.where(is_constant, 0.0, x_centered.var(axis=0))
    lambda_ = np.where(is_constant, 0.0, (x_centered * y_centered).mean(axis=0))
    rho = np.divide(lambda_, sigma2, out=np.zeros_like(lambda_), where=sigma2 > 0.0)
    x_varying = x_centered[:, sigma2 > 0.0] / np.sqrt(sigma2[sigma2 > 0.0])
    y_varying = y_centered[:, sigma2 > 0.0] / np.sqrt(sigma2[sigma2 > 0.0])
    return FeatureNoise(
        tuple(names),
        sigma2,
        lambda_,
        rho,
        jepa_learning_times(lambda_, rho, depth),
        *_off_diagonal(x_varying, y_varying),
        n_samples=len(x),
    )


def named_features(
    observations: Any,
    next_observations: Any,
    names: Sequence[str] | None = None,
    components: int | None = 16,
    prefix: str = "x",
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """
    What :func:`feature_noise` looks at.

    :param observations: As there
    :param next_observations: As there
    :param names: As there
    :param components: As there
    :param prefix: What the names begin with if none are given
    :return: Two arrays ``(samples, features)`` and the names of the features
    :raises ValueError: As there
    """
    components = checks.optional(checks.whole_number, "components", components)
    names = checks.optional(checks.texts, "names", names)
    views = []
    for name, view in (("observations", observations), ("next_observations", next_observations)):
        array = view.detach().cpu().numpy() if isinstance(view, th.Tensor) else np.asarray(view)
        if array.ndim == 0 or len(array) < 2 or array.size == 0:
            raise ValueError(f"{name} must have shape (samples, features) with at least 2 samples, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
        views.append(array)
    if views[0].shape != views[1].shape:
        raise ValueError(
            "observations and next_observations must have one shape (samples, features), "
            f"got {views[0].shape} and {views[1].shape}"
        )
    x, y = (view.reshape(len(view), -1) for view in views)
    if names is None:
        if components is not None and x.shape[1] > MAX_FEATURES:
            (x, y), prefix = principal_components(x, y, components), f"{prefix}.component"
        return x, y, [f"{prefix}[{i}]" for i in range(x.shape[1])]
    if len(names) != x.shape[1]:
        raise ValueError(
            f"`names` must be a list of {x.shape[1]} names, one for each feature of {prefix}, got {names!r}"
        )
    return x, y, names


def _off_diagonal(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """
    :param x: Centred and in units of its deviation, ``(samples, features)``
    :param y: Centred and in units of that of ``x``
    :return: Share of off-diagonal mass, generalised eigenvalues, canonical correlations
    """
    if x.shape[1] == 0:
        return 0.0, np.zeros(0), np.zeros(0)
    sxx, syx, syy = x.T @ x / len(x), y.T @ x / len(x), y.T @ y / len(x)
    squares = sxx**2 + syx**2
    x_whitening, y_whitening = _whitening(sxx), _whitening(syy)
    eigenvalues = np.linalg.eigvalsh(x_whitening.T @ (syx + syx.T) @ x_whitening / 2.0)[::-1]
    correlations = np.linalg.svd(y_whitening.T @ syx @ x_whitening, compute_uv=False)
    return float(1.0 - np.trace(squares) / squares.sum()), eigenvalues, correlations


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """Columns in which the covariance is the identity; only the directions that vary."""
    variances, directions = np.linalg.eigh(covariance)
    varies = variances > RANK_TOLERANCE * max(variances[-1], np.finfo(np.float64).tiny)
    return directions[:, varies] / np.sqrt(variances[varies])
