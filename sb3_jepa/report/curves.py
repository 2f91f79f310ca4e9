"""The curves that a training has logged, read from its files."""

import csv
import pathlib

import numpy as np

from sb3_jepa.common.files import reading

# Time steps and values
Curve = tuple[np.ndarray, np.ndarray]


def read_curves(folder: str | pathlib.Path, below: bool = True) -> dict[str, Curve]:
    """
    The curves that a training has logged in a folder, by name: time steps and values, from TensorBoard's files or else
    from ``progress.csv``; none if nothing was logged. Of several trainings in folders ``below``, the latest is read.

    :raises ValueError: If ``progress.csv`` is no table
    :raises ImportError: If there are TensorBoard's files, and TensorBoard is not installed
    """
    find = pathlib.Path(folder).rglob if below else pathlib.Path(folder).glob
    events = sorted(find("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime)
    curves = _read_events(events[-1].parent) if events else {}
    if curves:
        return curves
    tables = sorted(find("progress.csv"), key=lambda file: file.stat().st_mtime)
    return _read_table(tables[-1]) if tables else {}


def _read_events(folder: pathlib.Path) -> dict[str, Curve]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError('To read its curves, TensorBoard is needed: pip install "sb3-jepa[examples]"') from error
    accumulator = EventAccumulator(str(folder), size_guidance=dict(scalars=0)).Reload()
    curves = {}
    for name in accumulator.Tags()["scalars"]:
        events = accumulator.Scalars(name)
        curves[name] = np.array([event.step for event in events]), np.array([event.value for event in events])
    return curves


def _read_table(path: pathlib.Path) -> dict[str, Curve]:
    steps_name = "time/total_timesteps"
    with path.open(newline="") as file, reading(path, "a table of curves"):
        rows = list(csv.DictReader(file))
    curves = {}
    for name in filter(None, rows[0] if rows else []):
        # Skip empty cells: a row has only what was logged since the row before
        known = [(row[steps_name], row[name]) for row in rows if row.get(steps_name) and row.get(name)]
        try:
            steps, values = np.array(known, dtype=np.float64).reshape(-1, 2).T
        except ValueError:
            continue  # a text
        curves[name] = steps, values
    return curves
