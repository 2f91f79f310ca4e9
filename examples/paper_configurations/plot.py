"""Draw what ``run.py`` measured: return and embedding variance against environment steps.

python examples/paper_configurations/plot.py --folder runs/paper_configurations --out figure.png
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from run import CONFIGURATIONS, DESCRIPTIONS


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


def curve(folder: pathlib.Path, configuration: str, column: str, steps: np.ndarray) -> np.ndarray:
    """
    One column of all runs of a configuration, at the given steps.

    :return: ``(runs, steps)``
    """
    runs = []
    for path in sorted(folder.glob(f"configuration{configuration}_seed*/progress.csv")):
        table = pd.read_csv(path)[["time/total_timesteps", column]].dropna()
        runs.append(np.interp(steps, table["time/total_timesteps"], table[column], right=np.nan))
    return np.array(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/paper_configurations"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/paper_configurations/figure.png"))
    parser.add_argument("--timesteps", type=int, default=100_000, help="end of the axis (default: %(default)s)")
    arguments = parser.parse_args()

    steps = np.linspace(4_000, arguments.timesteps, 200)
    figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(7, 6), layout="constrained")
    for axes, column in ((top, "rollout/ep_rew_mean"), (bottom, "jepa/embedding_variance")):
        for configuration in CONFIGURATIONS:
            values = curve(arguments.folder, configuration, column, steps)
            if not len(values):
                continue
            label = f"{configuration}: {DESCRIPTIONS[configuration]} ({len(values)} run{'s' * (len(values) > 1)})"
            (line,) = axes.plot(steps, values.mean(axis=0), label=label)
            axes.fill_between(steps, *bootstrap_interval(values), color=line.get_color(), alpha=0.2, linewidth=0)
    top.set_ylabel("return, last 100 episodes")
    top.legend(frameon=False)
    bottom.set_ylabel("embedding variance")
    bottom.set_yscale("log")
    bottom.set_xlabel("environment steps")
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
