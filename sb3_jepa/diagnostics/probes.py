"""What can be read from an embedding: linear probes, and how well a score tells two groups apart."""

import numpy as np


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
    # Not exactly zero where a mean of equal numbers is rounded
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


def held_out_rows(episodes: np.ndarray, fraction: float = 0.25) -> np.ndarray:
    """
    Hold out whole episodes: the steps of one are too much alike to be on both sides.

    :param episodes: Number of the episode that each row belongs to ``(rows,)``
    :param fraction: Of the episodes, at least one
    :return: ``(rows,)``, which rows are held out; the same ones each time
    """
    numbers = np.unique(episodes)
    # At random, for neighbours may be of one time
    held_out = np.random.default_rng(0).permutation(numbers)[: max(1, round(fraction * len(numbers)))]
    return np.isin(episodes, held_out)
