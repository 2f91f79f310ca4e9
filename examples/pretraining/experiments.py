"""What the experiments here share: a file of finished runs, tables of them, and a probe for classes."""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sb3_jepa.common.files import replace_when_complete
from sb3_jepa.diagnostics import ridge_predictions


class FinishedRuns:
    """
    A CSV file with a row for each finished run, and sometimes one more for what else it has left. Rows are written at
    once, so that an interruption costs no more than the run it comes in.

    :param path: Of the file, which need not exist
    :param keys: Columns that tell a row from the others
    """

    def __init__(self, path: pathlib.Path, keys: Sequence[str]):
        self.path, self.keys = path, keys
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, **run: Any) -> bool:
        """
        :param run: What it has in the columns that tell it from others
        :return: Whether it is there
        """
        return any(all(row[key] == str(run[key]) for key in self.keys) for row in self.rows)

    def add(self, **row: Any) -> None:
        """
        :param row: Columns of the row. It takes the place of one that is not to be told from it.
        """
        self.rows = [other for other in self.rows if any(other[key] != str(row[key]) for key in self.keys)]
        self.rows.append(
            {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in row.items()}
        )
        with replace_when_complete(self.path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
            writer.writeheader()
            writer.writerows(self.rows)
        print(*(f"{name}={value}" for name, value in self.rows[-1].items()), flush=True)

    def table(self, **run: Any) -> pd.DataFrame:
        """
        :param run: Columns of the rows that are wanted
        :return: These rows
        """
        table = pd.read_csv(self.path)
        for name, value in run.items():
            table = table[table[name] == value]
        return table


def values_of(rows: Iterable[dict[str, str]], column: str, **run: Any) -> np.ndarray:
    """
    :param rows: Rows of results
    :param column: Name of a column of numbers
    :param run: What the rows must have in other columns
    :return: The numbers of these rows, one for each seed
    """
    return np.array([float(row[column]) for row in rows if all(row[key] == str(one) for key, one in run.items())])


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """
    :param header: Names of the columns
    :param lines: The cells of each line
    :return: The table
    """
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def mean_and_seeds(values: Iterable[float], digits: int = 0) -> str:
    """
    :param values: One for each seed
    :param digits: After the point
    :return: Their mean, and in brackets each of them; empty if there is none
    """
    values = list(values)
    of_seeds = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{np.mean(values):.{digits}f} ({of_seeds})" if values else ""


def markdown(table: pd.DataFrame, metrics: Sequence[str]) -> str:
    """
    :param table: Rows with the columns ``arm`` and ``seed``
    :param metrics: Columns to show
    :return: A line for each arm: of each metric the mean, and in brackets what each seed has
    """
    lines = []
    for arm, rows in table.groupby("arm", sort=False):
        cells = [str(arm)]
        for metric in metrics:
            values = rows.sort_values("seed")[metric].dropna()
            cells.append(mean_and_seeds(values, 1 if table[metric].abs().max() > 2 else 3))
        lines.append(cells)
    return markdown_table(["arm", *metrics], lines)


def draw_arms(axes: Axes, table: pd.DataFrame, metric: str, title: str) -> None:
    """
    A dot for each seed and a line at their mean, arm by arm from the top.

    :param axes: Where to draw
    :param table: Rows with the columns ``arm`` and ``seed``
    :param metric: Column to draw
    :param title: Of the panel
    """
    arms = list(dict.fromkeys(table["arm"]))
    for place, arm in enumerate(arms):
        values = table[table["arm"] == arm][metric]
        axes.plot(values, np.full(len(values), place), "o", color="C0", alpha=0.6)
        axes.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color="C3")
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)


def class_accuracy(
    inputs: np.ndarray, classes: np.ndarray, is_held_out: np.ndarray, is_counted: np.ndarray | None = None
) -> float:
    """
    How often ridge regression of the one-hot class, fitted to the other rows, is largest at the right one.

    :param inputs: ``(rows, inputs)``
    :param classes: Numbers of the classes, ``(rows,)``
    :param is_held_out: ``(rows,)``, which rows are not fitted to
    :param is_counted: ``(rows,)``, which of those it is measured on; all of them by default
    :return: Share of the rows
    """
    predicted = ridge_predictions(inputs, np.eye(classes.max() + 1)[classes], is_held_out).argmax(axis=1)
    is_right = predicted == classes[is_held_out]
    return float(is_right.mean() if is_counted is None else is_right[is_counted[is_held_out]].mean())
