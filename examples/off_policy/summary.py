"""Turn what ``train.py`` measured into a table for each task, for as many runs as are finished.

python examples/off_policy/summary.py --folder runs/off_policy --out runs/off_policy/table.md
"""

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

from sb3_jepa.common.files import replace_when_complete

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import bootstrap_interval, finished_results

COLUMNS = (
    "arm",
    "return, last 100 episodes",
    "of each seed",
    "return, all episodes",
    "return, most likely actions",
    "steps per CPU second",
    "/ `cnn`",
)


def mean_and_interval(values: list[float]) -> str:
    """
    :param values: One for each seed
    :return: Their mean, and in brackets its 95 % bootstrap interval if there is more than one
    """
    array = np.array(values)
    if len(values) == 1:
        return f"{values[0]:.0f}"
    low, high = bootstrap_interval(array, lambda resampled: resampled.mean(axis=-1))
    return f"{array.mean():.0f} [{low:.0f}, {high:.0f}]"


def speed(results: list[dict[str, Any]]) -> float:
    """
    :param results: Of an arm
    :return: Steps per second of the processor, the median over the seeds: other load counts less than by the clock
    """
    return float(np.median([result["timesteps"] / result["cpu_seconds"] for result in results]))


def table(arms: dict[str, list[dict[str, Any]]]) -> str:
    """
    :param arms: What the seeds of each arm have measured
    :return: The table of a task
    """
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for arm, results in arms.items():
        last = [result["mean_return_of_last_100_episodes"] for result in results]
        cells = [
            arm,
            mean_and_interval(last),
            ", ".join(f"{value:.0f}" for value in last),
            mean_and_interval([result["mean_return_of_all_episodes"] for result in results]),
            mean_and_interval([float(np.mean(result["deterministic_returns"])) for result in results]),
            f"{speed(results):.0f}",
            f"{speed(results) / speed(arms['cnn']):.2f}" if "cnn" in arms else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """
    :param folder: Of a task; it holds a folder for each arm
    :return: The finished runs of each arm that has one
    """
    arms = {path.name: [*finished_results(path).values()] for path in sorted(folder.iterdir())}
    return {arm: results for arm, results in arms.items() if results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/off_policy"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/off_policy/table.md"))
    arguments = parser.parse_args()

    paths = sorted(arguments.folder.iterdir()) if arguments.folder.is_dir() else []
    tasks = {path.name: read(path) for path in paths if path.is_dir()}
    tables = {task: table(arms) for task, arms in tasks.items() if arms}
    if not tables:
        parser.error(f"no finished runs in {arguments.folder}; train.py makes them")
    text = "\n\n".join(
        f"**{task}**: means over the seeds and their 95 % bootstrap intervals\n\n{one}" for task, one in tables.items()
    )
    with replace_when_complete(arguments.out) as unfinished:
        unfinished.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
