"""Turn what ``run.py`` measured into figures and a table, for as many runs as are finished.

python examples/reproduction/report.py --folder runs/reproduction --out runs/reproduction
"""

import argparse
import pathlib
import sys

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import bootstrap_interval, finished_results

RETURN, VARIANCE = "rollout/ep_rew_mean", "jepa/embedding_variance"
# The panels of CartPole's figure
PANELS = {
    "the paper's configurations": ["1", "2", "3", "4"],
    "with a strong predictor": ["2-strong", "3-strong", "4-strong"],
    "the default and its parts": [
        "default",
        "without-jepa",
        "without-vicreg",
        "without-changes",
        "without-slow-encoder",
        "without-target-kl",
        "without-normalized-reward",
        "without-our-ppo",
        "cnn",
    ],
}
LABELS = {
    "1": "1: RL only",
    "2": "2: JEPA + RL gradient",
    "3": "3: JEPA, no RL gradient",
    "4": "4: JEPA + variance, no RL gradient",
    "default": "PPO(JepaPolicy, env)",
    "without-vicreg": "without deviation and covariance",
    "without-changes": "with plain frames",
    "without-jepa": "without JEPA",
    "without-slow-encoder": "with one learning rate",
    "without-target-kl": "without target_kl",
    "without-normalized-reward": "with raw rewards",
    "without-our-ppo": "with SB3's PPO settings",
    "cnn": "CnnPolicy, its best setting",
}


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """
    Mean of the middle half of the runs (Agarwal et al. 2021, arXiv 2108.13264).

    :param values: ``(..., runs)``
    :return: ``(...,)``
    """
    n_cut = values.shape[-1] // 4
    return np.sort(values, axis=-1)[..., n_cut : values.shape[-1] - n_cut].mean(axis=-1)


class Arm:
    """
    The finished runs of one arm on one task.

    :param folder: Holds a folder for each seed
    """

    def __init__(self, folder: pathlib.Path):
        self.name = folder.name
        runs = finished_results(folder)
        self.results = list(runs.values())
        self.tables = [pd.read_csv(run / "progress.csv") for run in runs]
        self.timesteps = self.results[0]["timesteps"] if runs else 0
        self.returns = np.array([result["mean_return_of_last_100_episodes"] for result in self.results])

    def curve(self, column: str, steps: np.ndarray) -> np.ndarray:
        """
        A column of the logs at the given steps, ``(steps, runs)``.

        :param column: Stable-Baselines3's name of a scalar
        :param steps: Environment steps
        """
        curves = []
        for table in self.tables:
            table = table[["time/total_timesteps", column]].dropna()
            curves.append(np.interp(steps, table["time/total_timesteps"], table[column], left=np.nan, right=np.nan))
        return np.stack(curves, axis=-1)

    def draw(self, axes: Axes, column: str, color: str, label: str) -> None:
        """
        Mean over the runs and its 95 % bootstrap interval.

        :param axes: Where to draw
        :param column: Stable-Baselines3's name of a scalar
        :param color: Of the line
        :param label: For the legend
        """
        if column not in self.tables[0]:
            return
        steps = np.linspace(2_000, self.timesteps, 100)
        values = self.curve(column, steps)
        axes.plot(steps, values.mean(axis=-1), color=color, label=label)
        if values.shape[-1] > 1:
            interval = bootstrap_interval(values, lambda resampled: resampled.mean(axis=-1))
            axes.fill_between(steps, *interval, color=color, alpha=0.2, linewidth=0)

    def row(self) -> str:
        """A row of the table."""
        (halfway,) = self.curve(RETURN, np.array([self.timesteps / 2]))
        columns = [self.name]
        for returns in (halfway, self.returns):
            low, high = bootstrap_interval(returns, interquartile_mean)
            columns.append(f"{interquartile_mean(returns):.0f} [{low:.0f}, {high:.0f}]")
        columns.append(", ".join(f"{value:.0f}" for value in self.returns))
        if VARIANCE in self.tables[0]:
            first = np.median([result["first_embedding_variance"] for result in self.results])
            last = np.median([table[VARIANCE].dropna().iloc[-1] for table in self.tables])
            columns.append(f"{first:.1e} → {last:.1e}")
        else:
            columns.append("")
        columns.append(f"{np.median([result['timesteps'] / result['seconds'] for result in self.results]):.0f}")
        return f"| {' | '.join(columns)} |"


def best_cnn(arms: dict[str, Arm]) -> Arm | None:
    """``CnnPolicy`` in the setting that returned most with the first seed, among those that were tried."""
    tried = [arm for name, arm in arms.items() if name.startswith("cnn-")]
    return max(tried, key=lambda arm: arm.returns[0], default=None)


def read(folder: pathlib.Path) -> dict[str, Arm]:
    """All arms of a task that have a finished run."""
    arms = {arm.name: arm for arm in map(Arm, sorted(folder.iterdir())) if arm.results}
    best = best_cnn(arms)
    return arms | ({"cnn": best} if best else {})


def draw_cartpole(arms: dict[str, Arm], path: pathlib.Path) -> None:
    """Return above, embedding variance below, a column for each panel."""
    panels = {title: [name for name in names if name in arms] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure, grid = plt.subplots(
        2, len(panels), sharex=True, sharey="row", squeeze=False, figsize=(5 * len(panels), 6.5), layout="constrained"
    )
    for (title, names), (top, bottom) in zip(panels.items(), grid.T, strict=True):
        for name in names:
            configuration = name.removesuffix("-strong")
            label, color = LABELS[configuration], f"C{list(LABELS).index(configuration) % 10}"
            arms[name].draw(top, RETURN, color, label)
            arms[name].draw(bottom, VARIANCE, color, label)
        top.set_title(title)
        # Put the legend in the panel with room for it
        axes, place = (top, "upper left") if len(names) <= 5 else (bottom, "lower left")
        axes.legend(*top.get_legend_handles_labels(), frameon=False, fontsize="small", loc=place)
        bottom.set_xlabel("environment steps")
        bottom.set_yscale("log")
    grid[0, 0].set_ylabel("return, last 100 episodes")
    grid[1, 0].set_ylabel("embedding variance")
    figure.savefig(path, dpi=100)


def draw_other_tasks(tasks: dict[str, dict[str, Arm]], path: pathlib.Path) -> None:
    """Return of the default and of ``CnnPolicy``, a panel for each task."""
    figure, grid = plt.subplots(1, len(tasks), squeeze=False, figsize=(5 * len(tasks), 3.5), layout="constrained")
    for (task, arms), axes in zip(tasks.items(), grid[0], strict=True):
        for name, color in (("default", "C4"), ("cnn", "C0")):
            if name in arms:
                arms[name].draw(axes, RETURN, color, LABELS[name])
        axes.set_title(task)
        axes.set_xlabel("environment steps")
    grid[0, 0].set_ylabel("return, last 100 episodes")
    grid[0, 0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/reproduction"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/reproduction"))
    arguments = parser.parse_args()

    tasks = {path.name: read(path) for path in sorted(arguments.folder.iterdir()) if path.is_dir()}
    tasks = {task: arms for task, arms in tasks.items() if arms}
    if not tasks:
        parser.error(f"no finished runs in {arguments.folder}; run.py makes them")
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for task, arms in tasks.items():
        lines += [
            f"**{task}**: mean return of the last 100 episodes, halfway and at the end of the training; interquartile "
            "mean over the seeds and its 95 % bootstrap interval",
            "",
            "| arm | return halfway | return | of each seed | embedding variance, start and end | steps/s |",
            "|---|---|---|---|---|---|",
            *(arm.row() for name, arm in arms.items() if name != "cnn"),
            "",
        ]
    table = "\n".join(lines)
    (arguments.out / "table.md").write_text(table)
    print(table)
    if "cartpole" in tasks:
        draw_cartpole(tasks.pop("cartpole"), arguments.out / "figure.png")
    if tasks:
        draw_other_tasks(tasks, arguments.out / "other_tasks.png")


if __name__ == "__main__":
    main()
