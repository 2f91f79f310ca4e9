"""Encoder files that say how to make the encoder: a pretrained one can be read without a model."""

import json
import os
import pathlib
from contextlib import AbstractContextManager
from typing import Any

from gymnasium import spaces
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading, replace_when_complete
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.settings import check_written_whole, readable
from sb3_jepa.common.spaces import space_from_json, space_to_json
from sb3_jepa.extractors.files import SAFETENSORS, check_fit, read_state, write_encoder
from sb3_jepa.extractors.jepa_extractor import JepaExtractor

# Without its ending, and with those that it may have
ENCODER_NAME = "encoder"
ENCODER_FILES = (f"{ENCODER_NAME}{SAFETENSORS}", f"{ENCODER_NAME}.pth")
DESCRIPTION = f"{ENCODER_NAME}.json"


def write_pretrained(
    encoder: nn.Module,
    folder: str | pathlib.Path,
    observation_space: spaces.Space,
    features_extractor_kwargs: dict[str, Any],
    about: dict[str, Any],
) -> pathlib.Path:
    """
    Write an encoder, and beside it what it is (``encoder.json``). If the folder holds one in the other format, that is
    what ``encoder.json`` named before, it is removed.

    :param encoder: A :class:`~sb3_jepa.JepaExtractor`
    :param folder: Where to
    :param observation_space: What it sees
    :param features_extractor_kwargs: Its keyword arguments
    :param about: What else to tell of it
    :return: The file that :func:`~sb3_jepa.load_encoder` takes
    :raises ValueError: If the keyword arguments cannot be written
    """
    check_written_whole("features_extractor_kwargs", features_extractor_kwargs)
    folder = pathlib.Path(folder)
    description = folder / DESCRIPTION
    older = _named_file(description) if description.is_file() else None
    path = write_encoder(encoder, folder / ENCODER_NAME)
    described = dict(
        about,
        file=path.name,
        observation_space=space_to_json(observation_space),
        features_extractor_kwargs=features_extractor_kwargs,
    )
    with replace_when_complete(description) as unfinished:
        unfinished.write_text(json.dumps(readable(described), indent=2) + "\n")
    # Of a time when safetensors was not installed, or still was
    if older in ENCODER_FILES and older != path.name:
        (folder / older).unlink(missing_ok=True)
    return path


def find_encoder_file(folder: pathlib.Path) -> pathlib.Path:
    """
    :param folder: Of a pretraining
    :return: Its encoder's file
    :raises ValueError: If there is none
    """
    description = folder / DESCRIPTION
    named = _named_file(description) if description.is_file() else None
    # Those of sb3_jepa 0.1 name no file
    for name in ENCODER_FILES if named is None else (named,):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"There is no pretrained encoder ({' or '.join(ENCODER_FILES)}) in the folder {folder}")


def check_no_encoder(folder: pathlib.Path) -> None:
    """
    :param folder: Where an encoder is to be written for the first time
    :raises ValueError: If there is one already
    """
    for name in (DESCRIPTION, *ENCODER_FILES):
        if (folder / name).exists():
            raise ValueError(
                f"`folder` holds {name}, and no pretraining that could go on: take another folder than {folder}, or "
                "move the file"
            )


def _named_file(description: pathlib.Path) -> str | None:
    with _reading_description(description):
        named = json.loads(description.read_text()).get("file")
        return None if named is None else pathlib.Path(named).name


def _reading_description(path: pathlib.Path) -> AbstractContextManager[None]:
    return reading(path, "the description of an encoder that sb3_jepa.pretrain wrote")


def read_encoder(path: str | os.PathLike) -> JepaExtractor:
    """
    Read a pretrained encoder, for instance as the ``teacher`` of :class:`~sb3_jepa.Salt`.

    :param path: The folder of :func:`~sb3_jepa.pretrain`, or the encoder's file in it
    :return: The encoder, in evaluation mode
    :raises ValueError: If there is none, nothing beside it says what it is, or one of both is broken or holds NaN
    :raises ImportError: If it is a ``.safetensors`` file, and that package is not installed
    """
    path, space, features_extractor_kwargs = read_description(path)
    # Its parameters are read: whoever draws random numbers beside it does not miss these
    with isolated_random_numbers(), _reading_description(path.with_suffix(".json")):
        encoder = JepaExtractor(space, **features_extractor_kwargs)
    state = read_state(path)
    check_fit(state, encoder, f"{path} does not fit {path.with_suffix('.json')}")
    encoder.load_state_dict(state)
    return encoder.eval()


def read_description(path: str | os.PathLike) -> tuple[pathlib.Path, spaces.Space, dict[str, Any]]:
    """
    :param path: As of :func:`read_encoder`
    :return: The encoder's file, what it sees, and its keyword arguments
    :raises ValueError: If there is none, or nothing beside it says what it is
    """
    path = checks.path("path", path)
    path = find_encoder_file(path) if path.is_dir() else path
    description = path.with_suffix(".json")
    if not path.is_file() or not description.is_file():
        raise ValueError(
            f"`path` must be an encoder that sb3_jepa.pretrain wrote, with the file {description.name} beside it, got "
            f"{path}"
        )
    with _reading_description(description):
        described = json.loads(description.read_text())
        return path, space_from_json(described["observation_space"]), dict(described["features_extractor_kwargs"])
