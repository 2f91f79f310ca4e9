"""Input statistics that follow what is observed."""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa.alternating.sources import ReplaySource
from sb3_jepa.common.observations import NO_KEY, as_observations, by_key, concatenate
from sb3_jepa.common.ranks import gather_batch, rank
from sb3_jepa.extractors.finding import features_extractors, find_encoders
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.preprocessing import jepa_extractors
from sb3_jepa.objectives import Objective
from sb3_jepa.parts import DictTokenizer, InputStandardization
from sb3_jepa.parts.targets import target_module

# Observations that the statistics follow at once
N_FOLLOWED = 1024
# Warn of an input as far from its mean, which is clipped beyond 10
MANY_DEVIATIONS = 30.0
# What a model has observed since its statistics followed last; a training that goes on takes it over
_observed: WeakKeyDictionary[BaseAlgorithm, list[Any]] = WeakKeyDictionary()


class FollowedInputs:
    """
    Lets the statistics of vectors and grids follow what is observed, between an update and the next rollout. What the
    policy computes stays the same, see :meth:`~sb3_jepa.JepaExtractor.follow_inputs`.

    :param model: That observes
    """

    def __init__(self, model: BaseAlgorithm):
        self.model = model
        self._is_due = False
        self._keys: list[str] | None = None
        self._n_steps_before = model.num_timesteps
        self._told: set[str] = set()
        self.sees_nothing_vary = False

    def on_rollout_end(self, replay: ReplaySource | None = None) -> None:
        """
        Keep what was observed: a rollout buffer forgets it before the next rollout.

        :param replay: The source of an off-policy algorithm, which has the latest observations when they are due
        """
        self._is_due |= has_passed(self.model.num_timesteps, self._n_steps_before, N_FOLLOWED)
        self._n_steps_before = self.model.num_timesteps
        if isinstance(self.model, OnPolicyAlgorithm):
            # All has been measured, and will not change
            self._keys = followed_keys(self.model.policy) if self._keys is None else self._keys
            if self._keys:
                _observed.setdefault(self.model, []).append(self._sample_rollout(self.model, self._keys))
        elif self._is_due and replay is not None and (keys := followed_keys(self.model.policy)):
            latest = by_key(replay.latest(N_FOLLOWED))
            _observed[self.model] = [as_observations({key: latest[key] for key in keys})]

    @staticmethod
    def _sample_rollout(model: OnPolicyAlgorithm, keys: list[str]) -> Any:
        buffer = model.rollout_buffer
        n_rows = buffer.buffer_size * buffer.n_envs
        rows = np.unique(np.linspace(0, n_rows - 1, min(n_rows, N_FOLLOWED)).astype(np.int64))
        steps, envs = np.divmod(rows, buffer.n_envs)
        observations = by_key(buffer.observations)
        return as_observations({key: observations[key][steps, envs] for key in keys})

    def follow(self, objectives: Mapping[str, Objective]) -> None:
        """
        Follow what was kept, if there is enough. To be called between an update and the next rollout.

        :param objectives: What the encoders learn, by the names of :func:`~sb3_jepa.extractors.finding.find_encoders`
        """
        if not self._is_due:
            return
        self._is_due = False
        observed = _observed.pop(self.model, [])
        if observed:
            follow_inputs(self.model.policy, concatenate(observed), objectives)
            self._tell_outliers()

    def on_measured(self) -> None:
        """Warn of inputs that say nothing, or are far away from their mean. To be called when all were measured."""
        extractors = _context_extractors(self.model.policy)
        self.sees_nothing_vary = bool(extractors) and all(extractor.sees_nothing_vary for extractor in extractors)
        if self.sees_nothing_vary and rank() == 0:
            n_seen = min(int(one.n_seen) for extractor in extractors for one in extractor.standardizations)
            warnings.warn(
                f"All {n_seen} observations that were measured are the same: there is nothing to learn from. Look at "
                "what the environment returns (of black frames, whether it has a renderer and a display)",
                UserWarning,
                stacklevel=2,
            )
        self._tell_outliers()

    def _tell_outliers(self) -> None:
        if rank() > 0:
            return
        found = {
            name: deviations
            for extractor in _context_extractors(self.model.policy)
            for name, deviations in outlying_inputs(extractor).items()
            if name not in self._told
        }
        self._told.update(found)
        if found:
            named = ", ".join(f"{name} ({deviations:.0f})" for name, deviations in sorted(found.items()))
            warnings.warn(
                f"Inputs are {MANY_DEVIATIONS:.0f} or more deviations away from their mean: {named}. "
                "Beyond 10 they are clipped. If that is a failure of a sensor, clip it in the environment; if it is a "
                "number that grows over orders of magnitude, take its logarithm",
                UserWarning,
                stacklevel=2,
            )


def has_passed(n_steps: int, n_steps_before: int, n_apart: int) -> bool:
    """
    Counted from the first step of a model, so that a training that goes on does all things at the same steps.

    :param n_steps: Number of time steps now
    :param n_steps_before: ... and when it was looked at before
    :param n_apart: After how many steps something is due
    :return: Whether it has become due
    """
    return n_steps // n_apart > n_steps_before // n_apart


def followed_keys(policy: BasePolicy) -> list[str]:
    """
    :param policy: Of any algorithm
    :return: The keys of the observations whose statistics follow; all, if only an extractor of one's own knows which
    """
    keys: dict[str, None] = {}
    for encoder in find_encoders(policy).values():
        following = [one for one in jepa_extractors(encoder) if one.follows_inputs]
        if following and following != [encoder]:
            return list(by_key(policy.observation_space))
        for extractor in following:
            tokenizers = _tokenizers_by_key(extractor).items()
            keys.update(dict.fromkeys(key for key, tokenizer in tokenizers if _follows(tokenizer)))
    return list(keys)


def _follows(tokenizer: th.nn.Module) -> bool:
    return any(isinstance(module, InputStandardization) and module.follows for module in tokenizer.modules())


def _context_extractors(policy: BasePolicy) -> list[JepaExtractor]:
    return [extractor for encoder in find_encoders(policy).values() for extractor in jepa_extractors(encoder)]


def _tokenizers_by_key(extractor: JepaExtractor) -> dict[str, th.nn.Module]:
    tokenizer = extractor.encoder.tokenizer
    return tokenizer.by_key if isinstance(tokenizer, DictTokenizer) else {NO_KEY: tokenizer}


def outlying_inputs(extractor: JepaExtractor) -> dict[str, float]:
    """
    :param extractor: Whose inputs were measured
    :return: By the names of the inputs that were far from their mean in the latest batch: how many deviations
    """
    found = {}
    for key, tokenizer in _tokenizers_by_key(extractor).items():
        for module in tokenizer.modules():
            if isinstance(module, InputStandardization) and module.largest is not None:
                largest = module.largest.flatten()
                kind = "channel" if module.per == "channel" else "number"
                for index in (largest > MANY_DEVIATIONS).nonzero()[:, 0].tolist():
                    found[f"{kind} {index} of {key or 'the observation'}"] = float(largest[index])
    return found


@th.no_grad()
def follow_inputs(policy: BasePolicy, observations: Any, objectives: Mapping[str, Objective]) -> None:
    """
    Let the statistics of all that encode alike follow the data: encoders, their target networks and target encoders.
    What is frozen stays as it is. To be called on all ranks, whose observations count alike.

    :param policy: Of any algorithm
    :param observations: ``(samples, *observation shape)``
    :param objectives: What its encoders learn, by the names of :func:`~sb3_jepa.extractors.finding.find_encoders`
    """
    tensors = by_key(obs_as_tensor(observations, policy.device))
    of_all_ranks = as_observations({key: gather_batch(tensor) for key, tensor in tensors.items()})
    inputs = preprocess_obs(of_all_ranks, policy.observation_space, normalize_images=policy.normalize_images)
    for path, extractor in features_extractors(policy).items():
        # A target network does what its original does, which may be shared and go by another path
        _follow_in_parts(extractor, inputs, policy.get_submodule(path.replace("_target.", ".", 1)))
    encoders = find_encoders(policy)
    for name, objective in objectives.items():
        if objective.has_momentum_target:
            target, encoder = objective.target_encoder.encoder, encoders[name]
            _follow_in_parts(target, inputs, target_module(encoder), encoder)


def _follow_in_parts(
    module: th.nn.Module, inputs: Any, original: th.nn.Module, encoder: th.nn.Module | None = None
) -> None:
    """
    :param module: An extractor, which may be made of others
    :param inputs: Of the module, or of the encoder
    :param original: Whose copy it is, and which says what is frozen
    :param encoder: Of which the original may be only a part
    """
    pairs = [
        (part, whole)
        for part, whole in zip(module.modules(), original.modules(), strict=True)
        if isinstance(part, JepaExtractor) and isinstance(whole, JepaExtractor)
    ]
    following = [(part, whole) for part, whole in pairs if part.follows_inputs and not whole.is_frozen]
    is_part = encoder is not None and encoder is not original
    if isinstance(module, JepaExtractor) and not is_part:
        for part, _ in following:
            part.follow_inputs(inputs)
        return
    # Let the whole module compute what its parts see. If it has no copy, its parts pass that on to their copies
    hooks = [
        (whole if is_part else part).register_forward_pre_hook(partial(_follow_given, part), with_kwargs=True)
        for part, whole in following
    ]
    try:
        if following:
            (encoder if encoder is not None and is_part else module)(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _follow_given(extractor: JepaExtractor, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    extractor.follow_inputs(args[0] if args else kwargs["observations"])
