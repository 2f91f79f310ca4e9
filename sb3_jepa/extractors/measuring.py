"""The statistics that standardise the inputs, measured for all encoders of a policy."""

from collections.abc import Mapping

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.ranks import gather_batch
from sb3_jepa.extractors.finding import features_extractors, find_encoders
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.preprocessing import jepa_extractors
from sb3_jepa.objectives import Objective
from sb3_jepa.parts import measuring

# Observations that are measured at once: a long rollout of images, as floats, may not fit into memory
BATCH_SIZE = 1024


def n_inputs_to_measure(policy: BasePolicy) -> int:
    """Number of observations that the input statistics of a policy's encoders still lack."""
    # Leave out a frozen teacher: it was measured where it was trained
    parts = (part for extractor in features_extractors(policy).values() for part in jepa_extractors(extractor))
    return max((part.n_inputs_to_measure for part in parts), default=0)


@th.no_grad()
def measure_inputs(
    policy: BasePolicy, observations: np.ndarray | dict[str, np.ndarray], objectives: Mapping[str, Objective]
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
    # Gather images as bytes, which are smaller than floats
    of_all_ranks = {key: gather_batch(tensor).split(BATCH_SIZE) for key, tensor in tensors.items()}
    for extractor in features_extractors(policy).values():
        parts = [part for part in jepa_extractors(extractor) if part.n_inputs_to_measure > 0]
        lacking = [standardization for part in parts for standardization in part.standardizations]
        if lacking:
            # A JepaExtractor measures in its tokenizer: skip the rest of it
            through = extractor.encoder.tokenizer if isinstance(extractor, JepaExtractor) else extractor
            with measuring(lacking):
                for batch in zip(*of_all_ranks.values(), strict=True):
                    inputs = as_observations(dict(zip(of_all_ranks, batch, strict=True)))
                    through(preprocess_obs(inputs, policy.observation_space, normalize_images=policy.normalize_images))
    encoders = find_encoders(policy)
    for name, objective in objectives.items():
        objective.target_encoder.copy_buffers(encoders[name])
