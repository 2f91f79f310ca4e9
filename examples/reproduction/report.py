"""Turn what ``run.py`` measured into figures and a table, for as many runs as are finished.

python examples/reproduction/report.py --folder runs/reproduction --out runs/reproduction
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

RETURN, VARIANCE = "rollout/ep_rew_mean", "jepa/embedding_variance"
# The panels of CartPole's figure
PANELS = {
    "the paper's configurations": ["1", "2", "3", "4"],
    "with a strong predictor": ["1", "2-strong", "3-strong", "4-strong"],
    "the default and its parts": ["default", "without-vicreg", "without-changes", "without-jepa", "cnn"],
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


def bootstrap_interval(values: np.ndarray, statistic=np.mean, n_resamples: int = 10_000) -> np.ndarray:
    """
    95 % bootstrap interval over runs.

    :param values: ``(..., runs)``
    :param statistic: Of the last axis
    :return: Lower and upper end, ``(2, ...)``
    """
    picked = np.random.default_rng(0).integers(values.shape[-1], size=(n_resamples, values.shape[-1]))
    if statistic is np.mean:
        resampled = np.stack([values[..., runs].mean(axis=-1) for runs in picked], axis=-1)
    else:
        resampled = statistic(values[..., picked])
    return np.percentile(resampled, (2.5, 97.5), axis=-1)


class Arm:
    """
    The finished runs of one arm on one task.

    :param folder: Holds a folder for each seed
    """

    def __init__(self, folder: pathlib.Path):
        self.name = folder.name
        runs = [run for run in sorted(folder.glob("seed*")) if (run / "result.json").exists()]
        self.results = [json.loads((run / "result.json").read_text()) for run in runs]
        self.tables = [pd.read_csv(run / "progress.csv") for run in runs]
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
        steps = np.linspace(2_000, self.results[0]["timesteps"], 100)
        values = self.curve(column, steps)
        axes.plot(steps, values.mean(axis=-1), color=color, label=label)
        if values.shape[-1] > 1:
            axes.fill_between(steps, *bootstrap_interval(values, n_resamples=1000), color=color, alpha=0.2, linewidth=0)

    def row(self) -> str:
        """A row of the table."""
        low, high = bootstrap_interval(self.returns, interquartile_mean)
        speed = np.median([result["timesteps"] / result["seconds"] for result in self.results])
        variance = ""
        if VARIANCE in self.tables[0]:
            first = np.median([result["first_embedding_variance"] for result in self.results])
            last = np.median([table[VARIANCE].dropna().iloc[-1] for table in self.tables])
            variance = f"{first:.1e} → {last:.1e}"
        each = ", ".join(f"{value:.0f}" for value in self.returns)
        return (
            f"| {self.name} | {interquartile_mean(self.returns):.0f} [{low:.0f}, {high:.0f}] "
            f"| {each} | {variance} | {speed:.0f} |"
        )


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
    panels = {title: names for title, names in panels.items() if len(names) > 1}
    figure, grid = plt.subplots(
        2, len(panels), sharex=True, sharey="row", squeeze=False, figsize=(5 * len(panels), 6.5), layout="constrained"
    )
    for (title, names), (top, bottom) in zip(panels.items(), grid.T, strict=True):
        for number, name in enumerate(names):
            label = LABELS[name.removesuffix("-strong")]
            arms[name].draw(top, RETURN, f"C{number}", label)
            arms[name].draw(bottom, VARIANCE, f"C{number}", label)
        top.set_title(title)
        top.legend(frameon=False, fontsize="small", loc="upper left")
        bottom.set_xlabel("environment steps")
        bottom.set_yscale("log")
    grid[0, 0].set_ylabel("return, last 100 episodes")
    grid[1, 0].set_ylabel("embedding variance")
    figure.savefig(path, dpi=100)


def draw_other_tasks(tasks: dict[str, dict[str, Arm]], path: pathlib.Path) -> None:
    """Return of the default and of ``CnnPolicy``, a panel for each task."""
    figure, grid = plt.subplots(1, len(tasks), squeeze=False, figsize=(5 * len(tasks), 3.5), layout="constrained")
    for (task, arms), axes in zip(tasks.items(), grid[0], strict=True):
        for name, color in (("default", "C0"), ("cnn", "C4")):
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
            f"**{task}**: mean return of the last 100 episodes at the end, interquartile mean over the seeds and its "
            "95 % bootstrap interval",
            "",
            "| arm | return | of each seed | embedding variance, first and last update | steps/s |",
            "|---|---|---|---|---|",
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
