"""Two real processes, started by torchrun."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.distributed.running_statistics import RunningStatistics
from tests.conftest import FakeEnv
from tests.distributed.distributed_worker import (
    ALGORITHMS,
    BATCH_SIZE,
    N_ENVS,
    N_RANKS,
    N_TIMESTEPS,
    make_model_to_compare,
    train_on_one_rollout,
)

REPOSITORY = pathlib.Path(__file__).parents[2]
# A rank that waits for another one waits for half an hour
TIMEOUT = 120


@contextlib.contextmanager
def two_ranks(function: str, folder: pathlib.Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(N_RANKS)]
    process = subprocess.Popen(
        [*command, str(REPOSITORY / "tests" / "distributed" / "distributed_worker.py"), function, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        # Of what hangs: it takes its workers along
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What both ranks have seen, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    with two_ranks("compare", folder) as process:
        output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    assert f"{N_TIMESTEPS}/{N_TIMESTEPS}" in output
    return [th.load(folder / f"{rank}.pt", weights_only=False) for rank in range(N_RANKS)], folder


def test_what_cannot_be_trained_is_told_before_the_training(of_ranks):
    for of_rank in of_ranks[0]:
        said = of_rank["said"]
        assert "PPO with the policy ActorCriticPolicy cannot be trained on several ranks" in said["other policy"]
        assert "RecurrentPPO with the policy RecurrentJepaPolicy cannot be trained" in said["RecurrentPPO"]
        assert "PPO with the policy ActorCriticPolicy cannot be trained on several ranks" in said["alternating"]
        assert "`n_steps` is [16, 32]" in said["n_steps"]
        assert said["policy_kwargs"].endswith(": `policy_kwargs.objective_kwargs.prediction_coef` is [0.0, 0.1]")


def test_gradients_are_averaged_over_the_ranks_and_left_out_where_no_rank_has_one(of_ranks):
    for of_rank in of_ranks[0]:
        first, second, third = of_rank["averaged"]
        assert first.tolist() == second.tolist() == [0.5, 0.5]
        assert third is None


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_ranks_learn_what_one_process_learns_from_the_joined_minibatches(of_ranks, name, monkeypatch):
    shuffles = [np.random.RandomState(rank) for rank in range(N_RANKS)]

    def shuffle_as_both_ranks(n_rows):
        n_own = n_rows // N_RANKS
        # A rollout buffer holds the rows environment by environment, those of rank 0 first
        rows = [rank * n_own + shuffle.permutation(n_own) for rank, shuffle in enumerate(shuffles)]
        size = n_own if name == "A2C" else BATCH_SIZE
        return np.concatenate([own[start : start + size] for start in range(0, n_own, size) for own in rows])

    monkeypatch.setattr(np.random, "permutation", shuffle_as_both_ranks)
    model = make_model_to_compare(name, n_ranks=1)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    gradients, learned = train_on_one_rollout(model, slice(0, N_ENVS))
    assert len(gradients) == (1 if name == "A2C" else 6)
    for of_rank in of_ranks[0]:
        gradients_of_rank, learned_by_rank = of_rank["compared"][name]
        for ours, theirs in zip(gradients, gradients_of_rank, strict=True):
            assert ours.norm() > 0.1
            th.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
        assert learned_by_rank.keys() == learned.keys()
        for key, value in learned.items():
            th.testing.assert_close(learned_by_rank[key], value, atol=1e-5, rtol=1e-4)
    assert not th.equal(before["action_net.weight"], learned["action_net.weight"])


def assert_equal(one: dict, other: dict) -> None:
    """The policies of two ranks, and their optimisers."""
    for name, value in one["policy"].items():
        # Only rank 0 judges its encoder
        if not name.endswith("warned_of_collapse"):
            assert th.equal(value, other["policy"][name]), name
    assert one["optimizer"].keys() == other["optimizer"].keys()
    for index, values in one["optimizer"].items():
        assert all(th.equal(value, other["optimizer"][index][name]) for name, value in values.items())


def test_ranks_stay_equal_and_see_different_things(of_ranks):
    one, other = (of_rank["trained"] for of_rank in of_ranks[0])
    assert_equal(one, other)
    assert all(np.array_equal(a, b) for a, b in zip(one["statistics"], other["statistics"], strict=True))
    assert one["policy"]["features_extractor.encoder.tokenizer.0.n_seen"] == 64
    assert not np.isin(one["observations"], other["observations"]).any()
    assert (one["seeds"], other["seeds"]) == ([7, 8], [9, 10])


def test_ranks_stay_equal_though_only_one_has_loaded_a_model(of_ranks):
    one, other = (of_rank["loaded"] for of_rank in of_ranks[0])
    assert_equal(one, other)
    # The optimiser goes on where it was
    assert one["optimizer"][0]["step"] > one["n_steps"] > 0


def test_masked_prediction_has_one_teacher_and_one_loss(of_ranks):
    one, other = (of_rank["masked"] for of_rank in of_ranks[0])
    for name, value in one["policy"].items():
        assert th.equal(value, other["policy"][name]), name
    assert any("target_encoder" in name for name in one["policy"])
    assert one["means"]["prediction_loss"] == pytest.approx(other["means"]["prediction_loss"], rel=1e-5)


def test_ranks_agree_when_to_stop(of_ranks):
    one, other = (of_rank["trained"] for of_rank in of_ranks[0])
    # Four rollouts were learned from, in 20 epochs each if nothing stops them
    assert one["n_updates"] == other["n_updates"] < 4 * 20
    # It was in the second rollout that rank 0 wanted to stop
    assert one["stopped_at"] == other["stopped_at"] == N_TIMESTEPS + 2 * 64


def test_time_steps_episodes_and_statistics_are_of_all_ranks(of_ranks):
    one, other = (of_rank["trained"] for of_rank in of_ranks[0])
    assert one["num_timesteps"] == other["num_timesteps"] == N_TIMESTEPS
    # Episodes of 5 steps in 4 environments
    assert one["returns"] == other["returns"]
    assert len(one["returns"]) == 4 * (64 // 5)
    # All steps and the first observations; Stable-Baselines3 begins with 1e-4
    assert one["statistics"][2] == pytest.approx(1e-4 + N_TIMESTEPS + 4)


def test_only_rank_0_calls_callbacks_logs_and_saves(of_ranks):
    ranks, folder = of_ranks
    assert [of_rank["trained"]["n_calls"] for of_rank in ranks] == [[64, 64, 64], [0, 64, 0]]
    written = {path.name for path in folder.iterdir()}
    assert {"tensorboard_0", "checkpoints_0", "model_0.zip", "policy_0"} <= written
    assert not written & {"tensorboard_1", "checkpoints_1", "model_1.zip", "policy_1"}
    # The number of steps is that of all ranks
    assert (folder / "checkpoints_0" / "rl_model_vecnormalize_240_steps.pkl").is_file()
    # That the file is there is the user's doing
    assert [(folder / f"log_{rank}" / "progress.csv").stat().st_size > 0 for rank in (0, 1)] == [True, False]


def test_statistics_that_are_put_together_are_those_of_all_that_was_seen():
    generator = np.random.default_rng(0)
    envs = [VecNormalize(make_vec_env(lambda: FakeEnv(spaces.Box(-1, 1, (3,))), n_envs=2)) for _ in range(2)]
    statistics = [RunningStatistics(env) for env in envs]
    expected = RunningMeanStd(shape=(3,))
    for one in statistics:
        one.broadcast()
    for shift in (0.0, 1e3, 0.0):
        for number, env in enumerate(envs):
            seen = shift + generator.normal(number, 1 + number, (50 + number, 3))
            env.obs_rms.update(seen)
            expected.update(seen)
        of_all = [one.seen for one in statistics]
        for one in statistics:
            one.agree(of_all)
    for env in envs:
        assert env.obs_rms.count == pytest.approx(expected.count)
        np.testing.assert_allclose(env.obs_rms.mean, expected.mean, rtol=1e-9)
        np.testing.assert_allclose(env.obs_rms.var, expected.var, rtol=1e-9)
        # Of rewards, nothing was seen
        assert (env.ret_rms.mean, env.ret_rms.var, env.ret_rms.count) == (0.0, 1.0, 1e-4)


def test_a_killed_rank_ends_the_job_and_leaves_the_last_checkpoint_whole(tmp_path):
    checkpoint = tmp_path / "last.zip"
    with two_ranks("train_for_ever", tmp_path) as process:
        deadline = time.monotonic() + TIMEOUT
        saved: set[int] = set()
        while len(saved) < 5:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            if checkpoint.exists():
                saved.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.01)
        os.kill(int((tmp_path / "pid_1").read_text()), signal.SIGKILL)
        output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert "SIGKILL" in output
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid_0").read_text()), 0)
    env = make_vec_env(lambda: FakeEnv(spaces.Box(-1, 1, (3,))), n_envs=2)
    model = PPO.load(checkpoint, env=env, device="cpu")
    assert isinstance(model.policy, JepaPolicy)
    assert model.num_timesteps > 0
    model.learn(64)
