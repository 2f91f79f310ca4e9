"""The order in which deep linear networks learn: *How JEPA Avoids Noisy Features* (arXiv 2407.03475).

    python examples/deep_linear.py --depths 1 2 3 4 5 6 --out runs/deep_linear.csv --figure runs/deep_linear.png

An encoder of linear layers and a linear predictor are trained by gradient descent, on all data at once, on one of two
objectives: "jepa" predicts the embedding of the later observation, "mae" the later observation itself. Here features
with a large covariance are hard to predict: reconstruction learns them first at any depth, a JEPA only while its
encoder is shallow. A second experiment has clean, slow and noisy, fast sources, and asks the noise diagnostic in
advance.
"""

import argparse
import csv
import pathlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from sb3_jepa.diagnostics.feature_noise import feature_noise, jepa_learning_times

OBJECTIVES = ("jepa", "mae")
# The larger the covariance of a feature, the harder it is to predict
LAMBDA = np.linspace(1.0, 1.2, 6)
RHO = np.linspace(1.0, 0.6, 6)
SCALE = 0.01
# Two clean, slow sources and two noisy, fast ones: autocorrelation, deviation, and deviation of the noise
SOURCES = {
    "clean 1": (0.95, 1.0, 0.2),
    "clean 2": (0.95, 1.0, 0.2),
    "noisy 1": (0.5, 1.6, 0.5),
    "noisy 2": (0.5, 1.6, 0.5),
}

Row = dict[str, float | int | str]


def strengths(
    sxx: np.ndarray,
    syx: np.ndarray,
    depth: int,
    objective: str,
    scale: float = SCALE,
    step_size: float = 0.05,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """
    Train, from the balanced start of the paper's assumption 4.1: all layers orthogonal and equally small, and in each
    other's bases.

    :param sxx: Second moments of ``x``, ``(features, features)``
    :param syx: Second moments of ``y`` and ``x``, ``(features, features)``
    :param depth: Number of layers of the encoder
    :param objective: ``"jepa"`` or ``"mae"``
    :param scale: What the encoder multiplies every feature with at the start
    :param step_size: Of gradient descent
    :param seed: Of the random bases
    :return: After every step, without end, how strongly each feature is encoded: norms ``(features,)`` of the columns
        of the product of the layers
    :raises ValueError: If there is no such objective, or ``depth`` is less than 1
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {OBJECTIVES}, got {objective!r}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    rng = np.random.default_rng(seed)
    identity = np.eye(len(sxx))
    bases = [identity, *(np.linalg.qr(rng.standard_normal(sxx.shape))[0] for _ in range(depth))]
    layer_scale = scale ** (1.0 / depth)
    layers = [layer_scale * after @ before.T for before, after in pairwise(bases)]
    predictor = layer_scale * (identity if objective == "jepa" else bases[-1].T)
    while True:
        # The products of the layers before each one: below[a] = layers[a - 1] ... layers[0]
        below = [identity]
        for layer in layers:
            below.append(layer @ below[-1])
        encoder = below[-1]
        # The target embedding counts as given: no gradient flows into it
        target = encoder @ syx if objective == "jepa" else syx
        residual = predictor @ encoder @ sxx - target
        # By the chain rule from the last layer to the first; above = (layers[-1] ... layers[a + 1])^T dL/dencoder
        above = predictor.T @ residual
        predictor = predictor - step_size * residual @ encoder.T
        for a in reversed(range(depth)):
            gradient = above @ below[a].T
            above = layers[a].T @ above
            layers[a] = layers[a] - step_size * gradient
        encoder = layers[0]
        for layer in layers[1:]:
            encoder = layer @ encoder
        yield np.sqrt(np.einsum("ij,ij->j", encoder, encoder))


def fixed_points(rho: np.ndarray, depth: int, objective: str) -> np.ndarray:
    r"""
    How strongly features are encoded in the end: :math:`\rho^L` by a JEPA (the paper's corollary 4.3), and
    :math:`\rho^{L / (L + 1)}` by an MAE.

    :param rho: Regression coefficients, ``(features,)``
    :param depth: Number of layers of the encoder
    :param objective: ``"jepa"`` or ``"mae"``
    :return: ``(features,)``
    """
    return np.asarray(rho) ** (depth if objective == "jepa" else depth / (depth + 1))


def predicted_times(lambda_: np.ndarray, rho: np.ndarray, depth: int, objective: str) -> np.ndarray:
    """
    The paper's theorem 4.5, and the same for an MAE, divided by the depth: in the time of gradient flow.

    :param lambda_: Cross-covariances, ``(features,)``
    :param rho: Regression coefficients, ``(features,)``
    :param depth: Number of layers of the encoder
    :param objective: ``"jepa"`` or ``"mae"``
    :return: ``(features,)``, exact for a vanishing scale
    """
    if objective == "jepa":
        return jepa_learning_times(lambda_, rho, depth, SCALE)
    if depth == 1:
        return -np.log(SCALE) / lambda_
    return SCALE ** ((1 - depth) / depth) / ((depth - 1) * lambda_)


def learning_times(
    lambda_: np.ndarray,
    rho: np.ndarray,
    depth: int,
    objective: str,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
    fraction: float = 0.5,
    step_size: float = 0.05,
    seed: int = 0,
    max_time: float = 5000.0,
) -> np.ndarray:
    """
    Train until every feature has been learned.

    :param lambda_: Cross-covariances, ``(features,)``
    :param rho: Regression coefficients, ``(features,)``
    :param depth: Number of layers of the encoder
    :param objective: ``"jepa"`` or ``"mae"``
    :param moments: Second moments of ``x``, and of ``y`` and ``x``, to train on; by default diagonal, as ``lambda_``
        and ``rho`` say
    :param fraction: A feature counts as learned from this fraction of its fixed point on
    :param step_size: Of gradient descent
    :param seed: Of the random start
    :param max_time: Training ends then in any case
    :return: Steps times step size until each feature was learned, ``(features,)``; NaN: never
    :raises ValueError: If a feature is there from the start
    """
    lambda_, rho = np.asarray(lambda_, np.float64), np.asarray(rho, np.float64)
    sxx, syx = (np.diag(lambda_ / rho), np.diag(lambda_)) if moments is None else moments
    goals = fraction * fixed_points(rho, depth, objective)
    if (goals <= SCALE).any():
        raise ValueError(
            f"rho must be so large that {fraction} of a feature's fixed point is more than {SCALE}, where it starts; "
            f"got fixed points {goals / fraction}"
        )
    times = np.full(len(rho), np.nan)
    training = strengths(sxx, syx, depth, objective, step_size=step_size, seed=seed)
    for step in range(1, round(max_time / step_size) + 1):
        is_new = (next(training) >= goals) & np.isnan(times)
        times[is_new] = step * step_size
        if is_new.any() and not np.isnan(times).any():
            break
    return times


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """
    :param a: Numbers, ``(n,)``
    :param b: Numbers, ``(n,)``
    :return: Correlation of their ranks; equal numbers share theirs
    """
    # How many are smaller, and half of those that are equal
    ranks = [(x[:, None] > x).sum(axis=1) + 0.5 * (x[:, None] == x).sum(axis=1) for x in map(np.asarray, (a, b))]
    return float(np.corrcoef(*ranks)[0, 1])


def sample_sources(n_samples: int = 50_000, seed: int = 0) -> np.ndarray:
    """
    Observe independent first-order autoregressive processes, :math:`z' = \\gamma z + \\sqrt{1 - \\gamma^2} s \\xi`, in
    noise, :math:`x = z + \\nu \\eta`: :data:`SOURCES`.

    :param n_samples: Number of time steps
    :param seed: Seed
    :return: ``(time steps, sources)``
    """
    rng = np.random.default_rng(seed)
    gamma, deviation, noise = np.array(list(SOURCES.values())).T
    shocks = rng.standard_normal((n_samples, len(SOURCES))) * deviation
    sources = shocks.copy()
    for t in range(1, n_samples):
        sources[t] = gamma * sources[t - 1] + np.sqrt(1.0 - gamma**2) * shocks[t]
    return sources + noise * rng.standard_normal(sources.shape)


def compare_depths(depths: list[int], seeds: list[int]) -> list[Row]:
    """
    The main experiment; prints its tables.

    :param depths: Numbers of layers
    :param seeds: Seeds; the table has the means
    :return: A row for each feature of each run
    """
    rows: list[Row] = []
    print("lambda", *(f"{value:7.2f}" for value in LAMBDA))
    print("rho   ", *(f"{value:7.2f}" for value in RHO))
    for objective in OBJECTIVES:
        print(f"\n{objective}: time until half of the fixed point is reached, and as the theorem has it")
        for depth in depths:
            times = np.array([learning_times(LAMBDA, RHO, depth, objective, seed=seed) for seed in seeds])
            predicted = predicted_times(LAMBDA, RHO, depth, objective)
            print(f"depth {depth}", *(f"{time:7.1f}" for time in times.mean(axis=0)), end="   ")
            print(f"Spearman with rho {spearman(times.mean(axis=0), RHO):+.2f}")
            print("theorem", *(f"{time:7.1f}" for time in predicted), flush=True)
            for seed, seed_times in zip(seeds, times, strict=True):
                for feature, time in enumerate(seed_times):
                    numbers = {"lambda": LAMBDA[feature], "rho": RHO[feature], "time": time}
                    row: Row = dict(objective=objective, depth=depth, seed=seed, feature=feature)
                    row |= {name: round(float(value), 4) for name, value in numbers.items()}
                    row["theorem"] = round(float(predicted[feature]), 4)
                    rows.append(row)
    return rows


def ask_diagnostic(depths: list[int]) -> None:
    """
    The experiment with sources in noise; prints what the diagnostic says and what networks learn.

    :param depths: Numbers of layers
    """
    observations = sample_sources()
    x, y = observations[:-1], observations[1:]
    noise = feature_noise(x, y, names=list(SOURCES))
    print("\nSources in noise, as the diagnostic sees them:", noise, sep="\n")
    moments = x.T @ x / len(x), y.T @ x / len(x)
    is_distractor = np.isin(noise.names, noise.distractors)
    for objective in OBJECTIVES:
        for depth in depths:
            times = learning_times(noise.lambda_, noise.rho, depth, objective, moments)
            first = "distractors" if times[is_distractor].max() < times[~is_distractor].min() else "no order"
            if times[~is_distractor].max() < times[is_distractor].min():
                first = "the rest"
            print(f"{objective}, depth {depth}:", *(f"{time:7.1f}" for time in times), f"  first: {first}", flush=True)


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """
    :param rows: Of :func:`compare_depths`
    :param path: Where to save the figure
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    depths = sorted({int(row["depth"]) for row in rows})
    figure, axes = plt.subplots(1, len(OBJECTIVES), figsize=(9, 3.5), sharey=True, layout="constrained")
    for axis, objective in zip(axes, OBJECTIVES, strict=True):
        for depth in depths:
            of_depth = [row for row in rows if row["depth"] == depth and row["objective"] == objective]
            # One row for each run and feature
            times = np.array([row["time"] for row in of_depth], dtype=float).reshape(-1, len(RHO)).mean(axis=0)
            axis.plot(RHO, times / times.mean(), marker="o", label=f"depth {depth}")
        axis.set(title=objective, xlabel=r"$\rho$ (the larger, the smaller is $\lambda$)")
    axes[0].set_ylabel("learning time / mean")
    axes[1].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--source-depths", type=int, nargs="+", default=[1, 2, 4], help="of the second experiment")
    parser.add_argument("--out", type=pathlib.Path, help="CSV file with the times of all runs")
    parser.add_argument("--figure", type=pathlib.Path, help="image; needs matplotlib")
    arguments = parser.parse_args()

    rows = compare_depths(arguments.depths, arguments.seeds)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if arguments.figure is not None:
        draw(rows, arguments.figure)
    ask_diagnostic(arguments.source_depths)


if __name__ == "__main__":
    main()
