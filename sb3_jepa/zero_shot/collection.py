"""Collection without rewards: each episode pursues a task of its own."""

from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_jepa.zero_shot.losses import draw_tasks

SelfCollectsForTasks = TypeVar("SelfCollectsForTasks", bound="CollectsForTasks")


class CollectsForTasks(OffPolicyAlgorithm):
    """What an off-policy algorithm lacks to act for many tasks while it learns."""

    policy: Any
    # A task vector for each environment
    _tasks_of_envs: th.Tensor | None = None

    def learn(
        self: SelfCollectsForTasks,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "TDJEPA",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfCollectsForTasks:
        """
        Collect steps, each episode for a random task of its own, and learn from them. Rewards are not looked at.

        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: callback(s) called at every step with state of the algorithm
        :param log_interval: for the number of episodes between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich
        :return: the trained model
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _sample_action(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        if self._tasks_of_envs is None or len(self._tasks_of_envs) != self.n_envs:
            self._tasks_of_envs = draw_tasks(self.n_envs, self.policy.task_dim, self.device)
        self.policy.act_for(self._tasks_of_envs)
        try:
            return super()._sample_action(*args, **kwargs)
        finally:
            self.policy.act_for(None)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        ended = np.flatnonzero(dones)
        if len(ended) and self._tasks_of_envs is not None:
            self._tasks_of_envs[ended] = draw_tasks(len(ended), self.policy.task_dim, self.device)
