"""The launcher for rl-baselines3-zoo, with the real rl_zoo3."""

import pytest

from tests.conftest import EXAMPLES, run_example

ENV = ("--env", "PixelCartPole-v1", "--seed", "0")
JEPA_PPO = ("--algo", "jepa_ppo", "--conf-file", str(EXAMPLES / "zoo" / "jepa_ppo.yml"), "--device", "cpu")


@pytest.fixture(autouse=True)
def _needs_zoo():
    pytest.importorskip("rl_zoo3")


def test_train_and_enjoy(tmp_path):
    evaluate = ("--eval-freq", "1024", "--eval-episodes", "1")
    out = run_example("zoo/zoo.py", "train", *ENV, *JEPA_PPO, "-n", "2048", *evaluate, cwd=tmp_path)
    assert "jepa/" in out
    assert "eval/" in out
    out = run_example(
        "zoo/zoo.py", "enjoy", *ENV, "--algo", "jepa_ppo", "--folder", "logs", "--no-render", "-n", "500", cwd=tmp_path
    )
    assert "Mean reward" in out


def test_tuning(tmp_path):
    study = ("--storage", "sqlite:///study.db", "--study-name", "jepa")
    short = ("-n", "1200", "--hyperparams", "n_steps:64", "--eval-episodes", "1")
    trials = ("--optimize-hyperparameters", "--n-trials", "2", "--no-optim-plots")
    out = run_example("zoo/zoo.py", "train", *ENV, *JEPA_PPO, *short, *study, *trials, cwd=tmp_path)
    assert "encoder_lr_factor" in out
    # A trial's hyperparameters train a model
    run_example("zoo/zoo.py", "train", *ENV, *JEPA_PPO, *short, *study, "--trial-id", "1", cwd=tmp_path)
    (model,) = tmp_path.glob("logs/jepa_ppo/PixelCartPole-v1_*/PixelCartPole-v1.zip")
    assert "encoder_lr_factor" in (model.with_suffix("") / "config.yml").read_text()


def test_its_own_algorithms_learn_in_alternation(tmp_path):
    conf = ("--algo", "dqn", "--conf-file", str(EXAMPLES / "zoo" / "jepa_dqn.yml"), "--device", "cpu")
    out = run_example("zoo/zoo.py", "train", "--env", "CartPole-v1", *conf, "-n", "1500", cwd=tmp_path)
    assert "prediction_loss" in out
    out = run_example(
        "zoo/zoo.py", "enjoy", "--algo", "dqn", "--folder", "logs", "--no-render", "-n", "600", cwd=tmp_path
    )
    assert "Mean reward" in out
