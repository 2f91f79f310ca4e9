"""The encoders of a policy: found, saved, and loaded into another one."""

import pathlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa import checks
from sb3_jepa.buffers import by_key, unkeyed
from sb3_jepa.extractors import JepaExtractor, jepa_extractors
from sb3_jepa.objectives import Objective
from sb3_jepa.parts import MomentumEncoder, measuring
from sb3_jepa.parts.ranks import gather_batch
from sb3_jepa.saving import find_misfits, find_not_finite, in_memory, reading, warn_if_not_finite, write_file

SAFETENSORS = ".safetensors"
# Observations that are measured at once: a long rollout of images, as floats, may not fit into memory
BATCH_SIZE = 1024
# The model's attribute that holds what JepaCallback trains its encoders with, for the model's zip to hold it too
LEARNERS = "jepa_learners"


def find_encoders(policy: BasePolicy) -> dict[str, BaseFeaturesExtractor]:
    """
    The features extractors of a policy that learn: not those of target networks, and each once.

    :param policy: Of any algorithm
    :return: By the network that they belong to, such as ``"actor"``, ``"critic"`` or ``"q_net"``; ``"shared"`` for the
        one of an actor-critic policy
    """
    encoders: dict[str, BaseFeaturesExtractor] = {}
    for path, module in features_extractors(policy).items():
        network = path.split(".")[0]
        if next(module.parameters(), None) is not None and not network.endswith("_target"):
            if network.endswith("features_extractor"):
                is_shared = getattr(policy, "share_features_extractor", True)
                network = "shared" if is_shared else "critic" if network.startswith("vf") else "actor"
            encoders[network] = module
    return encoders


def features_extractors(policy: BasePolicy) -> dict[str, BaseFeaturesExtractor]:
    """
    Those of the policy's networks, target networks among them.

    :param policy: Of any algorithm
    :return: By their paths, and each once
    """
    found: dict[str, BaseFeaturesExtractor] = {}
    for path, module in policy.named_modules():
        # An extractor may be made of others, and an objective has a copy of one
        is_part = any(path.startswith(f"{whole}.") for whole in found)
        is_one = isinstance(module, BaseFeaturesExtractor) and path.endswith("features_extractor")
        if is_one and not is_part:
            found[path] = module  # type: ignore[assignment]
    return found


def pick_encoders(model: BaseAlgorithm, names: list[str] | None) -> dict[str, BaseFeaturesExtractor]:
    """
    Encoders of a model.

    :param model: Of any algorithm
    :param names: Of the networks that they belong to; all by default
    :return: As :func:`find_encoders`
    :raises ValueError: If there is none of such a name
    """
    found = find_encoders(checks.instance("model", model, BaseAlgorithm).policy)
    names = checks.optional(checks.texts, "encoders", names)
    names = list(found) if names is None else names
    if not found:
        raise ValueError(
            f"{type(model).__name__} with a {type(model.policy).__name__} has no encoder that learns. "
            "Pass `features_extractor_class=sb3_jepa.JepaExtractor` in `policy_kwargs`"
        )
    if not names or set(names) - set(found):
        raise ValueError(f"`encoders` must be among those of the model, {list(found)}, got {names}")
    return {name: found[name] for name in names}


def n_inputs_to_measure(policy: BasePolicy) -> int:
    """
    :param policy: Of any algorithm
    :return: Number of observations that the input statistics of its encoders still lack
    """
    # Not those of a frozen teacher, which nobody measures
    parts = (part for extractor in features_extractors(policy).values() for part in jepa_extractors(extractor))
    return max((part.n_inputs_to_measure for part in parts), default=0)


@th.no_grad()
def measure_inputs(
    policy: BasePolicy,
    observations: np.ndarray | dict[str, np.ndarray],
    objectives: Mapping[str, Objective],
) -> None:
    """
    Merge observations into the statistics that standardise the input, for all that encode alike: target networks and
    target encoders must see what the others see. Changes the function that the policy computes: only to be called
    between an update and the next rollout, and on all ranks, whose observations are merged alike.

    :param policy: Of any algorithm
    :param observations: ``(samples, *observation shape)``
    :param objectives: What its encoders learn, by the names of :func:`find_encoders`
    """
    tensors = by_key(obs_as_tensor(observations, policy.device))
    # As they are stored: images are bytes
    of_all_ranks = {key: gather_batch(tensor).split(BATCH_SIZE) for key, tensor in tensors.items()}
    for extractor in features_extractors(policy).values():
        parts = [part for part in jepa_extractors(extractor) if part.n_inputs_to_measure > 0]
        lacking = [standardization for part in parts for standardization in part.standardizations]
        if lacking:
            # Of ours, what comes after the tokens need not be computed
            through = extractor.encoder.tokenizer if isinstance(extractor, JepaExtractor) else extractor
            with measuring(lacking):
                for batch in zip(*of_all_ranks.values(), strict=True):
                    inputs = unkeyed(dict(zip(of_all_ranks, batch, strict=True)))
                    through(preprocess_obs(inputs, policy.observation_space, normalize_images=policy.normalize_images))
    encoders = find_encoders(policy)
    for name, objective in objectives.items():
        objective.target_encoder.copy_buffers(encoders[name])


def save_encoder(model: BaseAlgorithm, path: str | pathlib.Path, encoder: str | None = None) -> pathlib.Path:
    """
    Save an encoder alone, with the statistics that standardise its input. If that fails, an older file stays as it was.
    A warning tells if it holds NaN or infinite values.

    :param model: Of any algorithm
    :param path: Where to save. A file that ends in ``.safetensors`` needs that package, any other is a state dict of
        PyTorch; without an ending, ``.safetensors`` is added where the package is installed, and ``.pth`` otherwise.
    :param encoder: Name of the network that it belongs to, such as ``"critic"``; by default the first
    :return: The file
    :raises ValueError: If there is no such encoder
    :raises ImportError: If ``.safetensors`` is asked for and not installed
    """
    path, encoder = checks.path("path", path), checks.optional(checks.text, "encoder", encoder)
    _, module = next(iter(pick_encoders(model, None if encoder is None else [encoder]).items()))
    return write_encoder(module, path)


def write_encoder(module: th.nn.Module, path: str | pathlib.Path) -> pathlib.Path:
    """
    Write an encoder's parameters and buffers to a file, as :func:`save_encoder` does. A warning tells if some of them
    are NaN or infinite.

    :param module: The encoder
    :param path: Where to save, see :func:`save_encoder`
    :return: The file
    :raises ImportError: If ``.safetensors`` is asked for and not installed
    """
    path = pathlib.Path(path)
    if not path.suffix:
        path = path.with_suffix(SAFETENSORS if find_spec("safetensors") else ".pth")
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    warn_if_not_finite(state, "The encoder")
    # The save_file() of safetensors keeps the file from all other users
    is_safe = path.suffix == SAFETENSORS
    write_file(path, _safetensors().save(state) if is_safe else in_memory(lambda file: th.save(state, file)))
    return path


def load_encoder(
    model: BaseAlgorithm, path: str | pathlib.Path, encoders: list[str] | None = None, freeze: bool = False
) -> None:
    """
    Load an encoder that :func:`save_encoder` saved into a model, which may have another algorithm and other actions.
    The target networks of the algorithm and the target encoder of a JEPA begin with it too.

    :param model: Of any algorithm
    :param path: The file
    :param encoders: Names of the networks to load it into; all by default
    :param freeze: Whether it stays as it is from now on, except for the readout of ``output="per_token"``. A model that
        is saved and loaded knows that, if all its encoders are frozen and are a :class:`~sb3_jepa.JepaExtractor`.
    :raises ValueError: If there is no such encoder, or the file is broken, holds NaN, or is of another shape or type
    :raises ImportError: If ``.safetensors`` is to be loaded and not installed
    """
    picked, freeze = pick_encoders(model, encoders), checks.flag("freeze", freeze)
    state = read_state(checks.existing_file("path", path))
    # All are looked at before any is changed
    states = {name: _with_readout_of(encoder, state) for name, encoder in picked.items()}
    for name, encoder in picked.items():
        check_fit(states[name], encoder, f"{path} does not fit the encoder {name!r}")
    for name, encoder in picked.items():
        encoder.load_state_dict(states[name])
        if isinstance(encoder, JepaExtractor):
            encoder.freeze(freeze)
        else:
            encoder.requires_grad_(not freeze)
        for target in _targets(model.policy, name, encoder):
            target.load_state_dict(states[name])
    for name in picked:
        getattr(model, LEARNERS, {}).pop(name, None)
    _remember_frozen(model)


def read_state(path: str | pathlib.Path) -> dict[str, th.Tensor]:
    """
    :param path: A file that :func:`save_encoder` wrote
    :return: The encoder's parameters and buffers
    :raises ValueError: If the file is broken, or holds NaN or infinite values
    :raises ImportError: If ``.safetensors`` is to be loaded and not installed
    """
    path = pathlib.Path(path)
    load_file = _safetensors().load_file if path.suffix == SAFETENSORS else None
    with path.open("rb") as file, reading(path, "an encoder that save_encoder or pretrain wrote"):
        state = load_file(path) if load_file else th.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(value, th.Tensor) for value in state.values()):
            raise TypeError("it holds something else than tensors by their names")
    name = find_not_finite(state)
    if name is not None:
        raise ValueError(
            f"{path} holds NaN or infinite values, first in {name}: the training that it is from has diverged. Take an "
            "encoder of before"
        )
    return dict(state)


def _with_readout_of(encoder: th.nn.Module, state: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """What reads numbers from tokens is learned by who uses them: an encoder without it may be loaded into one with."""
    own = encoder.state_dict()
    is_of_readout = {name for name in {*own, *state} if name.startswith("encoder.readout.")}
    kept = {name: value for name, value in state.items() if name not in is_of_readout or name in own}
    return {**{name: own[name] for name in own if name in is_of_readout}, **kept}


def _targets(policy: BasePolicy, name: str, encoder: BaseFeaturesExtractor) -> list[th.nn.Module]:
    """The extractors of target networks, and the momentum copy of an objective, that belong to an encoder."""
    targets: list[th.nn.Module] = []
    for network_name, network in policy.named_children():
        original = getattr(policy, network_name.removesuffix("_target"), None)
        if network_name.endswith("_target") and getattr(original, "features_extractor", None) is encoder:
            targets.append(network.features_extractor)  # type: ignore[arg-type]
    objectives = getattr(policy, "objectives", {})
    if name in objectives and isinstance(objectives[name].target_encoder, MomentumEncoder):
        targets.append(objectives[name].target_encoder.encoder)
    return targets


def _remember_frozen(model: BaseAlgorithm) -> None:
    encoders = list(find_encoders(model.policy).values())
    ours = [encoder for encoder in encoders if isinstance(encoder, JepaExtractor)]
    if len(ours) == len(encoders):
        frozen = all(encoder.is_frozen for encoder in ours)
        kwargs = dict(model.policy_kwargs.get("features_extractor_kwargs") or {}, frozen=frozen)
        model.policy_kwargs = dict(model.policy_kwargs, features_extractor_kwargs=kwargs)


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
    return safetensors.torch
