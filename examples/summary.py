"""Turn what ``off_policy/train.py`` or ``reproduction/run.py`` measured into a table for each task.

python examples/summary.py --folder runs/off_policy --baseline cnn
python examples/summary.py --folder runs/reproduction --baseline without-jepa --out runs/reproduction/table.md
"""

import argparse
import pathlib
from typing import Any

import numpy as np
from pixel_runs import bootstrap_interval, finished_results

from sb3_jepa.common.files import replace_when_complete


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


def table(arms: dict[str, list[dict[str, Any]]], baseline: str) -> str:
    """
    :param arms: What the seeds of each arm have measured
    :param baseline: The arm whose speed is 1
    :return: The table of a task
    """
    rows = {arm: cells(results) for arm, results in arms.items()}
    for arm, row in rows.items():
        row[f"/ `{baseline}`"] = f"{speed(arms[arm]) / speed(arms[baseline]):.2f}" if baseline in arms else ""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| arm | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {arm} | {' | '.join(row.get(column, '') for column in columns)} |" for arm, row in rows.items()]
    return "\n".join(lines)


def cells(results: list[dict[str, Any]]) -> dict[str, str]:
    """
    :param results: Of an arm
    :return: What its row says, by column
    """
    last = [result["mean_return_of_last_100_episodes"] for result in results]
    row = {
        "return, last 100 episodes": mean_and_interval(last),
        "of each seed": ", ".join(f"{value:.0f}" for value in last),
    }
    if all("mean_return_of_all_episodes" in result for result in results):
        row["return, all episodes"] = mean_and_interval([result["mean_return_of_all_episodes"] for result in results])
    row["return, most likely actions"] = mean_and_interval(
        [float(np.mean(result["deterministic_returns"])) for result in results]
    )
    firsts = [result.get("first_success") for result in results]
    if any(first is not None for first in firsts):
        row["step of the first success"] = ", ".join("never" if first is None else f"{first:,}" for first in firsts)
    row["steps per CPU second"] = f"{speed(results):.0f}"
    return row


def read(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """
    :param folder: Of a task; it holds a folder for each arm
    :return: The finished runs of each arm that has one
    """
    arms = {path.name: [*finished_results(path).values()] for path in sorted(folder.iterdir())}
    return {arm: results for arm, results in arms.items() if results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="that holds a folder for each task")
    parser.add_argument("--baseline", default="cnn", help="arm whose speed is 1 (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, help="file to write the tables to")
    arguments = parser.parse_args()

    paths = sorted(arguments.folder.iterdir()) if arguments.folder.is_dir() else []
    tasks = {path.name: read(path) for path in paths if path.is_dir()}
    tables = {task: table(arms, arguments.baseline) for task, arms in tasks.items() if arms}
    if not tables:
        parser.error(f"no finished runs in {arguments.folder}")
    text = "\n\n".join(
        f"**{task}**: means over the seeds and their 95 % bootstrap intervals\n\n{one}" for task, one in tables.items()
    )
    if arguments.out is not None:
        with replace_when_complete(arguments.out) as unfinished:
            unfinished.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
