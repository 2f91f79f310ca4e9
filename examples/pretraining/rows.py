"""Rows of results in a CSV file: each is written when its run is finished, and what is there is not run again."""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Rows:
    """
    :param path: The CSV file
    :param keys: The columns that tell one run from another
    """

    def __init__(self, path: pathlib.Path, keys: Sequence[str]):
        self.path, self.keys = path, keys

    def read(self) -> list[dict[str, str]]:
        """All rows so far."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def is_finished(self, **run: Any) -> bool:
        """
        :param run: What tells it from others
        :return: Whether there is a row of it
        """
        wanted = [str(run[key]) for key in self.keys]
        return any([row[key] for key in self.keys] == wanted for row in self.read())

    def append(self, row: dict[str, Any]) -> None:
        """
        :param row: With the columns of all others
        """
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})


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
