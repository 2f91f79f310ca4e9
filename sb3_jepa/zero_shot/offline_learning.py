"""Learning from data alone, with Stable-Baselines3's callbacks and logger."""

from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_jepa.algorithms.learning_from_data import LearnsFromData
from sb3_jepa.common import checks
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.data.collection import check_progress_bar
from sb3_jepa.data.fitting import read_for
from sb3_jepa.data.to_buffers import replay_buffer_of
from sb3_jepa.diagnostics import effective_rank
from sb3_jepa.zero_shot.losses import orthonormality_loss

SelfLearnsOffline = TypeVar("SelfLearnsOffline", bound="LearnsOffline")
# Embeddings are compared on so many observations
N_COMPARED = 1024


class LearnsOffline(LearnsFromData, OffPolicyAlgorithm):
    """What an off-policy algorithm lacks to learn from recordings."""

    policy: Any
    _losses: dict[str, th.Tensor]

    def set_data(self, data: Any, **kwargs: Any) -> None:
        """
        Put recordings into the replay buffer, in the place of what it holds.

        :param data: What :func:`~sb3_jepa.data.read` takes: recordings, a file, a folder, a buffer or a Minari data set
        :param kwargs: Its further parameters
        :raises ValueError: If they are of other spaces than the environment, have no actions, do not say where episodes
            end, or hold NaN
        """
        recordings = read_for(data, self.observation_space, self.action_space, self._longest_episode(), **kwargs)
        assert self.replay_buffer_class is not None
        self.replay_buffer = replay_buffer_of(
            recordings,
            self.replay_buffer_class,
            self.observation_space,
            self.action_space,
            device=self.device,
            **self.replay_buffer_kwargs,
        )

    def _longest_episode(self) -> int | None:
        specs = self.env.get_attr("spec") if self.env is not None and self.env.has_attr("spec") else [None]
        return None if specs[0] is None else specs[0].max_episode_steps

    def learn_offline(
        self: SelfLearnsOffline,
        data: Any = None,
        gradient_steps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1_000,
        tb_log_name: str = "offline",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        **kwargs: Any,
    ) -> SelfLearnsOffline:
        """
        Learn from recordings. Rewards are not needed, nor looked at. A time step of callbacks, logs and schedules is a
        gradient step here.

        :param data: What :func:`~sb3_jepa.data.read` takes: recordings, a file, a folder, a buffer or a Minari data
            set; None to go on with what the replay buffer holds
        :param gradient_steps: Number of updates
        :param callback: callback(s) called after every gradient step
        :param log_interval: Gradient steps between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich
        :param kwargs: The further parameters of :func:`~sb3_jepa.data.read`
        :return: the trained model
        :raises ValueError: If an argument is out of range, or as :meth:`set_data`
        :raises ImportError: If the progress bar is asked for, and tqdm or rich is not installed
        """
        gradient_steps = checks.whole_number("gradient_steps", gradient_steps)
        log_interval = checks.whole_number("log_interval", log_interval)
        check_progress_bar(progress_bar)
        if self.env is None:
            raise ValueError("The model needs an environment, which tells how long episodes are: `load(path, env=env)`")
        if data is not None:
            self.set_data(data, **kwargs)
        elif self.replay_buffer is None or self.replay_buffer.size() == 0:
            raise ValueError("`data` must be recordings as long as the replay buffer is empty, got None")
        self._learn_from_data(
            lambda: self.train(gradient_steps=1, batch_size=self.batch_size),
            gradient_steps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )
        return self

    def dump_logs(self) -> None:
        """Write log data."""
        for name, value in {**self._losses, **self.embedding_gauges()}.items():
            room = "train" if name == "actor_loss" else "jepa"
            self.logger.record(f"{room}/{name}", float(value))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/learning_rate", self.lr_schedule(self._current_progress_remaining))
        OffPolicyAlgorithm.dump_logs(self)

    @th.no_grad()
    def embedding_gauges(self) -> dict[str, th.Tensor]:
        """
        :return: Of each encoder's embeddings of observations that were learned from, the effective rank, and how alike
            those of different observations are: 0 if orthogonal, 1 if equal. Nothing before the first update.
        """
        buffer = self.replay_buffer
        if self._n_updates == 0 or buffer is None:
            return {}
        # The random numbers of the training stay as they are
        with isolated_random_numbers(0):
            samples = buffer.sample(N_COMPARED, env=self._vec_normalize_env)
        gauges = {}
        inputs = self.policy.inputs(samples.observations)
        for name, encoder in self.policy.encoders.items():
            embeddings = encoder(inputs)
            gauges[f"{name}_effective_rank"] = effective_rank(embeddings)
            # The loss of embeddings of norm 1, without its constant term
            unit = embeddings / embeddings.shape[1] ** 0.5
            gauges[f"{name}_similarity"] = (2.0 * (orthonormality_loss(unit) + 1.0)).clamp(min=0.0).sqrt()
        return gauges
