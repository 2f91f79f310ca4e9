"""Recordings of environments."""

import os
import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common import callbacks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_jepa.algorithms.saved_models import find_model, load_model
from sb3_jepa.common import checks
from sb3_jepa.common.digests import id_of
from sb3_jepa.common.next_observations import terminal_observation
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.sb3_privates import wrap_env
from sb3_jepa.common.spaces import ARRAY_SPACES
from sb3_jepa.data.folders import NotRepeatedError, RecordingWriter
from sb3_jepa.data.recordings import Recordings


def record_env(
    env: str | gym.Env | VecEnv,
    n_steps: int = 10_000,
    folder: str | pathlib.Path | None = None,
    policy: Any = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> Recordings:
    """
    Act in environments, and keep observations, actions, rewards and terminations. In a folder they are saved during the
    recording, in arrays that are mapped into memory, and what is complete is not collected again. After an interruption
    the same call continues and ends with the same recordings: it repeats what was saved with the same random numbers,
    and compares. If environments or policy do not repeat themselves, it warns and continues with new episodes.

    :param env: ID of an environment, an environment, or several in parallel. They are wrapped as Stable-Baselines3
        does it: images get their channels first.
    :param n_steps: How many observations to keep, of all environments together. The last one of an episode is one of
        them.
    :param folder: Where to save them; None to keep them in memory
    :param policy: What chooses the actions: a model, the path of a saved one, or any other object with the ``predict``
        of Stable-Baselines3. By default they are drawn evenly from the action space. A model that was trained with
        ``VecNormalize`` needs an ``env`` that is wrapped in it, and the recordings are normalised then.
    :param seed: Seed of the environments and of the actions
    :param progress_bar: Display a progress bar using tqdm and rich
    :return: The recordings
    :raises ValueError: If an argument is not among those accepted, or the folder holds other recordings
    :raises ImportError: If the progress bar is asked for, and tqdm or rich is not installed
    """
    n_steps, seed = checks.whole_number("n_steps", n_steps), checks.seed("seed", seed)
    folder = checks.optional(checks.path, "folder", folder)
    check_progress_bar(progress_bar)
    model, vec_env = as_policy(policy, seed), as_vec_env(env)
    try:
        check_fit(model, vec_env)
        settings = dict(
            env=_env_name(vec_env),
            n_envs=vec_env.num_envs,
            policy="random" if model is None else _policy_name(model),
            seed=seed,
        )
        # Of other spaces no actions are kept
        action_space = vec_env.action_space if isinstance(vec_env.action_space, ARRAY_SPACES) else None
        writer = RecordingWriter(vec_env.observation_space, n_steps, folder, settings, action_space)
        if not writer.is_complete:
            bar = callbacks.tqdm(total=n_steps) if progress_bar else None
            try:
                _record(vec_env, model, writer, seed, bar)
            finally:
                if bar is not None:
                    bar.close()
    finally:
        if isinstance(env, str):
            vec_env.close()
    return writer.recordings()


def as_policy(policy: Any, seed: int) -> Any:
    """
    :param policy: A model, the path of a saved one, any other object with a ``predict``, or None
    :param seed: Seed
    :return: The same, a path as the model that it leads to
    :raises ValueError: If it is none of these
    """
    if isinstance(policy, (str, os.PathLike)):
        # Seed it: gSDE draws its noise when a model is made
        with seeded(seed):
            return _load_policy(policy)
    if policy is not None and not callable(getattr(policy, "predict", None)):
        raise ValueError(f"`policy` must be None, a model, the path of one, or have a `predict`, got {policy!r}")
    return policy


def _load_policy(path: str | os.PathLike) -> BaseAlgorithm:
    try:
        file = find_model(checks.path("policy", path))
    except ValueError as error:
        raise ValueError(f"`policy` must be a model or the path of a saved one, got {path!r}. {error}") from error
    return load_model(file)


def check_progress_bar(progress_bar: bool) -> None:
    """
    :param progress_bar: Whether to display one
    :raises ValueError: If it is neither True nor False
    :raises ImportError: If it is True, and tqdm or rich is not installed
    """
    if checks.flag("progress_bar", progress_bar) and callbacks.tqdm is None:
        raise ImportError(
            'A progress bar needs tqdm and rich: pip install "sb3-jepa[examples]", or say `progress_bar=False`'
        )


def _record(env: VecEnv, model: Any, writer: RecordingWriter, seed: int, bar: Any) -> None:
    try:
        with seeded(seed, env):
            _collect(env, model, writer, bar)
    except NotRepeatedError:
        warnings.warn(
            f"The recording in {writer.folder} was interrupted after {writer.n_saved} rows, and repeating it gives "
            "others: the environments or the policy draw random numbers that `seed` does not decide, or have changed. "
            "It goes on with new episodes",
            UserWarning,
            stacklevel=3,
        )
        writer.skip_saved()
        if bar is not None:
            bar.update(writer.n_saved - bar.n)
        # Use another seed: the same one would begin the same episodes again
        with seeded(seed + writer.n_saved, env):
            _collect(env, model, writer, bar)


@contextmanager
def seeded(seed: int, env: VecEnv | None = None) -> Iterator[None]:
    """
    Seed what environments and a model draw, and put the global random numbers back afterwards.

    :param seed: Seed
    :param env: Environments
    """
    with isolated_random_numbers(seed):
        if env is not None:
            env.seed(seed)
            env.action_space.seed(seed)
        yield


def _collect(env: VecEnv, model: Any, writer: RecordingWriter, bar: Any) -> None:
    observations: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    episodes = writer.next_episode + np.arange(env.num_envs)
    while True:
        n_before = writer.n_written
        # Write them before the step: an environment may return its next observations in the same arrays
        start = writer.append(dict(observations=observations, episodes=episodes))
        if not writer.is_complete:
            if model is None:
                actions = np.array([env.action_space.sample() for _ in range(env.num_envs)])
            else:
                actions, state = model.predict(observations, state, starts)
            observations, rewards, starts, infos = env.step(actions)
            timeouts = np.array([info.get("TimeLimit.truncated", False) for info in infos])
            step = dict(rewards=rewards, terminated=starts & ~timeouts, has_action=np.ones(env.num_envs, dtype=bool))
            if writer.action_space is not None:
                step["actions"] = np.reshape(actions, (env.num_envs, *(writer.action_space.shape or ())))
            writer.amend(start, step)
            for index in np.flatnonzero(starts):
                last = terminal_observation(True, infos[index])
                if last is not None:
                    keyed = {key: np.array(array)[None] for key, array in by_key(last).items()}
                    writer.append(dict(observations=as_observations(keyed), episodes=episodes[[index]]))
                episodes[index] = episodes.max() + 1
        if bar is not None:
            bar.update(writer.n_written - n_before)
        if writer.is_complete:
            return
        writer.save_if_due()


def as_vec_env(env: Any) -> VecEnv:
    """
    :param env: ID of an environment, an environment, or several
    :return: Wrapped as Stable-Baselines3 does it
    :raises ValueError: If it is none of these
    """
    if not isinstance(env, (str, gym.Env, VecEnv)):
        raise ValueError(f"`env` must be the ID of an environment, a gymnasium.Env or a VecEnv, got {env!r}")
    try:
        return wrap_env(make_vec_env(env) if isinstance(env, str) else env)
    except gym.error.Error as error:
        raise ValueError(f"`env` must be the ID of an environment, got {env!r}. {error}") from error


def _env_name(env: VecEnv) -> str:
    spec = env.get_attr("spec", 0)[0] if env.has_attr("spec") else None
    return type(env.unwrapped).__name__ if spec is None else spec.id


def _policy_name(model: Any) -> str:
    """With a digest of the parameters, which tells two models of one class apart."""
    policy = getattr(model, "policy", None)
    return f"{type(model).__name__} {id_of(policy)}" if isinstance(policy, nn.Module) else type(model).__name__


def check_fit(model: Any, env: VecEnv) -> None:
    """
    :param model: What chooses the actions
    :param env: Environments
    :raises ValueError: If it is of other spaces
    """
    for name in ("observation_space", "action_space"):
        expected = getattr(model, name, None)
        if expected is not None and expected != getattr(env, name):
            raise ValueError(
                f"`policy` must have the {name} of `env`, {getattr(env, name)}, got one that has {expected}"
            )
