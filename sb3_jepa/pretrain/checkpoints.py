"""The checkpoint of a pretraining: all that it needs to go on."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.common.files import in_memory, reading, write_file
from sb3_jepa.common.settings import differing_settings
from sb3_jepa.extractors.files import DESCRIPTION_BESIDE, ENCODER_FILES

CHECKPOINT, CURVES = "checkpoint.pth", "progress.csv"
EXPECTED = "the checkpoint of a pretraining"


def write_checkpoint(folder: pathlib.Path, settings: dict[str, Any], state: dict[str, Any]) -> None:
    """
    :param folder: Of the pretraining
    :param settings: All that decides what is computed, beside the observations
    :param state: What is learned, and how far it has come
    """
    state = dict(state, settings=json.dumps(settings), random_state=th.get_rng_state())
    write_file(folder / CHECKPOINT, in_memory(lambda file: th.save(state, file)))


def read_checkpoint(folder: pathlib.Path, device: th.device | str = "cpu") -> dict[str, Any] | None:
    """
    :param folder: Of a pretraining
    :param device: Where to put tensors
    :return: Its state, with the settings as a dictionary; None if there is no checkpoint
    :raises ValueError: If the file is broken
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    with reading(path, EXPECTED):
        state = th.load(path, map_location=device, weights_only=True)
        return dict(state, settings=json.loads(state["settings"]))


def is_prolonged(settings: dict[str, Any], before: dict[str, Any], folder: pathlib.Path) -> bool:
    """
    :param settings: Of a pretraining
    :param before: Those in the checkpoint of its folder
    :param folder: The folder
    :return: Whether it is to have more updates than before
    :raises ValueError: If it is another pretraining
    """
    differing = differing_settings(before, settings)
    if differing.keys() == {"n_updates"} and before.get("n_updates", 0) < settings["n_updates"]:
        return True
    if differing:
        raise ValueError(
            f"`folder` holds another pretraining: take another one than {folder}, or delete it. "
            + "; ".join(f"{name} is {theirs} there and {own} here" for name, (theirs, own) in differing.items())
        )
    return False


def check_nothing_is_overwritten(folder: pathlib.Path) -> None:
    """
    :param folder: Where a pretraining is to begin
    :raises ValueError: If it holds an encoder, or curves of another training
    """
    for name in (DESCRIPTION_BESIDE, *ENCODER_FILES):
        if (folder / name).exists():
            raise ValueError(
                f"`folder` holds {name}, and no pretraining that could go on: take another folder than {folder}, or "
                "move the file"
            )
    curves = folder / CURVES
    # A pretraining that was interrupted before its first checkpoint has written its first row
    if curves.is_file() and curves.stat().st_size > 0:
        with curves.open(errors="replace") as file:
            is_own = "jepa/validation_loss" in file.readline()
        if not is_own:
            raise ValueError(f"`folder` holds curves of another training, {curves}: take another folder, or move them")


def load_optimizer(optimizer: th.optim.Optimizer, state: dict[str, Any], parameters: Iterable[nn.Parameter]) -> None:
    """
    :param optimizer: It is given the state
    :param state: Of an optimiser. The one of an earlier sb3_jepa had all parameters in one group.
    :param parameters: All parameters in the order of that group
    """
    if len(state["param_groups"]) < len(optimizer.param_groups):
        place = {parameter: index for index, parameter in enumerate(parameters)}
        order = [place[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        moments = {new: state["state"][old] for new, old in enumerate(order) if old in state["state"]}
        state = dict(optimizer.state_dict(), state=moments)
    optimizer.load_state_dict(state)
