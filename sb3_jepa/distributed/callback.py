"""Callbacks of a training on several ranks."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback

from sb3_jepa.common import ranks
from sb3_jepa.common.sb3_privates import add_episodes
from sb3_jepa.distributed.running_statistics import RunningStatistics

# What Monitor, and environments with a goal, tell about an episode
EPISODE_INFOS = ("episode", "is_success")


class _ProgressBarOfRanks(ProgressBarCallback):
    def _on_step(self) -> bool:
        self.pbar.update(self.training_env.num_envs * ranks.n_ranks())
        return True


class RanksCallback(CallbackList):
    """
    Counts the time steps of all ranks, and lets them agree at the end of each rollout: about the end of the training,
    the statistics of the environment's wrappers, and the episodes that ended.

    :param callbacks: Those of this rank, initialised
    :param statistics: Of this rank's environment
    """

    def __init__(self, callbacks: list[BaseCallback], statistics: RunningStatistics):
        super().__init__(callbacks)
        self.is_over = False
        self._statistics = statistics
        self._wants_to_stop = False
        self._episodes: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.model.num_timesteps += (ranks.n_ranks() - 1) * self.training_env.num_envs
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if done:
                self._episodes.append({name: info[name] for name in EPISODE_INFOS if name in info})
        if not super()._on_step():
            self._wants_to_stop = True
        # Now the others would wait for what never comes
        return not self.is_over

    def _on_rollout_end(self) -> None:
        told = ranks.gather_objects((self._wants_to_stop, self._statistics.seen, self._episodes))
        wants_to_stop, seen, episodes = zip(*told, strict=True)
        self.is_over = any(wants_to_stop)
        self._statistics.agree(list(seen))
        for number, of_rank in enumerate(episodes):
            # Its own are known
            if number != ranks.rank():
                add_episodes(self.model, of_rank)
        self._episodes = []
        super()._on_rollout_end()
