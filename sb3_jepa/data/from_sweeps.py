"""Recordings of files that hold a LiDAR sweep each."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading
from sb3_jepa.data.recordings import Recordings

# Numbers of a point in files that do not tell: x, y, z, intensity, and in nuScenes' the ring
KITTI_WIDTH, NUSCENES_WIDTH = 4, 5
NUSCENES = ".pcd.bin"
SUFFIXES = (".bin", ".npy", ".pcd", ".ply")
NEEDS = 'Sweeps of .pcd and .ply files need packages: pip install "sb3-jepa[lidar]"'


class SweepFiles:
    """
    Sweeps of files as an array that reads them when they are looked up.

    :param files: One for each sweep
    :param n_points: Points of each sweep: smaller ones are filled up with NaN, of larger ones every so many points are
        taken
    :param width: Numbers of a point
    """

    dtype = np.dtype(np.float32)

    def __init__(self, files: Sequence[pathlib.Path], n_points: int, width: int):
        self.files = list(files)
        self.shape = (len(self.files), n_points, width)
        self.ndim = 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        sweeps = np.full((*numbers.shape, *self.shape[1:]), np.nan, np.float32)
        for index in np.ndindex(numbers.shape):
            points = read_sweep(self.files[numbers[index]], self.shape[2])
            if len(points) > self.shape[1]:
                points = points[np.linspace(0, len(points) - 1, self.shape[1]).astype(np.int64)]
            sweeps[index][: len(points)] = points[:, : self.shape[2]]
        return sweeps


def holds_sweeps(path: str | os.PathLike) -> bool:
    """
    :param path: Of a folder, or of anything else
    :return: Whether it is a folder of sweeps, such as KITTI's ``velodyne``
    """
    folder = pathlib.Path(path)
    return folder.is_dir() and any(next(folder.rglob(f"*{suffix}"), None) for suffix in (".bin", ".pcd", ".ply"))


def read_sweeps(
    source: str | os.PathLike | Sequence[str | os.PathLike], n_points: int | None = None, width: int | None = None
) -> Recordings:
    """
    Recordings of files that hold a LiDAR sweep each: KITTI's ``velodyne/*.bin`` (x, y, z, intensity), nuScenes'
    ``*.pcd.bin`` (with the ring), ``.npy`` arrays ``(points, numbers)``, and ``.pcd`` and ``.ply`` by their libraries.
    A file is read when its sweep is taken, so that there may be more than the memory holds.

    :param source: A folder, whose files are taken in the order of their names, or a list of files. Each folder that
        holds files is an episode.
    :param n_points: Points of each sweep: smaller ones are filled up with NaN, of larger ones every so many points are
        taken. By default as many as the largest has.
    :param width: Numbers of a point that are taken; by default all
    :return: The recordings, of observations ``(n_points, width)``, without actions
    :raises ValueError: If there is no such file, or one is broken, which is named
    :raises ImportError: If the library of ``.pcd`` or ``.ply`` is not installed
    """
    n_points = checks.optional(checks.whole_number, "n_points", n_points)
    width = checks.optional(checks.whole_number, "width", width, least=3)
    if isinstance(source, (str, os.PathLike)):
        folder = checks.path("source", source)
        files = sorted(one for one in folder.rglob("*") if one.suffix in SUFFIXES)
    elif isinstance(source, Sequence):
        files = [checks.existing_file("source", one) for one in source]
    else:
        checks.refuse("source", "a folder, or a list of files", source)
    if not files:
        raise ValueError(f"`source` must hold sweeps, {', '.join(SUFFIXES)}, got {source}")
    first = read_sweep(files[0], width)
    width = first.shape[1] if width is None else width
    n_points = max(_n_points(file, width) for file in files) if n_points is None else n_points
    folders = {folder: number for number, folder in enumerate(dict.fromkeys(file.parent for file in files))}
    episodes = np.array([folders[file.parent] for file in files])
    space = spaces.Box(-np.inf, np.inf, (n_points, width), np.float32)
    return Recordings(space, SweepFiles(files, n_points, width), episodes)


def read_sweep(file: pathlib.Path, width: int | None = None) -> np.ndarray:
    """
    :param file: Of a sweep
    :param width: Numbers of a point that are wanted at least
    :return: Points ``(points, numbers)``, float32
    :raises ValueError: If it is broken, or its points have fewer numbers
    """
    with reading(file, "a LiDAR sweep"):
        if file.suffix == ".bin":
            of_file = NUSCENES_WIDTH if file.name.endswith(NUSCENES) else KITTI_WIDTH
            points = np.fromfile(file, np.float32)
            if points.size == 0 or points.size % of_file:
                raise ValueError(f"{points.size} numbers are no points of {of_file} numbers each")
            points = points.reshape(-1, of_file)
        elif file.suffix == ".npy":
            points = np.load(file, mmap_mode="r")
        else:
            points = _read_pcd(file) if file.suffix == ".pcd" else _read_ply(file)
        if points.ndim != 2 or points.shape[1] < (width or 3):
            raise ValueError(f"points must have at least {width or 3} numbers, got an array of shape {points.shape}")
        return np.asarray(points, np.float32)


def _n_points(file: pathlib.Path, width: int) -> int:
    if file.suffix == ".bin":
        return file.stat().st_size // (4 * (NUSCENES_WIDTH if file.name.endswith(NUSCENES) else KITTI_WIDTH))
    return len(read_sweep(file, width))


def _read_pcd(file: pathlib.Path) -> np.ndarray:
    try:
        from pypcd4 import PointCloud
    except ImportError as error:
        raise ImportError(NEEDS) from error
    cloud = PointCloud.from_path(file)
    return cloud.numpy(_columns(cloud.fields))


def _read_ply(file: pathlib.Path) -> np.ndarray:
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(NEEDS) from error
    vertices = trimesh.load(file, file_type="ply").metadata["_ply_raw"]["vertex"]["data"]
    return np.stack([vertices[name] for name in _columns(vertices.dtype.names)], axis=1)


def _columns(names: Sequence[str]) -> list[str]:
    """Place first, and of the others the intensity."""
    others = [name for name in names if "intensity" in name]
    missing = {"x", "y", "z"} - set(names)
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}, but {', '.join(names)}")
    return ["x", "y", "z", *others[:1]]
