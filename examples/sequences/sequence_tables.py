"""
The tables of what ``digits.py`` and ``memory.py`` measured: means over the seeds with 95 % bootstrap intervals.

    python examples/sequences/sequence_tables.py --folder runs/sequences
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import bootstrap_interval

Columns = dict[str, Callable[[dict[str, Any]], float]]
DIGITS: Columns = {
    "R² of the action, MLP": lambda run: run["probes"]["relative_action_mlp"],
    "R² of the action, linear": lambda run: run["probes"]["relative_action"],
    "R² of the way, linear": lambda run: run["probes"]["path_integration"],
    "digit from the aggregate": lambda run: run["accuracies"]["aggregate"],
    "digit from a view": lambda run: run["accuracies"]["view"],
}
MEMORY: Columns = {
    "most likely actions": lambda run: run["returns"]["deterministic"],
    "last 100 episodes": lambda run: run["last_100_episodes"],
    "all of the training": lambda run: float(np.mean([mean for _, mean in run["curve"]])),
    "steps per CPU second": lambda run: run["timesteps"] / run["cpu_seconds"],
}


def cell(values: list[float]) -> str:
    """
    :param values: One for each seed
    :return: Their mean and its interval
    """
    digits = 2 if max(np.abs(values)) < 10 else 1 if max(np.abs(values)) < 200 else 0
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    low, high = bootstrap_interval(np.array(values), lambda resampled: resampled.mean(axis=-1))
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def table(folder: pathlib.Path, columns: Columns) -> str:
    """
    :param folder: That holds a folder for each arm
    :param columns: What is shown of a run
    :return: The table
    """
    lines = [f"| arm | {' | '.join(columns)} | seeds |", "|---" * (2 + len(columns)) + "|"]
    for arm in sorted(folder.iterdir()):
        runs = [json.loads(path.read_text()) for path in sorted(arm.glob("seed*.json"))]
        if runs:
            cells = [cell([of_run(run) for run in runs]) for of_run in columns.values()]
            lines.append(f"| `{arm.name}` | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/sequences"))
    options = parser.parse_args()
    for name, columns in (("digits", DIGITS), ("memory", MEMORY)):
        for task in sorted((options.folder / name).glob("*")):
            print(f"**{name}, {task.name}**\n\n{table(task, columns)}\n")


if __name__ == "__main__":
    main()
