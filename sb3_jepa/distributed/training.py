"""Training on several ranks: what the processes that ``torchrun`` has started have to agree about."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.common import ranks
from sb3_jepa.distributed.callback import RanksCallback, _ProgressBarOfRanks
from sb3_jepa.distributed.running_statistics import RunningStatistics
from sb3_jepa.policies.joint import JointPolicy

# What may differ from rank to rank
OF_EACH_RANK = ("seed", "start_time", "tensorboard_log", "verbose")


def check_ranks(model: BaseAlgorithm) -> None:
    """
    :param model: That is about to be trained
    :raises ValueError: If there are several ranks, and it cannot be trained on them
    """
    can = isinstance(model, TrainingOnRanks) and model.trains_on_ranks and isinstance(model.policy, JointPolicy)
    if ranks.n_ranks() > 1 and not can:
        raise ValueError(
            f"{type(model).__name__} with the policy {type(model.policy).__name__} cannot be trained on several ranks, "
            f"got {ranks.n_ranks()} of them: sb3_jepa's PPO, A2C and MaskablePPO can, with a JepaPolicy. Start the "
            "script without torchrun"
        )


class TrainingOnRanks(OnPolicyAlgorithm):
    """
    Lets ``torchrun --nproc-per-node 2 script.py`` train one model in several processes (ranks), each with environments
    of its own. A minibatch is made of ``batch_size`` rows of every rank: one step of the optimiser, from the gradient
    for all of them together. Advantages, ``target_kl``, the JEPA's losses, the statistics of the input and those of
    ``VecNormalize`` are agreed too.

    - Time steps are those of all ranks, in ``total_timesteps`` as in the logs.
    - With a ``seed``, no two environments of the ranks have the same one. Environments that are not seeded by the
      algorithm have to be told their rank: ``int(os.environ["RANK"])``.
    - Only rank 0 logs, saves, and calls the callbacks, but for those with an attribute ``runs_on_all_ranks = True``.
      When a callback ends the training, it ends with the rollout.
    - Of what is logged, ``rollout/``, ``time/`` and the JEPA's losses are of all ranks, and the rest is of rank 0.
    - Where rank 0 takes its time, as in an evaluation, the others wait for as long as the process group allows, which
      is 30 minutes (on GPUs 10). Make one yourself for another ``timeout``, with
      ``torch.distributed.init_process_group``, before the training.
    - On GPUs each rank takes one of its own, unless ``device`` has a number.

    :raises ValueError: When the training starts, if there are several ranks and the policy does not learn jointly, or
        if their settings differ
    """

    # Of a recurrent policy, the minibatches have unequal sizes
    trains_on_ranks: ClassVar[bool] = True

    def _setup_model(self) -> None:
        self.device = ranks.own_device(self.device)
        if ranks.rank() > 0:
            self.verbose = 0
        super()._setup_model()

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators (python, numpy, pytorch, gym, action_space). On several ranks, each
        goes on where the environments of the one before end.

        :param seed: Of rank 0
        """
        super().set_random_seed(None if seed is None else seed + ranks.rank() * self.n_envs)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if ranks.n_ranks() == 1:
            return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        check_ranks(self)
        ranks.start(self.device)
        statistics = RunningStatistics(self.env)
        _check_equal({**_settings(self), "total_timesteps": total_timesteps, **statistics.shapes})
        ranks.broadcast([*self.policy.parameters(), *self.policy.buffers()])
        ranks.broadcast_optimizer(self.policy.optimizer)
        statistics.broadcast()
        if ranks.rank() > 0:
            callback, progress_bar = CallbackList(_of_all_ranks(callback)), False
            # Whatever logger it was given
            self.set_logger(Logger(folder=None, output_formats=[]))
        total_timesteps, callback = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name)
        callbacks: list[BaseCallback] = [callback]
        if progress_bar:
            callbacks.append(_ProgressBarOfRanks())
            callbacks[-1].init_callback(self)
        callback = RanksCallback(callbacks, statistics)
        callback.model = self
        return total_timesteps, callback

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> bool:
        """
        Collect experiences using the current policy and fill a ``RolloutBuffer``.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param args: As the algorithm takes them
        :param kwargs: As the algorithm takes them
        :return: True if it is to be learned from, False if a callback terminated the training
        """
        completed = super().collect_rollouts(env, callback, *args, **kwargs)
        return completed and not (isinstance(callback, RanksCallback) and callback.is_over)

    def train(self) -> None:
        """Update policy using the currently gathered rollout buffer."""
        if ranks.n_ranks() == 1:
            super().train()
            return
        agreed: dict[str, Any] = {}
        if getattr(self, "normalize_advantage", False):
            agreed.update(rollout_buffer=_JointlyNormalized(self.rollout_buffer), normalize_advantage=False)
        if getattr(self, "target_kl", None) is not None:
            agreed.update(target_kl=_AgreedLimit(self.target_kl))  # type: ignore[attr-defined]
        with ranks.training_jointly(self.policy.parameters()), _replaced(self, agreed):
            super().train()


def _of_all_ranks(callback: MaybeCallback) -> list[BaseCallback]:
    """Those that do not only belong to rank 0. One that is a list may be of all ranks itself."""
    if isinstance(callback, BaseCallback) and getattr(callback, "runs_on_all_ranks", False):
        return [callback]
    callbacks = callback.callbacks if isinstance(callback, CallbackList) else callback
    return [kept for one in callbacks for kept in _of_all_ranks(one)] if isinstance(callbacks, list) else []


def _settings(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """What decides how much work an update is, and what it does, by its name."""
    settings: dict[str, Any] = dict(algorithm=type(model).__name__, policy=type(model.policy).__name__)
    for name, value in vars(model).items():
        if not name.startswith("_") and name not in OF_EACH_RANK:
            settings.update(_comparable(name, value))
    parameters = list(model.policy.parameters())
    settings["number of parameters"] = sum(parameter.numel() for parameter in parameters)
    settings["number of parameters that learn"] = sum(p.numel() for p in parameters if p.requires_grad)
    return settings


def _comparable(name: str, value: Any) -> dict[str, Any]:
    """What processes can compare of a setting: numbers, texts, schedules, classes by name, and lists of these."""
    if isinstance(value, FloatSchedule):
        return {name: [value(progress_remaining) for progress_remaining in (1.0, 0.5, 0.0)]}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {key: one for inner in value for key, one in _comparable(f"{name}.{inner}", value[inner]).items()}
    if isinstance(value, type):
        return {name: value.__qualname__}
    return {name: value} if isinstance(value, (int, float, str, type(None))) else {}


def _check_equal(settings: dict[str, Any]) -> None:
    of_ranks = ranks.gather_objects(settings)
    names = dict.fromkeys(name for one in of_ranks for name in one)
    given = {name: [one.get(name) for one in of_ranks] for name in names}
    differences = [f"`{name}` is {values}" for name, values in given.items() if any(v != values[0] for v in values)]
    if differences:
        raise ValueError(
            f"All ranks must have the same settings, or they would wait for each other forever. Got, from rank 0 to "
            f"rank {len(of_ranks) - 1}: {'; '.join(differences)}"
        )


@contextmanager
def _replaced(model: OnPolicyAlgorithm, attributes: dict[str, Any]) -> Iterator[None]:
    own = {name: getattr(model, name) for name in attributes}
    vars(model).update(attributes)
    try:
        yield
    finally:
        vars(model).update(own)


class _AgreedLimit(float):
    """
    ``target_kl``, for ``approx_kl_div > 1.5 * target_kl``: a multiple stays agreed, and what is compared is the mean of
    all ranks.
    """

    # NumPy's scalars leave the comparison to this class
    __array_ufunc__ = None

    def __mul__(self, factor: float) -> "_AgreedLimit":
        return _AgreedLimit(float(self) * factor)

    __rmul__ = __mul__

    def __lt__(self, value: Any) -> bool:
        return float(self) < ranks.average(float(value))


class _JointlyNormalized:
    """A rollout buffer whose samples have the advantages that Stable-Baselines3 makes of the joined minibatch."""

    def __init__(self, buffer: RolloutBuffer):
        self._buffer = buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        for samples in self._buffer.get(batch_size):
            of_all = ranks.gather_batch(samples.advantages)
            normalized = (samples.advantages - of_all.mean()) / (of_all.std() + 1e-8)
            yield samples._replace(advantages=normalized)
