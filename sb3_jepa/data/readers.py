"""Recordings of anything that holds or shows observations."""

import os
import pathlib
import sys
from importlib import import_module
from typing import Any

import gymnasium as gym
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.data.collection import record_env
from sb3_jepa.data.from_buffers import read_buffer
from sb3_jepa.data.from_episodes import holds_episodes, read_episodes
from sb3_jepa.data.from_files import read_file
from sb3_jepa.data.from_lerobot import is_lerobot, read_lerobot
from sb3_jepa.data.from_minari import read_minari
from sb3_jepa.data.from_robomimic import SUFFIXES, read_robomimic
from sb3_jepa.data.from_sweeps import holds_sweeps, read_sweeps
from sb3_jepa.data.recordings import Recordings

MINARI_PREFIX = "minari:"


def read(source: Any, **kwargs: Any) -> Recordings:
    """
    Recordings of anything that holds or shows observations.

    :param source: :class:`Recordings`; a file or folder, see :func:`read_file`; a folder of ExoRL's, see
        :func:`read_episodes`; an HDF5 file of robomimic's, see :func:`read_robomimic`; a folder of LeRobot's, see
        :func:`read_lerobot`; a folder of LiDAR sweeps, see :func:`read_sweeps`; a buffer, see :func:`read_buffer`; a
        data set of Minari, as ``"minari:ID"`` too, see :func:`read_minari`; an environment or its ID, see
        :func:`~sb3_jepa.pretrain.record_env`
    :param kwargs: The further parameters of that function
    :return: The recordings
    :raises ValueError: If it is none of these
    """
    if isinstance(source, Recordings):
        if kwargs:
            raise ValueError(f"Recordings are taken as they are, without further arguments, got {sorted(kwargs)}")
        return source
    if isinstance(source, (ReplayBuffer, RolloutBuffer)):
        return read_buffer(source, **kwargs)
    if isinstance(source, str) and source.startswith(MINARI_PREFIX):
        return read_minari(source.removeprefix(MINARI_PREFIX), **kwargs)
    # Skip the empty path: it would be the current folder
    if isinstance(source, (str, os.PathLike)) and os.fspath(source) and pathlib.Path(source).exists():
        if is_lerobot(source):
            return read_lerobot(source, **kwargs)
        if holds_sweeps(source):
            return read_sweeps(source, **kwargs)
        if holds_episodes(source):
            return read_episodes(source, **kwargs)
        is_hdf5 = pathlib.Path(source).suffix in SUFFIXES
        return read_robomimic(source, **kwargs) if is_hdf5 else read_file(source, **kwargs)
    if is_env(source):
        return record_env(source, **kwargs)
    # Minari is not imported here: without it there is no such data set
    if "minari" in sys.modules and isinstance(source, sys.modules["minari"].MinariDataset):
        return read_minari(source, **kwargs)
    raise ValueError(
        "`source` must be Recordings, the path of a file (.npy, .npz) or of a folder of `record_env`, a replay or "
        f'rollout buffer, a data set of Minari or "{MINARI_PREFIX}ID", an environment or its ID, got {source!r}'
    )


def read_into(
    folder: pathlib.Path, source: Any, seed: int, progress_bar: bool, source_kwargs: dict[str, Any]
) -> Recordings:
    """
    Recordings of a source; those of an environment are kept in the folder ``recordings`` beside the encoder.

    :param folder: Of the pretraining
    :param source: As of :func:`~sb3_jepa.pretrain.read`
    :param seed: Seed of an environment
    :param progress_bar: Display a progress bar while an environment is recorded
    :param source_kwargs: Keyword arguments of :func:`~sb3_jepa.pretrain.read`, which override these
    :return: The recordings
    :raises ValueError: If it is no such source, or does not take such arguments
    """
    of_env = dict(folder=folder / "recordings", seed=seed, progress_bar=progress_bar) if is_env(source) else {}
    return read(source, **{**of_env, **source_kwargs})


def is_env(source: Any) -> bool:
    """
    :param source: As of :func:`read`
    :return: Whether it is an environment, or the ID of one (``"module:ID"`` too), and nothing that exists as a file
    """
    if isinstance(source, (gym.Env, VecEnv)):
        return True
    if not isinstance(source, str) or source.startswith(MINARI_PREFIX) or pathlib.Path(source).exists():
        return False
    # "module:ID" imports a module that registers it, as in gymnasium.make
    module, _, env_id = source.rpartition(":")
    try:
        if module:
            import_module(module)
        return gym.spec(env_id) is not None
    except (gym.error.Error, ImportError, TypeError):
        return False
