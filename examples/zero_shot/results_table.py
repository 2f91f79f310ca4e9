"""
The table of what ``compare.py`` measured.

    python examples/zero_shot/results_table.py --folder runs/zero_shot/results

Means over the seeds, with 95 % bootstrap intervals.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from summary import mean_and_interval


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """
    :param folder: Of an arm
    :return: What its finished runs measured
    """
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """
    :param results: Of a domain, the runs of each arm
    :return: A row for each arm, and one for random task vectors
    """
    tasks = list(next(iter(results.values()))[0]["returns"])
    lines = [f"| arm | mean of tasks | {' | '.join(tasks)} | seeds |", "|---" * (3 + len(tasks)) + "|"]

    def row(name: str, columns: list[list[float]]) -> None:
        means = [float(np.mean(of_seed)) for of_seed in zip(*columns, strict=True)]
        cells = [mean_and_interval(values) for values in (means, *columns)]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(means)} |")

    for arm, runs in results.items():
        row(f"`{arm}`", [[run["returns"][task] for run in runs] for task in tasks])
    runs = [run for run in results.get("td-jepa", []) if run["random_tasks"]]
    if runs:
        for name, of_all in (("best of its random task vectors", np.max), ("random task vector", np.mean)):
            row(name, [[float(of_all(run["random_tasks"][task])) for run in runs] for task in tasks])
    return "\n".join(lines)


def main() -> None:
    """Print the tables of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/zero_shot/results"))
    options = parser.parse_args()
    for domain in sorted(options.folder.iterdir()):
        results = {arm.name: read(arm) for arm in sorted(domain.iterdir())}
        results = {arm: runs for arm, runs in results.items() if runs}
        if results:
            print(f"**{domain.name}**\n\n{table(results)}\n")


if __name__ == "__main__":
    main()
