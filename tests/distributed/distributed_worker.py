"""
What tests/test_distributed.py lets two processes do:

torchrun --standalone --nproc-per-node 2 tests/distributed/distributed_worker.py NAME_OF_FUNCTION FOLDER
"""

import copy
import os
import pathlib
import sys

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import A2C, PPO, JepaCallback, JepaExtractor, JepaPolicy, MaskablePPO, RecurrentPPO, Salt
from sb3_jepa.common.ranks import average_gradients
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO, FakeEnv, make_counting_env

N_RANKS = 2
# Of both ranks together
N_ENVS = 4
# Not a divisor of a rank's rows: the last minibatch is a small one
BATCH_SIZE = 8
# Four rollouts
N_TIMESTEPS = 4 * 64
ALGORITHMS = dict(PPO=PPO, A2C=A2C, MaskablePPO=MaskablePPO)


def make_model_to_compare(name: str, n_ranks: int):
    """The same work for each of so many ranks."""
    settings = dict(n_steps=10, learning_rate=1e-3, normalize_advantage=True, seed=0, device="cpu")
    if name != "A2C":
        settings.update(batch_size=BATCH_SIZE * N_RANKS // n_ranks, n_epochs=2, target_kl=None)
    objective_kwargs = dict(prediction_coef=0.2, variance_coef=0.1, deviation_coef=0.2, covariance_coef=0.1)
    if name == "MaskablePPO":
        objective_kwargs.update(steps_ahead=3, reward_coef=0.1, end_coef=0.1, inverse_coef=0.1)
    policy_kwargs = dict(
        features_extractor_kwargs=dict(SMALL_EXTRACTOR, standardize_frames=0),
        net_arch=[16],
        objective_kwargs=objective_kwargs,
    )
    env = make_counting_env(((5,),) * (N_ENVS // n_ranks))
    return ALGORITHMS[name]("JepaPolicy", env, policy_kwargs=policy_kwargs, **settings)


def fill_rollout_buffer(buffer, envs: slice) -> None:
    """
    A rollout of some of the environments. No two are alike, and of one the ends of episodes are not known: the
    statistics of one rank are not those of both.
    """
    generator = np.random.default_rng(0)
    brightness = np.arange(1, N_ENVS + 1).reshape(-1, 1, 1, 1) / N_ENVS

    def observe():
        return (generator.integers(0, 256, (N_ENVS, 3, 16, 16)) * brightness).astype(np.uint8)

    buffer.reset()
    observations, starts = observe(), np.ones(N_ENVS)
    for _ in range(buffer.buffer_size):
        next_observations, terminal_observations, dones = observe(), observe(), generator.random(N_ENVS) < 0.3
        infos = [{}, *(dict(terminal_observation=one) for one in terminal_observations[1:])]
        actions, rewards = generator.integers(0, 2, (N_ENVS, 1)), generator.normal(np.arange(N_ENVS))
        values = th.as_tensor(generator.normal(size=N_ENVS))
        log_probs = th.as_tensor(np.log(generator.uniform(0.4, 0.6, N_ENVS)))
        buffer.record_step(next_observations[envs], dones[envs], infos[envs], rewards[envs])
        buffer.add(observations[envs], actions[envs], rewards[envs], starts[envs], values[envs], log_probs[envs])
        observations, starts = next_observations, dones
    buffer.compute_returns_and_advantage(values[envs], dones[envs])


def train_on_one_rollout(model, envs: slice) -> tuple[list[th.Tensor], dict[str, th.Tensor]]:
    """The gradients of all minibatches, each as one vector, and what was learned."""
    gradients: list[th.Tensor] = []
    parameters = [parameter for parameter in model.policy.parameters() if parameter.requires_grad]
    model._setup_learn(100)
    # Without a callback, which would tell it
    model.rollout_buffer.horizon = model.policy.objective.horizon
    model.rollout_buffer.keeps_rewards = model.policy.objective.needs_rewards
    fill_rollout_buffer(model.rollout_buffer, envs)
    model.policy.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(th.cat([parameter.grad.flatten() for parameter in parameters]))
    )
    model.train()
    return gradients, model.policy.state_dict()


class CountCalls(BaseCallback):
    """Ends the training after so many calls, if asked to."""

    def __init__(self, runs_on_all_ranks: bool, stop_after: int | None = None):
        super().__init__()
        self.runs_on_all_ranks, self.stop_after = runs_on_all_ranks, stop_after

    def _on_step(self) -> bool:
        return self.n_calls != self.stop_after


class SaveAtEveryStep(BaseCallback):
    """Always to the same file."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        self.model.save(self.path)
        return True


def make_env() -> VecNormalize:
    return VecNormalize(make_vec_env(lambda: FakeEnv(spaces.Box(-1, 1, (3,))), n_envs=2))


def compare(folder: pathlib.Path, rank: int) -> None:
    """All that has to be the same on both ranks, or as in one process."""
    said = {}
    alternating = dict(policy_kwargs=dict(features_extractor_class=JepaExtractor), device="cpu")
    for name, model, callback in (
        ("other policy", PPO("MlpPolicy", make_env(), device="cpu"), None),
        ("RecurrentPPO", RecurrentPPO("JepaPolicy", make_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO), None),
        ("alternating", stable_baselines3.PPO("MlpPolicy", make_env(), **alternating), JepaCallback()),
        (
            "n_steps",
            PPO(JepaPolicy, make_env(), policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, "n_steps": 16 * (rank + 1)}),
            None,
        ),
        (
            "policy_kwargs",
            PPO(
                JepaPolicy,
                make_env(),
                policy_kwargs=dict(
                    SMALL_POLICY, net_arch=[16, 16], objective_kwargs=dict(prediction_coef=0.1 * rank, momentum=0.9)
                ),
                **SMALL_PPO,
            ),
            None,
        ),
    ):
        try:
            model.learn(100, callback=callback)
        except ValueError as error:
            said[name] = str(error)

    first, second, third = parameters = [th.nn.Parameter(th.zeros(2)) for _ in range(3)]
    first.grad = th.full((2,), float(rank))
    if rank == 1:
        second.grad = th.ones(2)
    average_gradients(parameters)
    averaged = [first.grad, second.grad, third.grad]

    compared = {}
    for name in ALGORITHMS:
        n_envs = N_ENVS // N_RANKS
        model = make_model_to_compare(name, N_RANKS)
        np.random.seed(rank)
        compared[name] = train_on_one_rollout(model, slice(rank * n_envs, (rank + 1) * n_envs))
    seen = dict(
        said=said,
        averaged=averaged,
        compared=compared,
        masked=train_masked(),
        loaded=train_what_rank_0_loaded(folder, rank),
        trained=train(folder, rank),
    )
    th.save(seen, folder / f"{rank}.pt")


def train_masked() -> dict:
    """The ranks begin with different teachers, and draw different masks."""
    env = make_env()
    kwargs = dict(teacher=JepaExtractor(env.observation_space, **SMALL_EXTRACTOR), predictor_dim=8)
    policy_kwargs = dict(SMALL_POLICY, objective_class=Salt, objective_kwargs=kwargs)
    model = PPO(JepaPolicy, env, policy_kwargs=policy_kwargs, **SMALL_PPO)
    model.learn(64)
    gauge = model.policy.gauges["shared"]
    # Of one update, for those of rank 0 alone are logged, and forgotten
    gauge.reset()
    model.train()
    return dict(policy=model.policy.state_dict(), means=gauge.means())


def train_what_rank_0_loaded(folder: pathlib.Path, rank: int) -> dict:
    """Only one rank finds the file of a model that has learned already."""
    settings = dict(policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, "learning_rate": 1e-3})
    model = PPO(JepaPolicy, make_env(), **settings)
    model.learn(32 + 64)
    n_steps = float(model.policy.optimizer.state_dict()["state"][0]["step"])
    model.save(folder / "loaded")
    model = PPO(JepaPolicy, make_env(), **settings)
    if rank == 0:
        model.set_parameters(folder / "loaded", device="cpu")
    model.learn(128)
    return dict(
        policy=model.policy.state_dict(), optimizer=model.policy.optimizer.state_dict()["state"], n_steps=n_steps
    )


def train(folder: pathlib.Path, rank: int) -> dict:
    env = make_env()
    # The update is stopped somewhere in its middle
    settings = dict(SMALL_PPO, n_epochs=20, learning_rate=1e-3, target_kl=1e-4, seed=7)
    model = PPO(
        JepaPolicy, env, policy_kwargs=SMALL_POLICY, tensorboard_log=str(folder / f"tensorboard_{rank}"), **settings
    )
    seeds = list(env.venv._seeds)
    callbacks = [
        CountCalls(runs_on_all_ranks=False),
        CountCalls(runs_on_all_ranks=True),
        CheckpointCallback(20, str(folder / f"checkpoints_{rank}"), save_vecnormalize=True),
    ]
    model.learn(N_TIMESTEPS, callback=callbacks, progress_bar=True)
    model.save(folder / f"model_{rank}")
    model.policy.save(folder / f"policy_{rank}")
    state = dict(
        seeds=seeds,
        n_calls=[callback.n_calls for callback in callbacks],
        num_timesteps=model.num_timesteps,
        n_updates=model._n_updates,
        observations=model.rollout_buffer.observations.copy(),
        returns=sorted(episode["r"] for episode in model.ep_info_buffer),
        policy=copy.deepcopy(model.policy.state_dict()),
        optimizer=copy.deepcopy(model.policy.optimizer.state_dict()["state"]),
        statistics=[np.copy(value) for rms in (env.obs_rms, env.ret_rms) for value in (rms.mean, rms.var, rms.count)],
    )
    # A training that goes on, with another logger, and is stopped by a callback of rank 0
    model.set_logger(configure(str(folder / f"log_{rank}"), ["csv"]))
    model.learn(10_000, callback=CountCalls(False, stop_after=20), reset_num_timesteps=False)
    return dict(state, stopped_at=model.num_timesteps)


def train_for_ever(folder: pathlib.Path, rank: int) -> None:
    (folder / f"pid_{rank}").write_text(str(os.getpid()))
    model = PPO(JepaPolicy, make_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.learn(10**9, callback=SaveAtEveryStep(folder / "last.zip"))


if __name__ == "__main__":
    th.set_num_threads(1)
    globals()[sys.argv[1]](pathlib.Path(sys.argv[2]), int(os.environ["RANK"]))
