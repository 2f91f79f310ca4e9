"""Episodes of a model, recorded while it acts, and the frames in their observations."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.common.next_observations import true_next_observations
from sb3_jepa.common.observations import NO_KEY, as_observations, by_key
from sb3_jepa.extractors.tokenization import count_frames, is_bytes, is_picture


class Episode(NamedTuple):
    """
    An episode, or a part of one, in one environment.

    :param observations: As the policy gets them, ``(steps + 1, *observation shape)``, the last one included; with
        ``Dict`` observations a dictionary of such
    :param actions: As the environment executed them, ``(steps, *action shape)``
    :param rewards: ``(steps,)``
    :param variables: Of the environment, before each step, ``(steps, variables)``; None if none were recorded
    """

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    variables: np.ndarray | None = None


class EpisodeRecorder:
    """
    Keeps the latest episodes of the first ``n_envs`` environments. One of more than ``max_steps`` is cut in pieces, and
    the oldest are dropped when the others have ``max_total_steps``.
    """

    def __init__(self, n_envs: int = 1, max_steps: int = 500, max_total_steps: int = 500):
        self.n_envs, self.max_steps, self.max_total_steps = n_envs, max_steps, max_total_steps
        self._steps: list[list[tuple[dict[str, Any], Any, float, Any]]] = [[] for _ in range(n_envs)]
        self._last: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self._ended: deque[Episode] = deque()

    def record_step(
        self,
        observations: Any,
        actions: np.ndarray,
        rewards: np.ndarray,
        new_observations: Any,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
        variables: np.ndarray | None = None,
    ) -> None:
        """Record a step of all environments, with ``variables`` of before it, ``(environments, variables)``."""
        led_to, _ = true_next_observations(new_observations, dones, infos)
        for env in range(self.n_envs):
            # Copy: a view would keep the observations of all environments in memory
            before = {key: np.array(array[env]) for key, array in by_key(observations).items()}
            of_env = None if variables is None else variables[env]
            self._steps[env].append((before, actions[env], float(rewards[env]), of_env))
            self._last[env] = {key: array[env] for key, array in by_key(led_to).items()}
            if dones[env] or len(self._steps[env]) == self.max_steps:
                self._ended.append(self._episode(env))
                self._steps[env] = []
        while sum(len(episode.actions) for episode in self._ended) - self._n_oldest_steps >= self.max_total_steps:
            self._ended.popleft()

    @property
    def _n_oldest_steps(self) -> int:
        return len(self._ended[0].actions) if self._ended else 0

    def _episode(self, env: int) -> Episode:
        befores, actions, rewards, variables = zip(*self._steps[env], strict=True)
        rows = [*befores, self._last[env]]
        observations = {key: np.stack([row[key] for row in rows]) for key in befores[0]}
        has_variables = variables[0] is not None
        return Episode(
            as_observations(observations),
            np.stack(actions),
            np.array(rewards),
            np.stack(variables) if has_variables else None,
        )

    def latest(self, with_unfinished: bool = False) -> list[Episode]:
        """Episodes that have ended, oldest first, and those under way if none has ended or ``with_unfinished``."""
        if self._ended and not with_unfinished:
            return list(self._ended)
        return [*self._ended, *(self._episode(env) for env in range(self.n_envs) if self._steps[env])]


def executed_actions(step_locals: dict[str, Any]) -> np.ndarray:
    """The actions that the environments executed, from the local variables of ``collect_rollouts``."""
    # On-policy algorithms clip them; off-policy ones have nothing to clip
    return step_locals["clipped_actions" if "clipped_actions" in step_locals else "actions"]


def play_episodes(
    model: BaseAlgorithm, env: VecEnv, n_steps: int, read: Callable[[VecEnv], np.ndarray] | None = None
) -> list[Episode]:
    """
    Record episodes in which a model acts for ``n_steps`` or more, in all environments together; those under way then
    are cut. ``read`` gives variables of the environments before each step, ``(environments, variables)``.
    """
    per_env = -(-n_steps // env.num_envs)
    recorder = EpisodeRecorder(env.num_envs, max_steps=per_env, max_total_steps=2 * n_steps)
    observations: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    for _ in range(per_env):
        variables = None if read is None else read(env)
        actions, state = model.predict(observations, state, starts)
        new_observations, rewards, starts, infos = env.step(actions)
        recorder.record_step(observations, actions, rewards, new_observations, starts, infos, variables)
        observations = new_observations
    return recorder.latest(with_unfinished=True)


def image_key(space: spaces.Space) -> str | None:
    """The key of the first image of an observation space, ``""`` if it is an image itself, None if there is none."""
    for key, one in space.spaces.items() if isinstance(space, spaces.Dict) else [(NO_KEY, space)]:
        if isinstance(one, spaces.Box) and is_picture(one) and (is_bytes(one) or _is_normalized_image(one)):
            return key
    return None


def _is_normalized_image(space: spaces.Box) -> bool:
    is_between_0_and_1 = bool((space.low >= 0).all() and (space.high <= 1).all())
    return (
        is_image_space(space, normalized_image=True) and np.issubdtype(space.dtype, np.floating) and is_between_0_and_1
    )


def frames_of(images: np.ndarray, n_frames: int | None = None) -> np.ndarray:
    """
    The frames that are stacked in images, to be shown.

    :param images: Observations of a policy, ``(batch, frames * channels, height, width)``, ``(batch, height, width)``,
        or as Gymnasium stacks them, ``(batch, frames, height, width, channels)`` or with the channels before the height
    :param n_frames: Number of frames; guessed by default
    :return: ``(batch, frames, height, width, 3)``, or without the last dimension if they are not RGB: then the first
        channel of each
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 5 and images.shape[2] < min(images.shape[3:]):
        images = np.moveaxis(images, 2, -1)
    if images.ndim == 4:
        n_frames = count_frames(images.shape[1]) if n_frames is None else n_frames
        images = images.reshape(len(images), n_frames, -1, *images.shape[2:]).transpose(0, 1, 3, 4, 2)
    return images if images.shape[-1] == 3 else images[..., 0]
