"""The encoders of a policy, by the networks that they belong to."""

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_jepa.common import checks

# The model's attribute with what JepaCallback trains its encoders with: it is saved in the model's zip
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
    """The features extractors of a policy's networks, target networks among them, by their paths; each once."""
    found: dict[str, BaseFeaturesExtractor] = {}
    for path, module in policy.named_modules():
        # Skip extractors inside of extractors, and the copies inside of objectives
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
