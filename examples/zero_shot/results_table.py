"""
The table of what ``compare.py`` measured.

    python examples/zero_shot/results_table.py --folder runs/zero_shot/results

Means over the seeds, with 95 % bootstrap intervals.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from summary import mean_and_interval


def read(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
    """
    :param folder: Of an arm
    :return: What its finished runs measured, by their seeds
    """
    paths = sorted(folder.glob("seed*.json"))
    return {int(path.stem.removeprefix("seed")): json.loads(path.read_text()) for path in paths}


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
    runs = [run for run in results.get("td-jepa", []) if run.get("random_tasks")]
    if runs:
        for name, of_all in (("best of its random task vectors", np.max), ("random task vector", np.mean)):
            row(name, [[float(of_all(run["random_tasks"][task])) for run in runs] for task in tasks])
    return "\n".join(lines)


def overall(domains: dict[str, dict[str, dict[int, dict[str, Any]]]]) -> str:
    """
    :param domains: For each domain and arm, what each seed measured
    :return: The mean of all tasks of all domains, of the arms and seeds that have run in all
    """
    lines = ["| arm | mean of all tasks | of each seed |", "|---|---|---|"]

    def row(name: str, arm: str, of_task: Callable[[dict[str, Any], str], float]) -> None:
        runs = [of_domain.get(arm, {}) for of_domain in domains.values()]
        seeds = sorted(set.intersection(*(set(one) for one in runs)))
        means = [
            float(np.mean([of_task(one[seed], task) for one in runs for task in one[seed]["returns"]]))
            for seed in seeds
        ]
        if means:
            lines.append(f"| {name} | {mean_and_interval(means)} | {', '.join(f'{value:.0f}' for value in means)} |")

    for arm in sorted({arm for of_domain in domains.values() for arm in of_domain}):
        row(f"`{arm}`", arm, lambda run, task: run["returns"][task])
    if all(run.get("random_tasks") for of_domain in domains.values() for run in of_domain.get("td-jepa", {}).values()):
        row("best of its random task vectors", "td-jepa", lambda run, task: max(run["random_tasks"][task]))
    return "\n".join(lines)


def main() -> None:
    """Print the tables of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/zero_shot/results"))
    options = parser.parse_args()
    domains = {
        domain.name: {arm.name: runs for arm in sorted(domain.iterdir()) if (runs := read(arm))}
        for domain in sorted(options.folder.iterdir())
    }
    for name, arms in domains.items():
        print(f"**{name}**\n\n{table({arm: [*runs.values()] for arm, runs in arms.items()})}\n")
    if len(domains) > 1:
        print(f"**all**\n\n{overall(domains)}")


if __name__ == "__main__":
    main()
