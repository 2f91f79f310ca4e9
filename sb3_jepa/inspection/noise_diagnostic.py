"""The noise diagnostic of what an agent has seen: of a replay buffer, or of a data set."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading
from sb3_jepa.common.observations import NO_KEY, as_observations, by_key
from sb3_jepa.common.sb3_privates import normalize_observations
from sb3_jepa.diagnostics.feature_noise import FeatureNoise, feature_noise, named_features

# Numbers in the pairs of observations that are compared by default: all of a buffer of vectors, and some two thousand
# stacks of Atari's frames
N_NUMBERS = 2**26


def replay_pairs(buffer: ReplayBuffer, horizon: int = 1, max_samples: int | None = None) -> tuple[Any, Any]:
    """
    Observations and those that followed in the same episode, as the replay buffer stores them.

    :param buffer: Any replay buffer of Stable-Baselines3
    :param horizon: How many steps later
    :param max_samples: At most so many pairs, spread evenly over the buffer; all of them by default
    :return: Two arrays ``(samples, *observation shape)``, or dictionaries of such
    :raises ValueError: If ``horizon`` is less than 1
    """
    horizon = checks.whole_number("horizon", horizon)
    max_samples = checks.optional(checks.whole_number, "max_samples", max_samples)
    rows = np.arange(buffer.size())
    if buffer.full:
        # From the oldest on, but for one: a buffer that saves memory writes there what followed on the newest
        rows = (rows + buffer.pos)[int(buffer.optimize_memory_usage) :] % buffer.buffer_size
    ends = buffer.dones[rows] > 0
    # A buffer that saves memory has the first observation of the next episode in place of an episode's last one
    n_steps = horizon if buffer.optimize_memory_usage else horizon - 1
    starts = np.ones((max(0, len(rows) - horizon + 1), buffer.n_envs), dtype=bool)
    for step in range(n_steps):
        starts &= ~ends[step : step + len(starts)]
    start, env_index = np.nonzero(starts)
    if max_samples is not None and len(start) > max_samples:
        picked = np.linspace(0, len(start) - 1, max_samples).astype(np.int64)
        start, env_index = start[picked], env_index[picked]
    observations = by_key(buffer.observations)
    if buffer.optimize_memory_usage:
        first, last = rows[start], (rows[start + horizon - 1] + 1) % buffer.buffer_size
        next_observations = observations
    else:
        next_observations = by_key(buffer.next_observations)
        # A new call of learn() begins a new episode, although no step has ended the one before
        for step in range(horizon - 1):
            goes_on = np.ones(len(start), dtype=bool)
            for key in observations:
                expected = next_observations[key][rows[start + step], env_index]
                is_same = expected == observations[key][rows[start + step + 1], env_index]
                goes_on &= is_same.reshape(len(start), -1).all(axis=1)
            start, env_index = start[goes_on], env_index[goes_on]
        first, last = rows[start], rows[start + horizon - 1]
    x = {key: array[first, env_index] for key, array in observations.items()}
    y = {key: array[last, env_index] for key, array in next_observations.items()}
    return as_observations(x), as_observations(y)


def noise_diagnostic(
    buffer: ReplayBuffer | Mapping[str, Any] | str | os.PathLike,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    components: int = 16,
    horizon: int = 1,
    max_samples: int | None = None,
    env: VecNormalize | None = None,
) -> FeatureNoise:
    """
    Which features of the observations a reconstruction loss would chase and a JEPA skip, see
    :func:`~sb3_jepa.diagnostics.feature_noise` (Littwin et al. 2024, arXiv 2407.03475). Those of all the keys of
    a ``Dict`` are compared with each other. The observations of a buffer are preprocessed as Stable-Baselines3 does
    (images to [0, 1], categories to one number for each), for units matter.

    :param buffer: A replay buffer, as ``model.replay_buffer``; or a mapping with the arrays ``observations`` and
        ``next_observations``, ``(samples, ...)`` or dictionaries of such; or the path of an ``.npz`` file with these
    :param names: Of the features; of a ``Dict``, lists of them by its keys. By default ``observation[0]``, and
        ``key[0]`` of a ``Dict``.
    :param components: Where they have no names, more than 64 features of a key are replaced by this many principal
        components, ``key.component[0]``
    :param horizon: How many steps the later observation is away. A mapping or a file says what that is by itself.
    :param max_samples: At most so many pairs, spread evenly over the buffer; by default all
        of vectors, and some thousands of images, which takes seconds
    :param env: For normalised observations, the environment that does so: a replay buffer stores them as they were
    :return: The findings; ``print`` shows them as a table
    :raises ValueError: If ``buffer`` is none of these or a broken file, holds fewer than two pairs, or an argument does
        not fit it
    """
    max_samples = checks.optional(checks.whole_number, "max_samples", max_samples, least=2)
    components, horizon = checks.whole_number("components", components), checks.whole_number("horizon", horizon)
    env = checks.optional(checks.instance, "env", env, cls=VecNormalize)
    if isinstance(buffer, ReplayBuffer):
        if max_samples is None:
            n_numbers = sum(int(np.prod(array.shape[2:])) for array in by_key(buffer.observations).values())
            max_samples = max(2, N_NUMBERS // max(1, n_numbers))
        pairs = [_preprocessed(buffer, view, env) for view in replay_pairs(buffer, horizon, max_samples)]
        n_pairs = len(next(iter(pairs[0].values())))
        if n_pairs < 2:
            raise ValueError(
                "buffer must hold at least 2 pairs of an observation and one of the same episode that came "
                f"{horizon} step(s) later, got {n_pairs} among its {buffer.size() * buffer.n_envs} transitions"
            )
    else:
        if horizon != 1 or env is not None:
            raise ValueError("horizon and env are for replay buffers; next_observations of a data set are as they are")
        pairs = [_spread(view, max_samples) for view in _data_set_pairs(buffer)]
    return _compare(pairs[0], pairs[1], names, components)


def _preprocessed(buffer: ReplayBuffer, view: Any, env: VecNormalize | None) -> dict[str, np.ndarray]:
    tensors = preprocess_obs(
        obs_as_tensor(normalize_observations(buffer, view, env), th.device("cpu")), buffer.observation_space
    )
    return {key: tensor.numpy() for key, tensor in by_key(tensors).items()}


def _data_set_pairs(data: Any) -> list[dict[str, np.ndarray]]:
    if isinstance(data, (str, os.PathLike)):
        data = checks.existing_file("buffer", data)
        with reading(data, "an .npz file with 'observations' and 'next_observations'"), np.load(data) as file:
            data = dict(file)
    if not isinstance(data, Mapping):
        raise ValueError(
            f"`buffer` must be a ReplayBuffer, a mapping, or the path of an .npz file, got {data!r}. "
            "A rollout buffer does not know what came next"
        )
    missing = [key for key in ("observations", "next_observations") if key not in data]
    if missing:
        raise ValueError(f"buffer must have 'observations' and 'next_observations', got {sorted(data)}")
    views = [dict(by_key(data[key])) for key in ("observations", "next_observations")]
    if views[0].keys() != views[1].keys():
        raise ValueError(
            f"next_observations must have the keys of observations, {sorted(views[0])}, got {sorted(views[1])}"
        )
    return [{key: np.asarray(array) for key, array in view.items()} for view in views]


def _spread(view: dict[str, np.ndarray], max_samples: int | None) -> dict[str, np.ndarray]:
    if max_samples is None:
        return view
    return {
        key: array[np.linspace(0, len(array) - 1, max_samples).astype(np.int64)] if len(array) > max_samples else array
        for key, array in view.items()
    }


def _compare(
    observations: dict[str, np.ndarray],
    next_observations: dict[str, np.ndarray],
    names: Sequence[str] | Mapping[str, Sequence[str]] | None,
    components: int,
) -> FeatureNoise:
    if names is None:
        names = {}
    names_of = names if isinstance(names, Mapping) else {NO_KEY: names}
    if not names_of.keys() <= observations.keys():
        accepted = "a list" if NO_KEY in observations else f"lists by the keys {sorted(observations)}"
        raise ValueError(f"names must be {accepted}, got {names!r}")
    columns, next_columns, all_names = [], [], []
    for key, view in observations.items():
        x, y, key_names = named_features(
            view, next_observations[key], names_of.get(key), components, prefix=key or "observation"
        )
        columns.append(x)
        next_columns.append(y)
        all_names.extend(key_names)
    return feature_noise(np.concatenate(columns, axis=1), np.concatenate(next_columns, axis=1), all_names)
