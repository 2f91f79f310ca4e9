"""Whole episodes of a policy, such as demonstrations."""

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common import callbacks
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.common import checks
from sb3_jepa.common.next_observations import terminal_observation
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.spaces import ARRAY_SPACES
from sb3_jepa.data.collection import as_policy, as_vec_env, check_fit, check_progress_bar, seeded
from sb3_jepa.data.recordings import Recordings


def record_episodes(
    env: str | gym.Env | VecEnv,
    policy: Any,
    n_episodes: int = 50,
    seed: int = 0,
    deterministic: bool = True,
    progress_bar: bool = False,
) -> Recordings:
    """
    Demonstrations of any policy, in memory: whole episodes, good and bad ones, each with its last observation.
    :func:`~sb3_jepa.data.save_recordings` keeps them in a folder.

    .. code-block:: python

        expert = PPO("MlpPolicy", "CartPole-v1").learn(50_000)
        demonstrations = record_episodes("CartPole-v1", expert, n_episodes=50)

    :param env: ID of an environment, an environment, or several in parallel, of which each gives as many episodes
    :param policy: A model, the path of a saved one, or any other object with the ``predict`` of Stable-Baselines3, such
        as a scripted expert
    :param n_episodes: How many
    :param seed: Seed of the environments and of the actions
    :param deterministic: Whether actions are deterministic
    :param progress_bar: Display a progress bar using tqdm and rich
    :return: The recordings
    :raises ValueError: If an argument is not among those accepted, or the actions cannot be recorded
    :raises ImportError: If the progress bar is asked for, and tqdm or rich is not installed
    """
    n_episodes, seed = checks.whole_number("n_episodes", n_episodes), checks.seed("seed", seed)
    deterministic = checks.flag("deterministic", deterministic)
    check_progress_bar(progress_bar)
    model = as_policy(policy, seed)
    if model is None:
        raise ValueError("`policy` must be a model, the path of one, or have a `predict`, got None")
    vec_env = as_vec_env(env)
    bar = callbacks.tqdm(total=n_episodes) if progress_bar else None
    try:
        check_fit(model, vec_env)
        if not isinstance(vec_env.action_space, ARRAY_SPACES):
            raise ValueError(f"`env` must have actions that are arrays, got {vec_env.action_space}")
        with seeded(seed, vec_env):
            return _record(vec_env, model, n_episodes, deterministic, bar)
    finally:
        if bar is not None:
            bar.close()
        if isinstance(env, str):
            vec_env.close()


class _Episode:
    """What is known of an episode so far."""

    def __init__(self) -> None:
        self.observations: dict[str, list[np.ndarray]] = {}
        self.steps: dict[str, list[Any]] = dict(actions=[], rewards=[], terminated=[])

    def see(self, observation: Any) -> None:
        for key, array in by_key(observation).items():
            self.observations.setdefault(key, []).append(np.array(array))

    def act(self, **step: Any) -> None:
        for name, value in step.items():
            self.steps[name].append(value)


def _record(env: VecEnv, model: Any, n_episodes: int, deterministic: bool, bar: Any) -> Recordings:
    # As many of each environment: those that end soon would otherwise be preferred
    wanted = [(n_episodes + index) // env.num_envs for index in range(env.num_envs)]
    finished: list[list[_Episode]] = [[] for _ in wanted]
    current = [_Episode() for _ in wanted]
    observations: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    while any(len(done) < n for done, n in zip(finished, wanted, strict=True)):
        actions, state = model.predict(observations, state, starts, deterministic)
        for index, episode in enumerate(current):
            episode.see(_row(observations, index))
        # Copy: an environment may return its next observations in the same arrays
        actions = np.array(actions)
        observations, rewards, starts, infos = env.step(actions)
        for index, episode in enumerate(current):
            is_over, cut_off = bool(starts[index]), bool(infos[index].get("TimeLimit.truncated", False))
            episode.act(actions=actions[index], rewards=float(rewards[index]), terminated=is_over and not cut_off)
            if is_over:
                last = terminal_observation(True, infos[index])
                if last is not None:
                    episode.see(last)
                if len(finished[index]) < wanted[index]:
                    finished[index].append(episode)
                    if bar is not None:
                        bar.update(1)
                current[index] = _Episode()
    return _join([episode for done in finished for episode in done], env)


def _row(observations: Any, index: int) -> Any:
    return as_observations({key: array[index] for key, array in by_key(observations).items()})


def _join(episodes: list[_Episode], env: VecEnv) -> Recordings:
    lengths, n_actions = [], []
    for episode in episodes:
        lengths.append(len(next(iter(episode.observations.values()))))
        n_actions.append(len(episode.steps["rewards"]))
    has_action = np.concatenate([np.arange(n) < m for n, m in zip(lengths, n_actions, strict=True)])

    def joined(name: str, dtype: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
        rows = np.zeros((len(has_action), *shape), dtype)
        rows[has_action] = np.reshape([value for one in episodes for value in one.steps[name]], (-1, *shape))
        return rows

    observations = {
        key: np.stack([array for one in episodes for array in one.observations[key]])
        for key in episodes[0].observations
    }
    space: Any = env.action_space
    return Recordings(
        env.observation_space,
        as_observations(observations),
        np.repeat(np.arange(len(episodes)), lengths),
        space,
        joined("actions", space.dtype, space.shape or ()),
        joined("rewards", np.float32),
        joined("terminated", bool),
        has_action,
    )
