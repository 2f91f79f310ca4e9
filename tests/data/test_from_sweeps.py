"""Files that hold a LiDAR sweep each."""

import numpy as np
import pytest

from sb3_jepa.data import read, read_sweeps


def cloud(n, width=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def write_kitti(folder, sizes=(5, 3, 8)):
    clouds = [cloud(n, seed=n) for n in sizes]
    (folder / "velodyne").mkdir(parents=True)
    for number, points in enumerate(clouds):
        points.tofile(folder / "velodyne" / f"{number:010d}.bin")
    return clouds


def test_kitti_is_filled_up_with_nan(tmp_path):
    clouds = write_kitti(tmp_path)
    recordings = read(tmp_path / "velodyne")
    sweeps = recordings.take(np.arange(3))
    assert sweeps.shape == (3, 8, 4)
    for points, sweep in zip(clouds, sweeps, strict=True):
        assert np.array_equal(sweep[: len(points)], points)
        assert np.isnan(sweep[len(points) :]).all()
    assert recordings.episodes.tolist() == [0, 0, 0]


def test_fewer_points_are_taken_evenly(tmp_path):
    clouds = write_kitti(tmp_path)
    sweeps = read(tmp_path, n_points=3, width=3).take(np.arange(3))
    assert sweeps.shape == (3, 3, 3)
    assert np.array_equal(sweeps[2], clouds[2][[0, 3, 7], :3])


def test_nuscenes_has_the_ring_and_folders_are_episodes(tmp_path):
    for scene in "ab":
        (tmp_path / scene).mkdir()
        cloud(4, 5).tofile(tmp_path / scene / "sweep.pcd.bin")
    recordings = read(tmp_path)
    assert recordings.observation_space.shape == (4, 5)
    assert recordings.episodes.tolist() == [0, 1]


def test_arrays_are_read(tmp_path):
    np.save(tmp_path / "0.npy", cloud(6))
    assert np.array_equal(read_sweeps([tmp_path / "0.npy"]).take(np.array([0]))[0], cloud(6))


def test_pcd_and_ply_are_read_by_their_libraries(tmp_path):
    pypcd4 = pytest.importorskip("pypcd4", reason="needs the extra lidar")
    pytest.importorskip("trimesh", reason="needs the extra lidar")
    points = cloud(7)
    pypcd4.PointCloud.from_xyzi_points(points).save(tmp_path / "a.pcd")
    names = ("x", "y", "z", "scalar_intensity")
    header = ["ply", "format binary_little_endian 1.0", "element vertex 7", *(f"property float {one}" for one in names)]
    (tmp_path / "b.ply").write_bytes(("\n".join([*header, "end_header"]) + "\n").encode() + points.tobytes())
    sweeps = read(tmp_path).take(np.arange(2))
    assert np.allclose(sweeps[0], points)
    assert np.allclose(sweeps[1], points)


def test_a_broken_file_is_named(tmp_path):
    write_kitti(tmp_path)
    (tmp_path / "velodyne" / "0000000001.bin").write_bytes(b"nothing here")
    recordings = read(tmp_path)
    with pytest.raises(ValueError, match=r"0000000001\.bin"):
        recordings.take(np.array([1]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`source` must hold sweeps"):
        read_sweeps(tmp_path / "empty")
