"""A training without an environment's steps, with Stable-Baselines3's callbacks, logger and schedules."""

from collections.abc import Callable

from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_jepa.algorithms.model_files import FilesOfModels


class UpdateBar(ProgressBarCallback):
    """A progress bar of updates, of which there is one at a time, whatever the number of environments."""

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


class LearnsFromData(FilesOfModels):
    """What learns from data alone. A time step of callbacks, logs and schedules is an update here."""

    def _learn_from_data(
        self,
        update: Callable[[], None],
        n_updates: int,
        callback: MaybeCallback,
        log_interval: int,
        tb_log_name: str,
        reset_num_timesteps: bool,
        progress_bar: bool,
    ) -> None:
        """
        :param update: Does one update
        :param n_updates: Number of updates
        :param callback: callback(s) called after every update
        :param log_interval: Updates between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich
        """
        total_timesteps, callback = self._setup_learn(n_updates, callback, reset_num_timesteps, tb_log_name)
        bar = UpdateBar() if progress_bar else None
        if bar is not None:
            bar.init_callback(self)
            bar.on_training_start(locals(), globals())
        callback.on_training_start(locals(), globals())
        try:
            while self.num_timesteps < total_timesteps:
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                update()
                self.num_timesteps += 1
                if bar is not None:
                    bar.on_step()
                callback.update_locals(locals())
                if not callback.on_step():
                    break
                if self.num_timesteps % log_interval == 0:
                    self.dump_logs()
        finally:
            if bar is not None:
                bar.on_training_end()
        callback.on_training_end()

    def dump_logs(self) -> None:
        """Write log data."""
        raise NotImplementedError
