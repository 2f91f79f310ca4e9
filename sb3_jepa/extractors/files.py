"""
Encoder files. Each holds the parameters and buffers of an encoder, and its description: format number, class, keyword
arguments and observation space, see :func:`describe_encoder`. The description is JSON: in a ``.safetensors`` file among
the metadata, in any other file beside the ``state_dict``, in both under the name ``sb3_jepa``.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_jepa.common import checks
from sb3_jepa.common.digests import id_of
from sb3_jepa.common.files import in_memory, reading, write_file
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.sb3_privates import observation_space_of
from sb3_jepa.common.settings import check_written_whole, readable
from sb3_jepa.common.spaces import space_from_json, space_to_json
from sb3_jepa.common.state_dicts import find_misfits, find_not_finite, warn_if_not_finite
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.lidar_extractor import LidarExtractor
from sb3_jepa.extractors.sequence_extractor import SequenceExtractor

# Raise it when an older sb3_jepa would read a file wrongly
FORMAT = 1
DESCRIPTION, SAFETENSORS = "sb3_jepa", ".safetensors"
# In the folder of a pretraining; an earlier sb3_jepa wrote the description to the third
ENCODER_FILES = (f"encoder{SAFETENSORS}", "encoder.pth")
DESCRIPTION_BESIDE = "encoder.json"
EXPECTED = "an encoder that save_encoder or pretrain wrote"
EXPECTED_BESIDE = "the description of an encoder that sb3_jepa.pretrain wrote"


def default_suffix() -> str:
    """
    :return: The ending of encoder files whose name has none: ``.safetensors`` if that package is installed
    """
    return SAFETENSORS if find_spec("safetensors") else ".pth"


def write_encoder(
    encoder: BaseFeaturesExtractor, path: str | os.PathLike, features_extractor_kwargs: Mapping[str, Any], **about: Any
) -> pathlib.Path:
    """
    Write an encoder's parameters, buffers and description. A warning tells if some of the numbers are NaN or infinite.

    :param encoder: The encoder
    :param path: Where to save, see :func:`~sb3_jepa.save_encoder`
    :param features_extractor_kwargs: The keyword arguments that it was made with
    :param about: What else the description is to say
    :return: The file
    :raises ImportError: If ``.safetensors`` is asked for and not installed
    """
    path = pathlib.Path(path)
    path = path if path.suffix else path.with_suffix(default_suffix())
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    warn_if_not_finite(state, "The encoder")
    kwargs: dict[str, Any] | None = whole_kwargs(encoder, features_extractor_kwargs)
    try:
        check_written_whole("features_extractor_kwargs", kwargs)
    except ValueError:
        # The file is still good for load_encoder(), which needs none
        kwargs = None
    description = dict(
        format=FORMAT,
        features_extractor_class=_name_of(type(encoder)),
        features_extractor_kwargs=kwargs,
        observation_space=space_to_json(observation_space_of(encoder)),
        id=id_of(encoder),
        **about,
    )
    text = json.dumps(readable(description), indent=2)
    if path.suffix == SAFETENSORS:
        # The save_file() of safetensors denies other users access to the file
        content = _safetensors().torch.save(state, {DESCRIPTION: text})
    else:
        content = in_memory(lambda file: th.save({DESCRIPTION: text, "state_dict": state}, file))
    write_file(path, content)
    return path


def whole_kwargs(encoder: BaseFeaturesExtractor, features_extractor_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param encoder: The encoder
    :param features_extractor_kwargs: The keyword arguments that it was made with
    :return: Those that make the same encoder should the defaults change, and the same if it is none of
        :class:`~sb3_jepa.JepaExtractor` itself; without ``frozen``, which is about the model
    """
    kwargs = encoder.resolved_kwargs if type(encoder) is JepaExtractor else features_extractor_kwargs
    return {name: value for name, value in kwargs.items() if name != "frozen"}


def _name_of(cls: type) -> str:
    # Its module may move
    return "sb3_jepa:JepaExtractor" if cls is JepaExtractor else f"{cls.__module__}:{cls.__qualname__}"


def find_encoder_file(path: str | os.PathLike, name: str = "path") -> pathlib.Path:
    """
    :param path: An encoder's file, or the folder of a pretraining
    :param name: Of the argument that it is
    :return: The file
    :raises ValueError: If there is none
    """
    found = checks.path(name, path)
    if found.is_dir():
        named = file_named_beside(found)
        names = ENCODER_FILES if named is None else (named,)
        found = next((found / one for one in names if (found / one).is_file()), found)
    if not found.is_file():
        raise ValueError(
            f"`{name}` must be {EXPECTED}, or the folder of a pretraining ({' or '.join(ENCODER_FILES)} in it), got "
            f"{path}"
        )
    return found


def file_named_beside(folder: pathlib.Path) -> str | None:
    """
    :param folder: Of a pretraining
    :return: The name of the encoder's file, if an earlier sb3_jepa has written its description to a file beside it
    """
    beside = folder / DESCRIPTION_BESIDE
    if not beside.is_file():
        return None
    with reading(beside, EXPECTED_BESIDE):
        named = json.loads(beside.read_text()).get("file")
        return None if named is None else pathlib.Path(named).name


def _read(path: pathlib.Path) -> tuple[dict[str, th.Tensor], dict[str, Any] | None]:
    """State and description; no description in a file of an earlier sb3_jepa."""
    safetensors = _safetensors() if path.suffix == SAFETENSORS else None
    with path.open("rb") as file, reading(path, EXPECTED):
        if safetensors:
            with safetensors.safe_open(path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        else:
            state = th.load(file, map_location="cpu", weights_only=True)
            metadata = state if isinstance(state, Mapping) and DESCRIPTION in state else {}
            state = metadata.get("state_dict", state)
        if not isinstance(state, Mapping) or not all(isinstance(value, th.Tensor) for value in state.values()):
            raise TypeError("it holds something else than tensors by their names")
        description = json.loads(metadata[DESCRIPTION]) if DESCRIPTION in metadata else None
        its_format = 0 if description is None else int(description["format"])
    if its_format > FORMAT:
        raise ValueError(
            f"{path} has format {its_format} of encoder files, and this sb3_jepa knows none above {FORMAT}: update it, "
            'pip install -U "sb3-jepa"'
        )
    name = find_not_finite(state)
    if name is not None:
        raise ValueError(
            f"{path} holds NaN or infinite values, first in {name}: the training that it is from has diverged. Take an "
            "encoder of before"
        )
    return dict(state), description


def _read_described(path: pathlib.Path) -> tuple[dict[str, th.Tensor], dict[str, Any], pathlib.Path]:
    """State, description, and the file that the latter is in."""
    state, description = _read(path)
    if description is not None:
        return state, description, path
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise ValueError(
            f"`path` must be an encoder with its description, got {path}, which has none: save_encoder of an earlier "
            "sb3_jepa wrote parameters alone. Load it with load_encoder(model, path) into a model of the same "
            "`policy_kwargs`, and save it again"
        )
    with reading(beside, EXPECTED_BESIDE):
        description = json.loads(beside.read_text())
        if not {"observation_space", "features_extractor_kwargs"} <= description.keys():
            raise ValueError("it has no observation space or no keyword arguments")
    return state, description, beside


def read_state(path: str | os.PathLike) -> dict[str, th.Tensor]:
    """
    :param path: A file that :func:`~sb3_jepa.save_encoder` or :func:`~sb3_jepa.pretrain` wrote
    :return: The encoder's parameters and buffers
    :raises ValueError: If the file is broken, of a later format, or holds NaN or infinite values
    :raises ImportError: If it is a ``.safetensors`` file, and that package is not installed
    """
    return _read(pathlib.Path(path))[0]


def describe_encoder(path: str | os.PathLike) -> dict[str, Any]:
    """
    What an encoder's file says of it: ``format``, ``features_extractor_class``, ``features_extractor_kwargs``,
    ``observation_space`` (as JSON) and ``id``, a digest of its numbers. That of a pretraining also says how it was
    trained: ``objective_class``, ``n_updates`` until it was the best, ``criterion`` and what was measured
    (``validation_loss``, ``probe_r2``, ...), the ``teacher``'s id, and all ``settings``.

    :param path: The file, or the folder of a pretraining
    :return: The description
    :raises ValueError: If there is none, or the file is broken, of a later format or holds NaN
    :raises ImportError: If it is a ``.safetensors`` file, and that package is not installed
    """
    return _read_described(find_encoder_file(path))[1]


def read_encoder(path: str | os.PathLike) -> JepaExtractor:
    """
    Read an encoder without a model, for instance as the ``teacher`` of :class:`~sb3_jepa.Salt`. If it is of a subclass
    of :class:`~sb3_jepa.JepaExtractor` or :class:`~sb3_jepa.SequenceExtractor`, the module that defines this must have
    been imported: what a file names is never imported.

    :param path: What :func:`~sb3_jepa.save_encoder` or :func:`~sb3_jepa.pretrain` wrote, or the latter's folder
    :return: The encoder, in evaluation mode
    :raises ValueError: If there is none, it is of another class, or the file is broken, of a later format or holds NaN
    :raises ImportError: If it is a ``.safetensors`` file, and that package is not installed
    """
    return read_described_encoder(path)[0]


def read_described_encoder(path: str | os.PathLike) -> tuple[JepaExtractor, dict[str, Any]]:
    """
    :param path: As of :func:`read_encoder`
    :return: The encoder, and what :func:`describe_encoder` tells of it
    :raises ValueError: As :func:`read_encoder`
    :raises ImportError: As :func:`read_encoder`
    """
    path = find_encoder_file(path)
    state, description, described_in = _read_described(path)
    cls, kwargs = _class_in(description, path), description["features_extractor_kwargs"]
    if kwargs is None:
        raise ValueError(
            f"{path} does not say what the encoder was made with, since some of its keyword arguments cannot be "
            "written as JSON. Load it with load_encoder(model, path) into a model of the same `policy_kwargs`"
        )
    # Its parameters are read: the random numbers of its initialisation are not taken from anything beside it
    with isolated_random_numbers(), reading(described_in, EXPECTED if described_in == path else EXPECTED_BESIDE):
        encoder = cls(space_from_json(description["observation_space"]), **kwargs)
    of = "its description" if described_in == path else described_in
    check_fit(state, encoder, f"{path} does not fit {of}")
    encoder.load_state_dict(state)
    return encoder.eval(), description


def _class_in(description: Mapping[str, Any], path: pathlib.Path) -> type[JepaExtractor]:
    name = description.get("features_extractor_class", _name_of(JepaExtractor))
    known: list[Any] = [JepaExtractor, LidarExtractor, SequenceExtractor]
    for cls in known:
        if _name_of(cls) == name:
            return cls
        known += cls.__subclasses__()
    raise ValueError(
        f"{path} is an encoder of the class {name}, and no JepaExtractor of that name is imported. Import the module "
        "that defines it, if it is one, or load the file with load_encoder(model, path) into a model that has it"
    )


def check_fit(state: Mapping[str, th.Tensor], encoder: th.nn.Module, message: str) -> None:
    """
    :param state: Parameters and buffers that were read from a file
    :param encoder: What they are for
    :param message: The beginning of what is said if they do not fit
    :raises ValueError: If names, shapes or types are others
    """
    misfits = find_misfits(state, encoder.state_dict(), "in the file", "in the model")
    if misfits:
        raise ValueError(f"{message}: {'; '.join(misfits)}")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            'Files that end in .safetensors need a package: pip install "sb3-jepa[safetensors]"'
        ) from error
    return safetensors
