"""Transitions of a replay buffer, and windows of several steps."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_jepa.buffers.replay import SharedFrames
from sb3_jepa.buffers.transitions import Transitions
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.sb3_privates import normalize_observations, normalize_rewards, sample_with_rows


def sample_transitions(
    buffer: ReplayBuffer,
    batch_size: int,
    env: VecNormalize | None = None,
    horizon: int = 1,
    with_rewards: bool = False,
) -> tuple[ReplayBufferSamples, Transitions]:
    """
    :param buffer: Of any class; with a horizon above 1, one that takes its samples as Stable-Baselines3's do
    :param batch_size: Number of samples
    :param env: What normalises observations and rewards
    :param horizon: Steps of the window of each sample
    :param with_rewards: Whether the transitions have rewards and ends of episodes
    :return: What the buffer samples, and the transitions that begin with these observations. They are single steps,
        whatever ``n_steps`` the buffer sums up.
    :raises ValueError: With a horizon above 1, if the buffer does not tell which rows it has sampled; or with rewards
        too, if it makes up other goals, and with them other rewards
    """
    if horizon > 1 or isinstance(buffer, NStepReplayBuffer):
        return _sample_windows(buffer, batch_size, env, horizon, with_rewards)
    samples = buffer.sample(batch_size, env=env)
    ends = samples.dones.flatten()
    # To save memory the buffer forgets the last observation of an episode, and gives the next one's first
    valid = 1.0 - ends if buffer.optimize_memory_usage else th.ones_like(ends)
    transitions = Transitions(samples.observations, samples.actions, samples.next_observations, valid)
    if with_rewards:
        transitions = transitions._replace(rewards=samples.rewards.flatten(), ends=ends)
    return samples, transitions


def _sample_windows(
    buffer: ReplayBuffer, batch_size: int, env: VecNormalize | None, horizon: int, with_rewards: bool
) -> tuple[ReplayBufferSamples, Transitions]:
    if with_rewards and horizon > 1 and isinstance(buffer, HerReplayBuffer):
        raise ValueError(
            "`reward_coef` and `end_coef` must be 0 for several `steps_ahead` with a HerReplayBuffer, which knows the "
            "reward of a new goal for the first step only"
        )
    samples, first_rows, envs = sample_with_rows(buffer, batch_size, env)
    is_told = len(first_rows) == len(samples.actions)
    # On a GPU the comparison would wait for it
    if is_told and samples.actions.device.type == "cpu":
        is_told = np.array_equal(buffer.actions[first_rows, envs], samples.actions.numpy())
    if not is_told:
        raise ValueError(
            f"Neither `steps_ahead` above 1 nor `n_steps` above 1 goes with a {type(buffer).__name__}, which does not "
            "tell the rows that it samples. A replay buffer of your own tells them by calling Stable-Baselines3's "
            "`_get_samples(batch_inds, env)` first of all, and keeping the order"
        )
    rows = (first_rows[:, None] + np.arange(horizon)) % buffer.buffer_size
    at = rows, envs[:, None]
    has_ended = buffer.dones[at] > 0
    # Of the rows that were stored after the first one, the last is the newest of all
    n_after = (buffer.pos - first_rows - 1) % buffer.buffer_size
    is_valid = np.arange(horizon) <= n_after[:, None]
    is_valid[:, 1:] &= ~np.logical_or.accumulate(has_ended, axis=1)[:, :-1]
    belongs = is_valid.copy()
    ends = belongs & has_ended & ~(buffer.timeouts[at] > 0)
    flat = rows.flatten(), np.repeat(envs, horizon)
    if buffer.optimize_memory_usage:
        is_valid &= ~has_ended
        flat_of_next = (flat[0] + 1) % buffer.buffer_size, flat[1]
        stored = {key: array[flat_of_next] for key, array in by_key(buffer.observations).items()}
    else:
        stored = {key: array[flat] for key, array in by_key(buffer.next_observations).items()}
    if isinstance(buffer, HerReplayBuffer):
        # All steps have the goal of the sample, which may be another one than at the time
        goals = samples.observations["desired_goal"].repeat_interleave(horizon, dim=0)  # type: ignore[index]
    next_observations = obs_as_tensor(normalize_observations(buffer, as_observations(stored), env), buffer.device)
    if isinstance(buffer, HerReplayBuffer):
        next_observations = {**next_observations, "desired_goal": goals}  # type: ignore[dict-item]
    if isinstance(buffer, SharedFrames):
        next_observations = buffer.shift(next_observations)

    def as_tensor(array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array if horizon > 1 else array[:, 0], dtype=th.float32, device=buffer.device)

    transitions = Transitions(
        samples.observations,
        th.as_tensor(buffer.actions[at] if horizon > 1 else buffer.actions[at][:, 0], device=buffer.device),
        next_observations,
        as_tensor(is_valid),
    )
    if with_rewards:
        rewards = normalize_rewards(buffer, buffer.rewards[at], env)
        transitions = transitions._replace(rewards=as_tensor(rewards * belongs), ends=as_tensor(ends))
    return samples, transitions


def end_cut_episodes(buffer: ReplayBuffer, observations: Any) -> None:
    """
    Mark the newest steps as truncated where an environment does not go on from them: one that was reset leaves an
    episode that has not ended, and windows must not run on into the next one. Targets of single steps are bootstrapped
    as before.

    :param buffer: That is about to be added to. One without ``handle_timeout_termination`` knows of no truncation, and
        stays as it is.
    :param observations: From which the environments go on, not normalised, ``(environments, *observation shape)``
    """
    if buffer.size() == 0 or not buffer.handle_timeout_termination:
        return
    newest = (buffer.pos - 1) % buffer.buffer_size
    has_ended = buffer.dones[newest] > 0
    stored = by_key(buffer.next_observations)
    same = [(array[newest] == by_key(observations)[key]).reshape(buffer.n_envs, -1) for key, array in stored.items()]
    is_cut = ~has_ended & ~np.concatenate(same, axis=1).all(axis=1)
    buffer.dones[newest, is_cut] = buffer.timeouts[newest, is_cut] = 1
