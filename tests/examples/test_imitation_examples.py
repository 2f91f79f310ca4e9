"""The examples of imitation."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

from sb3_jepa.data import save_recordings

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "imitation"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_metaworld_runs_from_demonstrations_to_success(load, monkeypatch, tmp_path):
    pytest.importorskip("metaworld", reason="needs the extra meta-world, in an environment of its own")
    tasks = load("metaworld_tasks")
    for seed, name in ((0, "demonstrations"), (1, "held_out")):
        recordings = tasks.record(2, noise=0.05, seed=seed)
        # Experts succeed, but for the last task nearly always
        assert recordings.rewards.sum() >= 8
        save_recordings(recordings, tmp_path / name)
    images = recordings.take(np.arange(len(recordings)))["image"]
    assert images.shape[1:] == (3, 64, 64)
    assert images.std(axis=0).max() > 10
    compare = load("compare_imitation")
    paths = ["--demonstrations", str(tmp_path / "demonstrations"), "--held-out", str(tmp_path / "held_out")]
    others = ["--folder", str(tmp_path / "runs"), "--updates", "3", "--evaluation-episodes", "2"]
    for mode in ("train", "evaluate", "table"):
        arms = ["--arms", "act-jepa", "chunks", "two-stage"]
        monkeypatch.setattr(sys, "argv", ["compare_imitation.py", mode, *arms, *paths, *others])
        compare.main()
    result = json.loads((tmp_path / "runs" / "two-stage" / "seed0.json").read_text())
    assert set(result["success"]["30"]) == set(tasks.TASKS)
    assert 0 < result["probe"]["rmse"] < 10
