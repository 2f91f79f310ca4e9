"""Recordings of what an environment shows."""

import os
import pathlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common import callbacks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_jepa import checks
from sb3_jepa.buffers import by_key, unkeyed
from sb3_jepa.parts.digests import id_of
from sb3_jepa.pretrain.folders import RecordingWriter
from sb3_jepa.pretrain.recordings import Recordings
from sb3_jepa.runs import find_model, load_model


def record_env(
    env: str | gym.Env | VecEnv,
    n_steps: int = 10_000,
    folder: str | pathlib.Path | None = None,
    policy: Any = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> Recordings:
    """
    Act in environments, and keep what was seen. In a folder it is saved as it goes, in arrays that are mapped into
    memory: after an interruption the same call goes on there, with new episodes, and what is complete is not collected
    again.

    :param env: ID of an environment, an environment, or several in parallel. They are wrapped as Stable-Baselines3
        does it: images get their channels first.
    :param n_steps: How many observations to keep, of all environments together. The last one of an episode is one of
        them.
    :param folder: Where to save them; None to keep them in memory
    :param policy: What acts: a model, the path of a saved one, or anything else with the ``predict`` of
        Stable-Baselines3. By default actions are drawn evenly from the action space. A model that was trained with
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
    model = _load_policy(policy) if isinstance(policy, (str, os.PathLike)) else policy
    if model is not None and not callable(getattr(model, "predict", None)):
        raise ValueError(f"`policy` must be None, a model, the path of one, or have a `predict`, got {policy!r}")
    vec_env = _wrap(env)
    try:
        _check_fit(model, vec_env)
        settings = dict(
            env=_env_name(vec_env),
            n_envs=vec_env.num_envs,
            policy="random" if model is None else _policy_name(model),
            seed=seed,
        )
        writer = RecordingWriter(vec_env.observation_space, n_steps, folder, settings)
        if not writer.is_complete:
            bar = callbacks.tqdm(total=n_steps, initial=writer.n_written) if progress_bar else None
            try:
                # That so many rows were written before makes it the seed of other episodes
                with _random_numbers(seed + writer.n_written, vec_env):
                    _collect(vec_env, model, writer, bar)
            finally:
                if bar is not None:
                    bar.close()
    finally:
        if isinstance(env, str):
            vec_env.close()
    return writer.recordings()


def _load_policy(path: str | os.PathLike) -> BaseAlgorithm:
    try:
        return load_model(find_model(checks.path("policy", path)))
    except ValueError as error:
        raise ValueError(f"`policy` must be a model or the path of a saved one, got {path!r}. {error}") from error


def check_progress_bar(progress_bar: bool) -> None:
    """
    :param progress_bar: Whether one is asked for
    :raises ValueError: If that is not said
    :raises ImportError: If it is, and tqdm or rich is not installed
    """
    if checks.flag("progress_bar", progress_bar) and callbacks.tqdm is None:
        raise ImportError(
            'A progress bar needs tqdm and rich: pip install "sb3-jepa[examples]", or say `progress_bar=False`'
        )


@contextmanager
def _random_numbers(seed: int, env: VecEnv) -> Iterator[None]:
    """What environments and a model draw; what runs beside it keeps its own random numbers."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    # PyTorch seeds all devices at once
    with th.random.fork_rng(devices=list(range(th.cuda.device_count()))):
        set_random_seed(seed)
        env.seed(seed)
        env.action_space.seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


def _collect(env: VecEnv, model: Any, writer: RecordingWriter, bar: Any) -> None:
    observations: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    episodes = writer.next_episode + np.arange(env.num_envs)
    while True:
        n_before = writer.n_written
        writer.write(observations, episodes)
        if not writer.is_complete:
            if model is None:
                actions = np.array([env.action_space.sample() for _ in range(env.num_envs)])
            else:
                actions, state = model.predict(observations, state, starts)
            observations, _, starts, infos = env.step(actions)
            for index in np.flatnonzero(starts):
                if "terminal_observation" in infos[index]:
                    last = by_key(infos[index]["terminal_observation"])
                    writer.write(
                        unkeyed({key: np.array(array)[None] for key, array in last.items()}), episodes[[index]]
                    )
                episodes[index] = episodes.max() + 1
        if bar is not None:
            bar.update(writer.n_written - n_before)
        if writer.is_complete:
            return
        writer.save_if_due()


def _wrap(env: Any) -> VecEnv:
    if not isinstance(env, (str, gym.Env, VecEnv)):
        raise ValueError(f"`env` must be the ID of an environment, a gymnasium.Env or a VecEnv, got {env!r}")
    try:
        return BaseAlgorithm._wrap_env(make_vec_env(env) if isinstance(env, str) else env, verbose=0)
    except gym.error.Error as error:
        raise ValueError(f"`env` must be the ID of an environment, got {env!r}. {error}") from error


def _env_name(env: VecEnv) -> str:
    spec = env.get_attr("spec", 0)[0] if env.has_attr("spec") else None
    return type(env.unwrapped).__name__ if spec is None else spec.id


def _policy_name(model: Any) -> str:
    """Two models of one class act differently."""
    policy = getattr(model, "policy", None)
    return f"{type(model).__name__} {id_of(policy)}" if isinstance(policy, nn.Module) else type(model).__name__


def _check_fit(model: Any, env: VecEnv) -> None:
    for name in ("observation_space", "action_space"):
        expected = getattr(model, name, None)
        if expected is not None and expected != getattr(env, name):
            raise ValueError(
                f"`policy` must have the {name} of `env`, {getattr(env, name)}, got one that has {expected}"
            )
