"""What belongs into ``learn(callback=...)``: the returns of named tasks, and pictures of what a task wants."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Figure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization, unwrap_vec_normalize

from sb3_jepa.callbacks.last_scalars import TABLE_OUTPUTS
from sb3_jepa.common import checks
from sb3_jepa.common.files import in_memory, write_file
from sb3_jepa.common.sb3_privates import wrap_env
from sb3_jepa.diagnostics.pictures import map_figure, new_figure
from sb3_jepa.zero_shot.inference import InfersTasks


class TaskEvalCallback(BaseCallback):
    """
    Infers named tasks every so many steps, and evaluates the policy for each: ``EvalCallback`` for models of any task.
    Logs each task's return and fit, ``zero_shot/<name>_return`` and ``zero_shot/<name>_r2``, the mean return of all,
    and, for comparison, that of random tasks in the same environments.

    .. code-block:: python

        tasks = {"left": dict(env=left_env, reward=lambda observations: -observations[:, 0])}
        model.learn_offline(data, callback=TaskEvalCallback(tasks, eval_freq=10_000))

    :param tasks: For each name, the environment that rewards this task, ``env``, and what
        :meth:`~sb3_jepa.TDJEPA.infer` makes it of
    :param eval_freq: Evaluate at every ``eval_freq`` call of the callback: steps of the environments, or gradient steps
        of ``learn_offline``
    :param n_eval_episodes: Episodes of each task
    :param n_random_tasks: Random tasks, each evaluated for as many episodes in every environment; 0 for none
    :param log_path: Folder for ``evaluations.npz``, with the returns of all evaluations
    :param best_model_save_path: Folder for ``best_model.zip``, of the evaluation with the best mean return of all tasks
    :param deterministic: Whether actions are deterministic
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If there is no task, one has no environment, or a number is out of range; when the training
        starts, if the algorithm has no tasks
    """

    def __init__(
        self,
        tasks: Mapping[str, Mapping[str, Any]],
        eval_freq: int = 10_000,
        n_eval_episodes: int = 5,
        n_random_tasks: int = 1,
        log_path: str | pathlib.Path | None = None,
        best_model_save_path: str | pathlib.Path | None = None,
        deterministic: bool = True,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        tasks = checks.keyword_arguments("tasks", tasks)
        if not tasks:
            raise ValueError("`tasks` must have at least one task, got none")
        self.envs: dict[str, VecEnv] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        for name, arguments in tasks.items():
            arguments = checks.keyword_arguments(f"tasks[{name!r}]", arguments)
            env = arguments.pop("env", None)
            checks.instance(f"tasks[{name!r}]['env']", env, (gym.Env, VecEnv))
            self.envs[name], self.tasks[name] = wrap_env(env), arguments
        self.eval_freq = checks.whole_number("eval_freq", eval_freq)
        self.n_eval_episodes = checks.whole_number("n_eval_episodes", n_eval_episodes)
        self.n_random_tasks = checks.whole_number("n_random_tasks", n_random_tasks, 0)
        self.log_path, self.best_model_save_path = (
            checks.optional(checks.path, name, path)
            for name, path in (("log_path", log_path), ("best_model_save_path", best_model_save_path))
        )
        self.deterministic = checks.flag("deterministic", deterministic)
        self.best_mean_return = -np.inf
        # Of the latest evaluation, and the returns of all
        self.last_returns: dict[str, float] = {}
        self._timesteps: list[int] = []
        self._returns: dict[str, list[list[float]]] = {name: [] for name in self.tasks}

    def _init_callback(self) -> None:
        _check_model(self.model)

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0 and self.model.has_learned:  # type: ignore[attr-defined]
            self.evaluate()
        return True

    def evaluate(self) -> dict[str, float]:
        """
        Infer and evaluate all tasks now.

        :return: Mean return of each task
        """
        model: Any = self.model
        for env in self.envs.values():
            if isinstance(unwrap_vec_normalize(env), VecNormalize):
                sync_envs_normalization(model.get_env(), env)
        for name, arguments in self.tasks.items():
            task = model.infer(**arguments)
            returns = self._evaluate(name, task)
            self._returns[name].append(returns)
            self.last_returns[name] = float(np.mean(returns))
            self.logger.record(f"zero_shot/{name}_return", self.last_returns[name])
            if task.fit is not None:
                self.logger.record(f"zero_shot/{name}_r2", task.fit.r2)
        mean_return = float(np.mean(list(self.last_returns.values())))
        self.logger.record("zero_shot/mean_return", mean_return)
        if self.n_random_tasks > 0:
            random_tasks = [model.random_task() for _ in range(self.n_random_tasks)]
            of_random = [np.mean(self._evaluate(name, task)) for task in random_tasks for name in self.envs]
            self.logger.record("zero_shot/mean_return_of_random_tasks", float(np.mean(of_random)))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self._timesteps.append(self.num_timesteps)
        self._save(mean_return)
        return dict(self.last_returns)

    def _evaluate(self, name: str, task: Any) -> list[float]:
        model: Any = self.model
        returns, _ = evaluate_policy(
            model.policy_for(task),
            self.envs[name],
            self.n_eval_episodes,
            deterministic=self.deterministic,
            return_episode_rewards=True,
            warn=False,
        )
        return list(returns)  # type: ignore[arg-type]

    def _save(self, mean_return: float) -> None:
        if self.log_path is not None:
            self.log_path.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = {"timesteps": self._timesteps, **self._returns}
            content = in_memory(lambda file: np.savez(file, **arrays))
            write_file(self.log_path / "evaluations.npz", content)
        if mean_return > self.best_mean_return:
            self.best_mean_return = mean_return
            if self.best_model_save_path is not None:
                self.best_model_save_path.mkdir(parents=True, exist_ok=True)
                self.model.save(self.best_model_save_path / "best_model")


class TaskPictureCallback(BaseCallback):
    """
    Draws, for each of some named tasks, the reward that its vector stands for, over the observations that were learned
    from: what the task wants, at a glance. For TensorBoard and other outputs that take figures, as
    ``zero_shot_pictures/<name>``.

    :param tasks: For each name, what :meth:`~sb3_jepa.TDJEPA.infer` makes it of
    :param every_n_steps: Draw at every such call of the callback
    :param position: From observations ``(samples, *observation shape)``, or a dictionary of such, to where they are in
        the picture, ``(samples, 2)``; by default the first two numbers
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If there is no task, or a number is not positive; when the training starts, if the algorithm has
        no tasks
    :raises ImportError: If Matplotlib is not installed
    """

    def __init__(
        self,
        tasks: Mapping[str, Mapping[str, Any]],
        every_n_steps: int = 10_000,
        position: Callable[[Any], np.ndarray] | None = None,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        self.tasks = checks.keyword_arguments("tasks", tasks)
        if not self.tasks:
            raise ValueError("`tasks` must have at least one task, got none")
        self.every_n_steps = checks.whole_number("every_n_steps", every_n_steps)
        self.position = checks.optional(checks.function, "position", position)
        # Objects now, if Matplotlib is not installed
        new_figure(1, 1, "")

    def _init_callback(self) -> None:
        _check_model(self.model)

    def _on_step(self) -> bool:
        model: Any = self.model
        if self.n_calls % self.every_n_steps == 0 and model.has_learned:
            observations = model.inference_sample()
            at = np.asarray(observations[:, :2] if self.position is None else self.position(observations))
            for name, arguments in self.tasks.items():
                task = model.infer(**{key: value for key, value in arguments.items() if key != "env"})
                title = name if task.fit is None else f"{name}, R² {task.fit.r2:.2f}"
                figure = map_figure(at, model.predicted_rewards(task, observations), title)
                self.logger.record(f"zero_shot_pictures/{name}", Figure(figure, close=False), exclude=TABLE_OUTPUTS)
            self.logger.dump(self.num_timesteps)
        return True


def _check_model(model: Any) -> None:
    if not isinstance(model, InfersTasks):
        raise ValueError(f"Tasks need an algorithm such as sb3_jepa.TDJEPA, got a {type(model).__name__}")
