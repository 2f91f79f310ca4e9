"""Histories: the last views of an environment, and the actions between them, as one observation."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_jepa.common import checks
from sb3_jepa.common.histories import ACTIONS, IS_REAL, HistorySpace, views_key
from sb3_jepa.common.next_observations import TERMINAL_OBSERVATION
from sb3_jepa.common.observations import as_observations, by_key


class Histories:
    """
    The histories of several environments, which :class:`VecHistory` and :class:`HistoryObservation` give.

    :param space: What they look like
    :param n_envs: Number of environments
    """

    def __init__(self, space: HistorySpace, n_envs: int):
        self._space = space
        keys = {*map(views_key, space.keys), ACTIONS, IS_REAL}
        self._arrays = {
            key: np.zeros((n_envs, *(one.shape or ())), one.dtype)
            for key, one in space.observation_space.items()
            if key in keys
        }

    def begin(self, observations: Any, envs: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """
        :param observations: The first ones of episodes, of all environments
        :param envs: Of which environments they are; by default all. The others go on.
        :return: All histories
        """
        rows = slice(None) if envs is None else envs
        for array in self._arrays.values():
            array[rows] = 0
        for key, views in self._space.views(observations).items():
            self._arrays[key][rows, -1] = views[rows]
        self._arrays[IS_REAL][rows, -1] = 1
        return self._histories(observations)

    def add(self, actions: np.ndarray, observations: Any) -> dict[str, np.ndarray]:
        """
        :param actions: What was done, ``(environments, *action shape)``
        :param observations: To what that led, which belongs to the same episodes
        :return: The histories that end there
        """
        newest = {**self._space.views(observations), ACTIONS: self._space.encode(actions), IS_REAL: np.int8(1)}
        for key, array in self._arrays.items():
            array[:, :-1] = array[:, 1:]
            array[:, -1] = newest[key]
        return self._histories(observations)

    def _histories(self, observations: Any) -> dict[str, np.ndarray]:
        others = {key: array for key, array in by_key(observations).items() if key not in self._space.keys}
        return {**{key: array.copy() for key, array in self._arrays.items()}, **others}


class VecHistory(VecEnvWrapper):
    """
    Observations become histories, which :class:`~sb3_jepa.SequenceExtractor` takes: the last ``length`` views, and the
    actions between them. A history never reaches over the begin of its episode. It is a ``Dict`` with

    - ``"views"``, ``(length, *observation shape)``, oldest first, and 0 where there is none yet. Of a ``Dict``, one
      for each key, ``"views_<key>"``. Categories are one-hot codes.
    - ``"actions"``, ``(length - 1, encoded action dim)``: what was done between two views, one-hot for discrete
      actions, and scaled to [-1, 1] for continuous ones
    - ``"is_real"``, ``(length,)``: 1 where there is a view, 0 before the begin of the episode

    The buffers of this package store the views of images once, as they do with stacked frames. ``VecNormalize`` belongs
    inside, ``VecHistory(VecNormalize(env))``; outside, it is to be told ``norm_obs_keys=["views"]``. For goals and a
    ``HerReplayBuffer``, say ``keys=["observation"]``, and they stay as they are.

    :param venv: Environments
    :param length: How many views there are, at least 2
    :param keys: Of which observations of a ``Dict`` there is a history; the others are those of the newest view. All by
        default
    :raises ValueError: If ``length`` is no whole number from 2 on, there are no such keys, or a space has no arrays
    """

    def __init__(self, venv: VecEnv, length: int = 4, keys: Sequence[str] | None = None):
        checks.instance("venv", venv, VecEnv)
        _check_length(length, (venv.get_attr("spec") if venv.has_attr("spec") else [None])[0])
        space = HistorySpace(venv.observation_space, venv.action_space, length, keys)
        super().__init__(venv, observation_space=space.observation_space)
        self.histories = Histories(space, venv.num_envs)
        self._actions = np.zeros(0)

    def reset(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        """
        :return: Histories of one view
        """
        return self.histories.begin(self.venv.reset())

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: ``(environments, *action shape)``
        """
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Histories, rewards, ends of episodes and infos. The last observation of an episode that has ended, in
            its info, is a history too.
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        ended = np.flatnonzero(dones)
        led_to = by_key(observations)
        lasts = {env: infos[env].get(TERMINAL_OBSERVATION) for env in ended.tolist()}
        if any(last is not None for last in lasts.values()):
            led_to = {key: np.array(array) for key, array in led_to.items()}
            for env, last in lasts.items():
                if last is not None:
                    for key, array in by_key(last).items():
                        led_to[key][env] = array
        histories = self.histories.add(self._actions, as_observations(led_to))
        if len(ended) == 0:
            return histories, rewards, dones, infos  # type: ignore[return-value]
        for env, last in lasts.items():
            if last is not None:
                infos[env][TERMINAL_OBSERVATION] = {key: array[env] for key, array in histories.items()}
        return self.histories.begin(observations, ended), rewards, dones, infos  # type: ignore[return-value]


class HistoryObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    The same as :class:`VecHistory` for a single Gymnasium environment.

    :param env: Environment
    :param length: How many views there are, at least 2
    :param keys: Of which observations of a ``Dict`` there is a history; the others are those of the newest view. All by
        default
    :raises ValueError: If ``length`` is no whole number from 2 on, there are no such keys, or a space has no arrays
    """

    def __init__(self, env: gym.Env, length: int = 4, keys: Sequence[str] | None = None):
        gym.utils.RecordConstructorArgs.__init__(self, length=length, keys=keys)
        super().__init__(checks.instance("env", env, gym.Env))
        _check_length(length, env.spec)
        space = HistorySpace(env.observation_space, env.action_space, length, keys)
        self.observation_space = space.observation_space
        self.histories = Histories(space, 1)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """
        :param kwargs: Of the environment
        :return: A history of one view, and the info
        """
        observation, info = self.env.reset(**kwargs)
        return _only(self.histories.begin(_batch(observation))), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        :param action: Of the environment
        :return: A history, and the rest as the environment gives it
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        history = self.histories.add(np.asarray(action)[None], _batch(observation))
        return _only(history), reward, terminated, truncated, info


def _check_length(length: int, spec: Any) -> None:
    length = checks.whole_number("length", length, 2)
    longest = None if spec is None else spec.max_episode_steps
    if longest is not None and length > longest + 1:
        raise ValueError(
            f"`length` must be at most {longest + 1}, the observations of an episode of {longest} steps, got {length}"
        )


def _batch(observation: Any) -> Any:
    return as_observations({key: np.asarray(array)[None] for key, array in by_key(observation).items()})


def _only(histories: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: array[0] for key, array in histories.items()}
