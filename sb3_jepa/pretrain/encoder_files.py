"""Encoder files that say how to make the encoder: a pretrained one can be read without a model."""

import json
import pathlib
from typing import Any

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_jepa import checks
from sb3_jepa.encoders import read_state, write_encoder
from sb3_jepa.extractors import JepaExtractor
from sb3_jepa.pretrain.folders import space_from_json, space_to_json
from sb3_jepa.saving import replace_when_complete

# Without its ending
ENCODER_NAME = "encoder"


def write_pretrained(
    encoder: nn.Module,
    folder: str | pathlib.Path,
    observation_space: spaces.Space,
    features_extractor_kwargs: dict[str, Any],
    about: dict[str, Any],
) -> pathlib.Path:
    """
    Write an encoder, and beside it what it is (``encoder.json``).

    :param encoder: A :class:`~sb3_jepa.JepaExtractor`
    :param folder: Where to
    :param observation_space: What it sees
    :param features_extractor_kwargs: Its keyword arguments
    :param about: What else to tell of it, as JSON knows it
    :return: The file that :func:`~sb3_jepa.load_encoder` takes
    """
    path = write_encoder(encoder, pathlib.Path(folder) / ENCODER_NAME)
    # Of a time when safetensors was not installed, or still was
    for older in set(_encoder_files(path.parent)) - {path}:
        older.unlink()
    described = dict(
        about, observation_space=space_to_json(observation_space), features_extractor_kwargs=features_extractor_kwargs
    )
    with replace_when_complete(path.with_suffix(".json")) as unfinished:
        assert isinstance(unfinished, pathlib.Path)
        unfinished.write_text(json.dumps(described, indent=2) + "\n")
    return path


def find_encoder_file(folder: pathlib.Path) -> pathlib.Path:
    """
    :param folder: Of a pretraining
    :return: Its encoder's file
    :raises ValueError: If there is none
    """
    files = _encoder_files(folder)
    if not files:
        raise ValueError(f"There is no pretrained encoder ({ENCODER_NAME}.*) in the folder {folder}")
    return files[0]


def _encoder_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in sorted(folder.glob(f"{ENCODER_NAME}.*")) if path.suffix != ".json"]


def read_encoder(path: str | pathlib.Path) -> JepaExtractor:
    """
    Read a pretrained encoder, for instance as the ``teacher`` of :class:`~sb3_jepa.Salt`.

    :param path: The folder of :func:`~sb3_jepa.pretrain`, or the encoder's file in it
    :return: The encoder, in evaluation mode
    :raises ValueError: If there is none, or nothing beside it says what it is
    :raises ImportError: If it is a ``.safetensors`` file, and that package is not installed
    """
    path = checks.path("path", path)
    path = find_encoder_file(path) if path.is_dir() else path
    description = path.with_suffix(".json")
    if not path.is_file() or not description.is_file():
        raise ValueError(
            f"`path` must be an encoder that sb3_jepa.pretrain wrote, with the file {description.name} beside it, got "
            f"{path}"
        )
    described = json.loads(description.read_text())
    # Its parameters are read: whoever draws random numbers beside it does not miss these
    with th.random.fork_rng(devices=[]):
        encoder = JepaExtractor(
            space_from_json(described["observation_space"]), **described["features_extractor_kwargs"]
        )
    encoder.load_state_dict(read_state(path))
    return encoder.eval()
