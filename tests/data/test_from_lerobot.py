"""Data sets in the layout of LeRobot, version 3."""

import io
import json

import numpy as np
import pytest

from sb3_jepa.data import read

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra lerobot")
parquet = pytest.importorskip("pyarrow.parquet")
LENGTHS = (5, 7)


def write(folder, n_tasks=1, videos=False, images=False):
    """As LeRobot's documentation of its format has it."""
    rng = np.random.default_rng(0)
    n = sum(LENGTHS)
    columns = {
        "observation.state": rng.normal(size=(n, 3)).astype(np.float32),
        "action": rng.normal(size=(n, 2)).astype(np.float32),
        "timestamp": np.concatenate([np.arange(length) / 10 for length in LENGTHS]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(length) for length in LENGTHS]),
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "index": np.arange(n),
        "task_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS) % n_tasks,
    }
    features = {
        "observation.state": dict(dtype="float32", shape=[3], names=None),
        "action": dict(dtype="float32", shape=[2], names=None),
    }
    pictures = (255 * rng.random((n, 1, 1, 3)) * np.ones((1, 16, 24, 1))).astype(np.uint8)
    arrays = {name: pyarrow.array(list(value) if value.ndim > 1 else value) for name, value in columns.items()}
    if images:
        image = pytest.importorskip("PIL.Image")

        def encoded(picture):
            file = io.BytesIO()
            image.fromarray(picture).save(file, "PNG")
            return dict(bytes=file.getvalue(), path=None)

        arrays["observation.images.top"] = pyarrow.array([encoded(one) for one in pictures])
        features["observation.images.top"] = dict(dtype="image", shape=[16, 24, 3])
    if videos:
        av = pytest.importorskip("av")
        file = folder / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4"
        file.parent.mkdir(parents=True)
        with av.open(str(file), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        features["observation.images.top"] = dict(dtype="video", shape=[16, 24, 3])
    (folder / "data" / "chunk-000").mkdir(parents=True)
    table = pyarrow.table(arrays)
    # Two files, the rows of an episode in both
    parquet.write_table(table.slice(0, 6), folder / "data" / "chunk-000" / "file-000.parquet")
    parquet.write_table(table.slice(6), folder / "data" / "chunk-000" / "file-001.parquet")
    (folder / "meta").mkdir()
    info = dict(codebase_version="v3.0", fps=10, features=features)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return columns, pictures


def test_numbers_and_episodes(tmp_path):
    columns, _ = write(tmp_path)
    recordings = read(tmp_path)
    assert recordings.episodes.tolist() == columns["episode_index"].tolist()
    assert np.array_equal(recordings.take(np.arange(12))["state"], columns["observation.state"])
    assert np.array_equal(recordings.actions, columns["action"])
    assert set(recordings.observation_space) == {"state"}


def test_several_tasks_are_told_apart(tmp_path):
    write(tmp_path, n_tasks=2)
    recordings = read(tmp_path)
    assert recordings.observation_space["task"].n == 2
    assert set(read(tmp_path, keys=["state"]).observation_space) == {"state"}


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_pictures(tmp_path, kind):
    _, pictures = write(tmp_path, **{kind: True})
    recordings = read(tmp_path)
    top = recordings.take(np.arange(12))["images.top"]
    assert top.shape == (12, 3, 16, 24)
    # A video is compressed
    assert np.abs(top.astype(int) - pictures.transpose(0, 3, 1, 2)).mean() < (1 if kind == "images" else 12)
    small = read(tmp_path, image_size=(8, 12)).observation_space["images.top"]
    assert small.shape == (3, 8, 12)


def test_what_is_missing_or_broken_is_named(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"must hold 'action' and the observations \['nothing'\]"):
        read(tmp_path, keys=["nothing"])
    with pytest.raises(ValueError, match="`image_size` must be"):
        read(tmp_path, image_size=(3,))
    file = tmp_path / "data" / "chunk-000" / "file-001.parquet"
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"file-001.parquet"):
        read(tmp_path)
