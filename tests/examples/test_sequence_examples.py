"""The examples of sequences: what is measured, and that the scripts run."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
import torch as th

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "sequences"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_digits_run(load, monkeypatch, tmp_path):
    pytest.importorskip("sklearn", reason="needs the extra pretraining")
    digits = load("digits")
    monkeypatch.setattr(digits, "N_SEQUENCES", 60)
    arguments = ["--arms", "full", "without-actions", "--n-updates", "2", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["digits.py", *arguments])
    digits.main()
    result = json.loads((tmp_path / "rotation" / "full" / "seed0.json").read_text())
    assert set(result["probes"]) == {"relative_action", "relative_action_mlp", "path_integration"}
    assert 0 <= result["accuracies"]["aggregate"] <= 100


@pytest.mark.parametrize("task", ["cartpole", "noisy-cartpole", "pendulum", "minigrid"])
def test_tasks_of_memory_hide_something(load, task):
    pytest.importorskip("popgym" if task != "minigrid" else "minigrid", reason="needs the extra memory")
    memory = load("memory")
    envs = memory.make_envs(task, "sequence", 3, 0, n_envs=2)
    histories = envs.reset()
    assert histories["views"].shape[:2] == (2, 3)
    width = 147 if task == "minigrid" else 2
    assert histories["views"].shape[2] == width
    for _ in range(5):
        histories, *_ = envs.step(np.array([envs.action_space.sample() for _ in range(2)]))
    assert np.isfinite(histories["views"]).all()
    assert np.abs(histories["views"][:, -1]).max() > 0


@pytest.mark.parametrize("arm", ["sequence", "sequence-without-objective", "recurrent", "stacked", "without-memory"])
def test_every_arm_of_memory_learns_and_is_evaluated(load, arm):
    pytest.importorskip("popgym", reason="needs the extra memory")
    if arm == "recurrent":
        pytest.importorskip("sb3_contrib", reason="needs the extra contrib")
    th.manual_seed(0)
    result = load("memory").run("cartpole", arm, 0, 1_024, 3, {})
    assert 0 < result["returns"]["deterministic"] <= 1
