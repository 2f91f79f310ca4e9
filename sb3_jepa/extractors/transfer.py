"""An encoder saved alone, and loaded into another model."""

import pathlib

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_jepa.common import checks
from sb3_jepa.extractors.files import check_fit, find_encoder_file, read_state, write_encoder
from sb3_jepa.extractors.finding import LEARNERS, find_encoders, pick_encoders
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.parts.targets import target_module


def save_encoder(model: BaseAlgorithm, path: str | pathlib.Path, encoder: str | None = None) -> pathlib.Path:
    """
    Save an encoder alone, with the statistics that standardise its input and a description of what it is, so that
    :func:`~sb3_jepa.read_encoder` can make it again without the model. If that fails, an older file stays as it was. A
    warning tells if it holds NaN or infinite values.

    :param model: Of any algorithm
    :param path: Where to save. A file that ends in ``.safetensors`` needs that package, any other is PyTorch's;
        without an ending, ``.safetensors`` is added where the package is installed, and ``.pth`` otherwise.
    :param encoder: Name of the network that it belongs to, such as ``"critic"``; by default the first
    :return: The file
    :raises ValueError: If there is no such encoder
    :raises ImportError: If ``.safetensors`` is asked for and not installed
    """
    path, encoder = checks.path("path", path), checks.optional(checks.text, "encoder", encoder)
    _, module = next(iter(pick_encoders(model, None if encoder is None else [encoder]).items()))
    return write_encoder(module, path, model.policy.features_extractor_kwargs)


def load_encoder(
    model: BaseAlgorithm,
    path: str | pathlib.Path | BaseAlgorithm,
    encoders: list[str] | None = None,
    freeze: bool = False,
) -> None:
    """
    Load an encoder that :func:`save_encoder` saved into a model, which may have another algorithm and other actions.
    The target networks of the algorithm and the target encoder of a JEPA begin with it too.

    :param model: Of any algorithm
    :param path: The file, also one of :func:`~sb3_jepa.pretrain`, or that one's folder; or another model, of which the
        first encoder is taken
    :param encoders: Names of the networks to load it into; all by default
    :param freeze: Whether it stays as it is from now on, except for the readout of ``output="per_token"``. A model that
        is saved and loaded knows that, if all its encoders are frozen and are a :class:`~sb3_jepa.JepaExtractor`.
    :raises ValueError: If there is no such encoder, or the file is broken, holds NaN, or is of another shape or type
    :raises ImportError: If ``.safetensors`` is to be loaded and not installed
    """
    picked, freeze = pick_encoders(model, encoders), checks.flag("freeze", freeze)
    if isinstance(path, BaseAlgorithm):
        source = f"the encoder of {type(path).__name__}"
        state = {
            name: value.clone() for name, value in next(iter(pick_encoders(path, None).values())).state_dict().items()
        }
    else:
        path = find_encoder_file(path)
        source, state = str(path), read_state(path)
    # Check all before any is changed
    states = {name: _with_own_parts(encoder, state) for name, encoder in picked.items()}
    for name, encoder in picked.items():
        check_fit(states[name], encoder, f"{source} does not fit the encoder {name!r}")
    for name, encoder in picked.items():
        encoder.load_state_dict(states[name])
        if isinstance(encoder, JepaExtractor):
            encoder.freeze(freeze)
        else:
            encoder.requires_grad_(not freeze)
        for target, original in _targets(model.policy, name, encoder):
            target.load_state_dict(original.state_dict())
    for name in picked:
        getattr(model, LEARNERS, {}).pop(name, None)
    _remember_frozen(model)


def _with_own_parts(encoder: th.nn.Module, state: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """
    Some parts are learned by each model for itself, such as a readout, or what encodes other keys than LiDAR: a file
    without them still fits a model that has them, and the other way round.
    """
    prefixes = getattr(encoder, "own_parts", ("encoder.readout.",))
    own = encoder.state_dict()
    is_of_part = {name for name in {*own, *state} if name.startswith(prefixes)}
    kept = {name: value for name, value in state.items() if name not in is_of_part or name in own}
    return {**{name: own[name] for name in own if name in is_of_part}, **kept}


def _targets(policy: BasePolicy, name: str, encoder: BaseFeaturesExtractor) -> list[tuple[th.nn.Module, th.nn.Module]]:
    """The extractors of target networks, and the momentum copy of an objective, each with what it is a copy of."""
    targets: list[tuple[th.nn.Module, th.nn.Module]] = []
    for network_name, network in policy.named_children():
        original = getattr(policy, network_name.removesuffix("_target"), None)
        if network_name.endswith("_target") and getattr(original, "features_extractor", None) is encoder:
            targets.append((network.features_extractor, encoder))  # type: ignore[arg-type]
    objectives = getattr(policy, "objectives", {})
    if name in objectives and objectives[name].has_momentum_target:
        targets.append((objectives[name].target_encoder.encoder, target_module(encoder)))
    # Of an imitation
    target = getattr(getattr(policy, "latent_future", None), "target_encoder", None)
    if target is not None:
        targets.append((target.encoder, target_module(encoder)))
    return targets


def _remember_frozen(model: BaseAlgorithm) -> None:
    encoders = list(find_encoders(model.policy).values())
    ours = [encoder for encoder in encoders if isinstance(encoder, JepaExtractor)]
    if len(ours) == len(encoders):
        frozen = all(encoder.is_frozen for encoder in ours)
        kwargs = dict(model.policy_kwargs.get("features_extractor_kwargs") or {}, frozen=frozen)
        model.policy_kwargs = dict(model.policy_kwargs, features_extractor_kwargs=kwargs)
