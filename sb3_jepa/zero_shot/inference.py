"""Tasks from rewards, goals and demonstrations."""

import io
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa.common import checks
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.sb3_privates import wrap_env
from sb3_jepa.common.spaces import spaces_by_key
from sb3_jepa.data import record_env
from sb3_jepa.zero_shot.losses import draw_tasks
from sb3_jepa.zero_shot.policies import TDJEPAPolicy
from sb3_jepa.zero_shot.tasks import Task, task_of_rewards, tasks_of_demonstration

# Tasks are inferred from so many observations, if these take no more bytes
N_INFERENCE_SAMPLES, MAX_INFERENCE_BYTES = 10_000, 64 * 2**20
# Observations are embedded so many at once
BATCH_SIZE = 1024


class InfersTasks(OffPolicyAlgorithm):
    """What an algorithm of any task has beside learning: tasks and their policies."""

    policy: Any
    # Of a model that was loaded without its replay buffer
    inference_observations: Any = None

    def infer(
        self,
        reward: Callable[[Any], Any] | None = None,
        *,
        rewards: Any = None,
        observations: Any = None,
        goal: Any = None,
        demonstration: Any = None,
        horizon: int = 10,
        env: GymEnv | None = None,
        n_steps: int = 10_000,
    ) -> Task:
        r"""
        Make a task of one of these. Nothing is trained.

        - ``reward``, a function, is asked about a sample of the next observations that the model learned from.
        - ``rewards`` and ``observations``: what was given for arriving at which observation.
        - ``goal``: an observation to arrive at and to stay at.
        - ``demonstration``: the observations of an episode. Each step has a task vector of its own, the mean of the
          embeddings of the next ``horizon`` observations.
        - ``env``, where rewards can only be lived through: it acts there for random tasks for ``n_steps`` steps.

        The weights are those of a linear regression of rewards on task embeddings (*TD-JEPA*, arXiv 2510.00739, section
        3), with a ridge of 1e-6. So a reward that is not linear in the embeddings is not seen as a whole: the task's
        ``fit`` says how much of it is.

        :param reward: From observations ``(samples, *observation shape)``, or a dictionary of such, to rewards
            ``(samples,)``
        :param rewards: ``(samples,)``
        :param observations: ``(samples, *observation shape)``, or a dictionary of such
        :param goal: One observation
        :param demonstration: ``(steps, *observation shape)``, or a dictionary of such
        :param horizon: How many observations of a demonstration a task vector looks ahead
        :param env: The environment whose rewards are to be collected
        :param n_steps: Steps in that environment
        :return: The task
        :raises ValueError: If nothing was learned yet; if it is not exactly one of these; if all rewards are 0, or one
            is not finite; or if an observation is none of the observation space
        """
        given = dict(reward=reward, rewards=rewards, goal=goal, demonstration=demonstration, env=env)
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1 or (observations is not None) != (rewards is not None):
            raise ValueError(
                "A task is inferred from exactly one of `reward`, `rewards` with `observations`, `goal`, "
                f"`demonstration` and `env`, got {named + ['observations'] * (observations is not None)}"
            )
        if not self.has_learned:
            raise ValueError("Nothing was learned yet: call `learn_offline` or `learn` before `infer`")
        if reward is not None:
            checks.function("reward", reward)
            observations = self.inference_sample()
            return task_of_rewards(self._embed("observations", observations), _ask(reward, observations))
        if rewards is not None:
            embeddings = self._embed("observations", observations)
            rewards = np.asarray(rewards, dtype=np.float64)
            if rewards.shape not in ((len(embeddings),), (len(embeddings), 1)):
                raise ValueError(
                    f"`rewards` must have one number for each of {len(embeddings)} observations, got {rewards.shape}"
                )
            return task_of_rewards(embeddings, rewards.reshape(-1))
        if goal is not None:
            keyed = {key: np.asarray(one)[None] for key, one in by_key(goal).items()}
            embedding = self._embed("goal", as_observations(keyed))
            return Task(self._task_of_goals(embedding)[0].cpu().numpy(), "goal")  # type: ignore[attr-defined]
        if demonstration is not None:
            embeddings = self._embed("demonstration", demonstration)
            if len(embeddings) < 2:
                raise ValueError(f"`demonstration` must have at least 2 observations, got {len(embeddings)}")
            return Task(tasks_of_demonstration(embeddings, checks.whole_number("horizon", horizon)), "demonstration")
        return self._infer_from_interaction(env, checks.whole_number("n_steps", n_steps))

    def _infer_from_interaction(self, env: Any, n_steps: int) -> Task:
        vec_env = wrap_env(env)
        recordings = record_env(vec_env, n_steps, policy=_RandomTasks(self), progress_bar=False)
        assert recordings.rewards is not None
        assert recordings.has_action is not None
        # A reward belongs to the observation that it led to, which is the next row of the episode
        rows = np.flatnonzero(recordings.has_action > 0)
        windows = recordings.windows(rows, 2)
        exists = windows.valid[:, 1] > 0
        led_to = as_observations({key: array[exists, 1] for key, array in by_key(windows.observations).items()})
        assert windows.rewards is not None
        return task_of_rewards(self._embed("env", led_to), windows.rewards[exists, 0], "interaction")

    def policy_for(self, task: Task | np.ndarray) -> TDJEPAPolicy:
        """
        :param task: What :meth:`infer` has made, or a task vector ``(task_dim,)``, or several, ``(steps, task_dim)``
        :return: A policy of Stable-Baselines3 that acts for it. It is a copy: what is learned later does not change it.
        :raises ValueError: If it is neither, or of another width
        """
        vector = np.asarray(task.vector if isinstance(task, Task) else task, dtype=np.float32)
        task_dim = self.policy.task_dim
        if vector.ndim not in (1, 2) or vector.shape[-1] != task_dim or not np.isfinite(vector).all():
            checks.refuse("task", f"a Task, or finite task vectors, ({task_dim},) or (steps, {task_dim})", task)
        return self.policy.for_task(vector)

    def predicted_rewards(self, task: Task | np.ndarray, observations: Any) -> np.ndarray:
        r"""
        The reward that a task stands for, :math:`\psi(s)^\top z`, but for its scale.

        :param task: What :meth:`infer` has made, or a task vector ``(task_dim,)``
        :param observations: ``(samples, *observation shape)``, or a dictionary of such
        :return: ``(samples,)``; of a task with a vector for each step, ``(samples, steps)``
        """
        vector = np.asarray(task.vector if isinstance(task, Task) else task, dtype=np.float32)
        return self._embed("observations", observations).cpu().numpy() @ vector.T

    @property
    def has_learned(self) -> bool:
        """Whether there was an update."""
        return self._n_updates > 0

    def random_task(self) -> Task:
        """A task at random: what a task that was inferred should be compared with."""
        return Task(draw_tasks(1, self.policy.task_dim)[0].numpy(), "random")

    @th.no_grad()
    def _embed(self, name: str, observations: Any) -> th.Tensor:
        """Task embeddings, ``(samples, task_dim)``"""
        keyed_spaces, keyed = spaces_by_key(self.observation_space), by_key(observations)
        if keyed.keys() != keyed_spaces.keys():
            raise ValueError(f"`{name}` must have the keys {sorted(keyed_spaces)}, got {sorted(keyed)}")
        arrays = {}
        for key, space in keyed_spaces.items():
            array = np.asarray(keyed[key])
            where = f"`{name}`" if not key else f"`{name}`[{key!r}]"
            if array.shape[1:] != (space.shape or ()) or array.shape[0] == 0:
                raise ValueError(f"{where} must have observations of {space}, got an array of shape {array.shape}")
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise ValueError(f"{where} must be finite, got NaN or infinite values")
            if isinstance(space, spaces.Box) and ((array < space.low) | (array > space.high)).any():
                raise ValueError(f"{where} must lie in {space}, got values from {array.min()} to {array.max()}")
            arrays[key] = array.astype(space.dtype, copy=False)
        vec_normalize = self._vec_normalize_env
        stacked: Any = as_observations(arrays)
        if vec_normalize is not None:
            stacked = vec_normalize.normalize_obs(stacked)
        self.policy.set_training_mode(False)
        parts = []
        n = len(next(iter(arrays.values())))
        for start in range(0, n, BATCH_SIZE):
            rows = {key: np.asarray(one)[start : start + BATCH_SIZE] for key, one in by_key(stacked).items()}
            parts.append(
                self.policy.task_encoder(self.policy.inputs(obs_as_tensor(as_observations(rows), self.device)))
            )
        return th.cat(parts)

    def inference_sample(self) -> Any:
        """
        :return: Next observations that were learned from, as the environment gave them: at most 10,000 and 64 MB, each
            time the same
        :raises ValueError: If there are none
        """
        buffer = self.replay_buffer
        if buffer is None or buffer.size() == 0:
            if self.inference_observations is None:
                raise ValueError(
                    "The model has no observations to ask `reward` about: give `observations` and `rewards`"
                )
            return self.inference_observations
        sizes = [one.sample().nbytes for one in spaces_by_key(self.observation_space).values()]
        n_samples = max(1, min(N_INFERENCE_SAMPLES, MAX_INFERENCE_BYTES // sum(sizes), buffer.size() * buffer.n_envs))
        # The same observations each time, and the random numbers of the training stay as they are
        with isolated_random_numbers(0):
            samples = buffer.sample(n_samples, env=None)
        # Buffers give a number an axis, which an environment does not
        return as_observations(
            {
                key: one.cpu().numpy().reshape(-1, *(spaces_by_key(self.observation_space)[key].shape or ()))
                for key, one in by_key(samples.next_observations).items()
            }
        )

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file, with a sample of observations (at
        most 10,000 and 64 MB) so that :meth:`infer` can be asked for more tasks later. If that fails, an older file
        stays as it was.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        if self.replay_buffer is not None and self.replay_buffer.size() > 0:
            self.inference_observations = self.inference_sample()
        super().save(path, exclude, include)


def _ask(reward: Callable[[Any], Any], observations: Any) -> np.ndarray:
    n = len(next(iter(by_key(observations).values())))
    try:
        rewards = np.asarray(reward(observations), dtype=np.float64)
    except Exception as error:
        raise ValueError(
            f"`reward` failed with {n} observations at once: {type(error).__name__}: {error}. It is asked about a "
            "whole batch, `reward(observations)` with the samples along the first axis"
        ) from error
    if rewards.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"`reward` must return a number for each of {n} observations, ({n},), got an array of shape {rewards.shape}"
        )
    return rewards.reshape(-1)


class _RandomTasks:
    """Acts for random tasks, of which each environment has another one in each episode."""

    def __init__(self, model: InfersTasks):
        self.observation_space, self.action_space = model.observation_space, model.action_space
        self._policy, self._tasks = model.policy, th.zeros(0)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        starts = np.flatnonzero(episode_start)
        if len(self._tasks) != len(episode_start):
            self._tasks = draw_tasks(len(episode_start), self._policy.task_dim, self._policy.device)
        self._tasks[starts] = draw_tasks(len(starts), self._policy.task_dim, self._policy.device)
        self._policy.act_for(self._tasks)
        try:
            return self._policy.predict(observation, deterministic=deterministic)
        finally:
            self._policy.act_for(None)
