"""Recordings of LeRobot's data sets of demonstrations."""

import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading
from sb3_jepa.data.channels import channels_first, transpose
from sb3_jepa.data.from_files import guess_space
from sb3_jepa.data.recordings import Recordings

PREFIX = "observation."
INFO = pathlib.Path("meta") / "info.json"
NEEDS = 'Data sets of LeRobot need packages: pip install "sb3-jepa[lerobot]"'


def is_lerobot(path: str | os.PathLike) -> bool:
    """
    :param path: Of a folder
    :return: Whether it is a data set of LeRobot
    """
    return (pathlib.Path(path) / INFO).is_file() and (pathlib.Path(path) / "data").is_dir()


def read_lerobot(
    path: str | os.PathLike,
    keys: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
) -> Recordings:
    """
    Recordings of a data set of *LeRobot* (version 3, or 2.1): parquet files with a row for each frame, images among
    them or as videos.

    :param path: Of its folder, with ``meta/info.json`` and ``data``
    :param keys: Which observations to take, without ``observation.``, such as ``"state"`` and ``"images.top"``; all by
        default
    :param image_size: ``(height, width)`` that images and videos are reduced to; as they are by default, which may be
        more than the memory holds
    :param observation_space: Of the environment that they are from. By default it is guessed.
    :param action_space: The same for actions
    :return: The recordings, whose observations are a ``Dict``; where there are several tasks, ``"task"`` is the number
    :raises ValueError: If there is no such data set, a file is broken, or there are no such observations
    :raises ImportError: If pyarrow, or for images and videos Pillow and PyAV, are not installed
    """
    path, keys = checks.path("path", path), checks.optional(checks.texts, "keys", keys)
    size = checks.optional(checks.sizes, "image_size", image_size)
    if size is not None and len(size) != 2:
        checks.refuse("image_size", "None or (height, width)", image_size)
    observation_space, action_space = (
        checks.optional(checks.instance, name, space, cls=spaces.Space)
        for name, space in (("observation_space", observation_space), ("action_space", action_space))
    )
    if not is_lerobot(path):
        raise ValueError(f"`path` must be the folder of a data set of LeRobot, with {INFO} and 'data', got {path}")
    with reading(path / INFO, "the description of a data set of LeRobot"):
        features = json.loads((path / INFO).read_text())["features"]
    there = [name.removeprefix(PREFIX) for name in features if name.startswith(PREFIX)]
    wanted = there if keys is None else keys
    if not wanted or set(wanted) - set(there) or "action" not in features:
        raise ValueError(f"{path} must hold 'action' and the observations {wanted}, got {sorted(features)}")
    rows = _read_rows(path, ["action", *(PREFIX + key for key in wanted)], features, size)
    of_video = [key for key in wanted if features[PREFIX + key]["dtype"] == "video"]
    for key in of_video:
        rows[PREFIX + key] = _read_videos(path, PREFIX + key, len(rows["episode_index"]), size)
    order = np.lexsort((rows["frame_index"], rows["episode_index"]))
    observations = {key: rows[PREFIX + key][order] for key in wanted}
    tasks = rows.get("task_index", np.zeros(len(order), np.int64))[order]
    if keys is None and tasks.max() > 0:
        observations["task"] = tasks
    if observation_space is None:
        guessed = {key: guess_space(key, array, "observation_space") for key, array in observations.items()}
        observation_space = spaces.Dict(guessed)
    observation_space = channels_first(observation_space)
    actions = rows["action"][order]
    rewards, done = (None if name not in rows else rows[name][order] for name in ("next.reward", "next.done"))
    return Recordings(
        observation_space,
        transpose(observations, observation_space),
        rows["episode_index"][order],
        guess_space("actions", actions, "action_space") if action_space is None else action_space,
        actions,
        None if rewards is None else rewards.astype(np.float32),
        None if done is None else done.astype(bool),
    )


def _read_rows(
    path: pathlib.Path, names: list[str], features: dict[str, Any], size: tuple[int, ...] | None
) -> dict[str, np.ndarray]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(NEEDS) from error
    files = sorted((path / "data").rglob("*.parquet"))
    if not files:
        raise ValueError(f"{path} holds no data/*/*.parquet")
    parts: dict[str, list[np.ndarray]] = {}
    optional = ("episode_index", "frame_index", "task_index", "next.reward", "next.done")
    for file in files:
        with reading(file, "a parquet file of LeRobot"):
            table = parquet.read_table(file)
            for name in (*names, *optional):
                kind = features.get(name, {}).get("dtype")
                if kind == "video" or (name in optional and name not in table.column_names):
                    continue
                column = table.column(name).combine_chunks()
                if kind == "image":
                    parts.setdefault(name, []).append(np.stack([_image(one, size) for one in column.to_pylist()]))
                    continue
                is_list = hasattr(column, "flatten") and str(column.type).startswith(("list", "fixed_size_list"))
                flat = column.flatten() if is_list else column
                array = np.asarray(flat.to_numpy(zero_copy_only=False))
                parts.setdefault(name, []).append(array.reshape(table.num_rows, -1) if is_list else array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _image(stored: dict[str, Any], size: tuple[int, ...] | None) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(NEEDS) from error
    image = Image.open(io.BytesIO(stored["bytes"])).convert("RGB")
    return np.asarray(image if size is None else image.resize((size[1], size[0])))


def _read_videos(path: pathlib.Path, name: str, n_rows: int, size: tuple[int, ...] | None) -> np.ndarray:
    # Version 3 has a folder for each key with one for each chunk in it, version 2.1 the other way round
    files = sorted({*(path / "videos").glob(f"{name}/*/*.mp4"), *(path / "videos").glob(f"*/{name}/*.mp4")})
    frames = [frame for file in files for frame in _frames(file, size)]
    if len(frames) != n_rows:
        raise ValueError(
            f"The videos {name!r} of {path} must have a frame for each of {n_rows} rows, got {len(frames)}"
        )
    return np.stack(frames)


def _frames(file: pathlib.Path, size: tuple[int, ...] | None) -> Iterator[np.ndarray]:
    try:
        import av
    except ImportError as error:
        raise ImportError(NEEDS) from error
    with reading(file, "a video"), av.open(str(file)) as container:
        for frame in container.decode(video=0):
            if size is not None:
                frame = frame.reformat(width=size[1], height=size[0])
            yield frame.to_ndarray(format="rgb24")
