"""Recordings of the data sets of Minari."""

import pathlib
from typing import Any

import numpy as np

from sb3_jepa.common import checks
from sb3_jepa.common.digests import digest
from sb3_jepa.common.spaces import ARRAY_SPACES
from sb3_jepa.data.channels import channels_first, transpose
from sb3_jepa.data.folders import RecordingWriter
from sb3_jepa.data.recordings import Recordings


def read_minari(dataset: Any, download: bool = False, folder: str | pathlib.Path | None = None) -> Recordings:
    """
    Recordings of a data set of Minari. Without a folder they are loaded into memory; in one they are written episode by
    episode, in arrays that are mapped into memory. The same call goes on where it was interrupted, and does not write
    what is complete again.

    :param dataset: ``MinariDataset``, or the ID of one
    :param download: Whether to download it, if it is not on this computer
    :param folder: Where to save the recordings; None to keep them in memory
    :return: The recordings, each episode with its last observation
    :raises ValueError: If there is no such data set, or the folder holds other recordings
    :raises ImportError: If Minari is not installed
    """
    download = checks.flag("download", download)
    folder = checks.optional(checks.path, "folder", folder)
    try:
        import minari
    except ImportError as error:
        raise ImportError('Data sets of Minari need a package: pip install "sb3-jepa[offline]"') from error
    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset, download=download)
        except (OSError, ValueError) as error:
            raise ValueError(f"`dataset` must be the ID of a data set of Minari, got {dataset!r}. {error}") from error
    if not isinstance(dataset, minari.MinariDataset):
        raise ValueError(f"`dataset` must be a MinariDataset or the ID of one, got {dataset!r}")
    space = channels_first(dataset.observation_space)
    action_space = dataset.action_space if isinstance(dataset.action_space, ARRAY_SPACES) else None
    indices = np.asarray(dataset.episode_indices, np.int64)
    settings = dict(dataset=dataset.id, episodes=digest([indices.tobytes()]))
    # Of each episode there is one more, the last
    n_rows = dataset.total_steps + dataset.total_episodes
    writer = RecordingWriter(space, n_rows, folder, settings, action_space)
    if not writer.is_complete:
        for number, episode in enumerate(dataset.iterate_episodes()):
            start = writer.append(
                dict(
                    observations=transpose(episode.observations, space),
                    episodes=np.full(len(episode) + 1, number),
                )
            )
            step = dict(
                rewards=episode.rewards,
                terminated=episode.terminations,
                has_action=np.ones(len(episode), dtype=bool),
                actions=episode.actions,
            )
            writer.amend(start, step)
            writer.save_if_due()
    return writer.recordings()
