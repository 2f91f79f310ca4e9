"""What can be read from an embedding: linear probes, and how well a score tells two groups apart."""

from collections.abc import Sequence

import numpy as np

from sb3_jepa.common import checks

# Fewer episodes give no meaningful R2
MIN_EPISODES = 4


def ridge_predictions(
    inputs: np.ndarray, targets: np.ndarray, is_held_out: np.ndarray, penalty: float = 1e-3
) -> np.ndarray:
    """
    Ridge regression, fitted to the rows that are not held out.

    :param inputs: ``(rows, inputs)``
    :param targets: ``(rows, variables)``
    :param is_held_out: ``(rows,)``, which rows are predicted
    :param penalty: Ridge penalty, per row and for inputs of unit variance
    :return: Predictions of the rows that are held out, ``(held-out rows, variables)``
    """
    penalty = checks.number("penalty", penalty, least=0)
    is_fitted = ~is_held_out
    inputs = (inputs - inputs[is_fitted].mean(axis=0)) / (inputs[is_fitted].std(axis=0) + 1e-12)
    mean = targets[is_fitted].mean(axis=0)
    gram = inputs[is_fitted].T @ inputs[is_fitted] + penalty * is_fitted.sum() * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs[is_fitted].T @ (targets[is_fitted] - mean))
    return mean + inputs[is_held_out] @ weights


def probe_r2(inputs: np.ndarray, targets: np.ndarray, is_held_out: np.ndarray, penalty: float = 1e-3) -> np.ndarray:
    r"""
    Coefficient of determination of ridge regression on held-out rows,
    :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`. One: the variable can be read exactly. Zero: as well as its
    mean over these rows would do. Below: worse than that.

    :param inputs: ``(rows, inputs)``, for instance embeddings
    :param targets: ``(rows, variables)``, what is to be read from them
    :param is_held_out: ``(rows,)``, which rows it is measured on; the regression is fitted to the others
    :param penalty: Ridge penalty, per row and for inputs of unit variance
    :return: ``(variables,)``, NaN where the variable does not vary
    :raises ValueError: If the arguments do not have one number of rows, or either group has none
    """
    if inputs.ndim != 2 or targets.ndim != 2 or not len(inputs) == len(targets) == len(is_held_out):
        raise ValueError(
            "`inputs` and `targets` must be (rows, ...) of as many rows as `is_held_out`, got shapes "
            f"{inputs.shape}, {targets.shape} and {is_held_out.shape}"
        )
    if is_held_out.all() or not is_held_out.any():
        raise ValueError(f"`is_held_out` must leave rows on both sides, got {is_held_out.sum()} of {len(is_held_out)}")
    held_out = targets[is_held_out]
    errors = held_out - ridge_predictions(inputs, targets, is_held_out, penalty)
    spread = np.square(held_out - held_out.mean(axis=0)).sum(axis=0)
    # A mean of equal numbers may be rounded, so that their variance is not exactly zero
    varies = spread > 1e-12 * np.square(held_out).sum(axis=0)
    return np.where(varies, 1.0 - np.square(errors).sum(axis=0) / np.where(varies, spread, 1.0), np.nan)


def area_under_curve(low: np.ndarray, high: np.ndarray) -> float:
    """
    Area under the ROC curve: the probability that a score of the one group is above a score of the other, where equal
    scores count half.

    :param low: Scores that should be low ``(n,)``
    :param high: Scores that should be high ``(m,)``
    :return: Between 0 and 1; 0.5 if the scores say nothing
    """
    below = np.searchsorted(np.sort(low), high, side="left")
    not_above = np.searchsorted(np.sort(low), high, side="right")
    return float((below + not_above).mean() / 2 / len(low))


def probe_episodes(
    embeddings: np.ndarray,
    values: np.ndarray,
    episodes: np.ndarray,
    names: Sequence[str] | None = None,
    held_out: float = 0.25,
) -> dict[str, float]:
    """
    What linear probes read from embeddings, on episodes that they were not fitted to: the steps of one episode are too
    much alike to be on both sides.

    :param embeddings: ``(rows, embed_dim)``
    :param values: What is to be read from them ``(rows, variables)``
    :param episodes: Number of the episode that each row belongs to ``(rows,)``
    :param names: Of the variables; numbers by default
    :param held_out: Fraction of the episodes that are held out, the same ones each time
    :return: R² of each variable that varies, see :func:`probe_r2`; empty if there are fewer than four episodes
    :raises ValueError: If there are more or fewer variables than names
    """
    held_out = checks.number("held_out", held_out, above=0, below=1)
    names = checks.optional(checks.texts, "names", names)
    names = [str(number) for number in range(values.shape[1])] if names is None else names
    if len(names) != values.shape[1]:
        raise ValueError(f"`names` must be as many as the {values.shape[1]} variables, got {list(names)}")
    numbers = np.unique(episodes)
    if len(numbers) < MIN_EPISODES:
        return {}
    # Choose at random, since successive episodes may be similar
    chosen = np.random.default_rng(0).permutation(numbers)
    n_held_out = min(max(1, round(held_out * len(numbers))), len(numbers) - 1)
    r2 = probe_r2(embeddings, values, np.isin(episodes, chosen[:n_held_out]))
    return {name: float(value) for name, value in zip(names, r2, strict=True) if np.isfinite(value)}
