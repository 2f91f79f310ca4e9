"""Draw what ``run.py`` measured: return and embedding variance against environment steps, a column for each variant.

python examples/paper_configurations/plot.py --folder runs/paper_configurations --out figure.png
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from run import CONFIGURATIONS, DESCRIPTIONS, VARIANTS


def bootstrap_interval(values: np.ndarray, n_resamples: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """
    95 % bootstrap interval of the mean over runs.

    :param values: ``(runs, steps)``
    :return: Lower and upper end, ``(steps,)`` each
    """
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(n_resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return low, high


def curve(folder: pathlib.Path, arm: str, column: str, steps: np.ndarray) -> np.ndarray:
    """
    One column of all runs of an arm, at the given steps.

    :param arm: The runs' folder without the seed, such as ``"configuration2_default"``
    :return: ``(runs, steps)``
    """
    runs = []
    for path in sorted(folder.glob(f"{arm}_seed*/progress.csv")):
        table = pd.read_csv(path)[["time/total_timesteps", column]].dropna()
        runs.append(np.interp(steps, table["time/total_timesteps"], table[column], left=np.nan, right=np.nan))
    return np.array(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/paper_configurations"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/paper_configurations/figure.png"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--timesteps", type=int, default=100_000, help="end of the axis (default: %(default)s)")
    arguments = parser.parse_args()

    steps = np.linspace(2_000, arguments.timesteps, 200)
    variants = [name for name in arguments.variants if list(arguments.folder.glob(f"*_{name}_seed*/progress.csv"))]
    if not variants:
        parser.error(f"no runs in {arguments.folder}; run.py makes them")
    figure, grid = plt.subplots(
        2, len(variants), sharex=True, sharey="row", squeeze=False, figsize=(5 * len(variants), 6), layout="constrained"
    )
    for variant, (top, bottom) in zip(variants, grid.T, strict=True):
        for axes, column in ((top, "rollout/ep_rew_mean"), (bottom, "jepa/embedding_variance")):
            for number, configuration in enumerate(CONFIGURATIONS):
                values = curve(arguments.folder, f"configuration{configuration}_{variant}", column, steps)
                if not len(values):
                    continue
                label = f"{configuration}: {DESCRIPTIONS[configuration]}"
                axes.plot(steps, values.mean(axis=0), color=f"C{number}", label=label)
                if len(values) > 1:
                    axes.fill_between(steps, *bootstrap_interval(values), color=f"C{number}", alpha=0.2, linewidth=0)
        top.set_title(variant)
        bottom.set_xlabel("environment steps")
        bottom.set_yscale("log")
    grid[0, 0].set_ylabel("return, last 100 episodes")
    grid[1, 0].set_ylabel("embedding variance")
    grid[0, 0].legend(frameon=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=100)


if __name__ == "__main__":
    main()
