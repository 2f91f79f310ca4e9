"""The scripts of examples/pretraining: that they run, keep what is finished, and what they are made of."""

import csv
import importlib
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa.extractors.files import describe_encoder
from tests.conftest import EXAMPLES, FakeEnv

pytest.importorskip("matplotlib")


# Its oldest version has no such wrapper
needs_frame_stack = pytest.mark.skipif(
    not hasattr(gym.wrappers, "FrameStackObservation"), reason="the script needs Gymnasium 1.0"
)


@pytest.fixture
def load_script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "pretraining")
    return importlib.import_module


def run_script(module, *arguments, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def read_rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables(load_script, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    tables = load_script("tables")
    arguments = ("--tables", "wine", "--updates", 3, "--folder", tmp_path / "encoders", "--out", tmp_path, "--seeds", 0)
    arms = ("--arms", "raw", "untrained", "tjepa-0", "salt")
    run_script(tables, *arguments, *arms, monkeypatch=monkeypatch)
    rows = read_rows(tmp_path / "tables.csv")
    assert [row["arm"] for row in rows] == list(arms[1:])
    # A linear probe of wines gets most of them right
    assert all(0.8 < float(row["accuracy_flat"]) <= 1 for row in rows)
    assert all(1 < float(row["effective_rank"]) <= 32 for row in rows[1:])
    text = (tmp_path / "tables.md").read_text()
    assert all(tables.LABELS[arm] in text for arm in arms[1:])
    assert (tmp_path / "tables.png").stat().st_size > 5_000

    # Each encoder is that of its arm, and the student's teacher is the one beside it
    def read_description(arm: str) -> dict:
        return describe_encoder(tmp_path / "encoders" / "wine" / "seed0" / arm)

    assert read_description("tjepa-0")["features_extractor_kwargs"]["class_tokens"] == 0
    assert read_description("salt")["teacher"] == read_description("salt-teacher")["id"]

    # What is finished is not run again, and what is new is added
    monkeypatch.setattr(tables, "pretrained_encoder", lambda *_: pytest.fail("It is finished"))
    run_script(tables, *arguments, *arms, monkeypatch=monkeypatch)
    run_script(tables, *arguments, "--arms", "raw", "--updates", 4, monkeypatch=monkeypatch)
    assert read_rows(tmp_path / "tables.csv")[: len(rows)] == rows
    assert len(read_rows(tmp_path / "tables.csv")) == len(rows) + 1


def test_no_test_row_is_seen_in_the_training(load_script):
    pytest.importorskip("sklearn")
    split = load_script("tables").Split("digits", seed=0)
    assert len(split.training) + len(split.test) == 1797
    assert split.recordings.observations is split.training
    is_varying = split.training.std(axis=0) > 0
    # Three corners of all digits are white
    assert is_varying.all()
    assert split.test.shape[1] == is_varying.sum() <= 61


@needs_frame_stack
@pytest.mark.expensive
def test_missing_sensors(load_script, monkeypatch, tmp_path):
    missing_sensors = load_script("missing_sensors")
    monkeypatch.setattr(missing_sensors, "N_MEASURED", 64)
    monkeypatch.setitem(missing_sensors.EXTRACTOR, "standardize_frames", 64)
    monkeypatch.setitem(missing_sensors.PPO_KWARGS, "n_steps", 16)
    arguments = ("--timesteps", 400, "--updates", 2, "--episodes", 1, "--seeds", 0, "--folder", tmp_path / "encoders")
    arms = ("--arms", "flags", "objective", "finetuned", "frozen-flat", "untrained-flat")
    run_script(missing_sensors, *arguments, *arms, "--out", tmp_path, monkeypatch=monkeypatch)
    rows = read_rows(tmp_path / "missing_sensors.csv")
    assert [row["arm"] for row in rows] == list(arms[1:])
    assert all(8 <= float(row[f"return_{p:g}"]) <= 500 for row in rows for p in missing_sensors.PROBABILITIES)
    assert (tmp_path / "missing_sensors.png").stat().st_size > 5_000
    monkeypatch.setattr(missing_sensors, "run", lambda *_: pytest.fail("It is finished"))
    run_script(missing_sensors, *arguments, *arms, "--out", tmp_path, monkeypatch=monkeypatch)


@needs_frame_stack
def test_sensors_fail_for_an_episode(load_script):
    missing_sensors = load_script("missing_sensors")
    env = missing_sensors.MissingSensors(FakeEnv(spaces.Box(-1, 1, (4,))), probability=0.5)
    patterns = []
    for episode in range(200):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        pattern = np.isnan(observation)
        for _ in range(3):
            observation, *_ = env.step(0)
            assert np.array_equal(np.isnan(observation), pattern)
        patterns.append(pattern)
    assert np.mean(patterns) == pytest.approx(0.5, abs=0.07)
    # All of them are never missing
    assert not np.all(patterns, axis=1).any()
    assert len(np.unique(patterns, axis=0)) == 15

    env = missing_sensors.MissingSensors(gym.make("CartPole-v1"), probability=1.0)
    assert np.isnan(env.reset(seed=0)[0]).sum() == 3
    assert env.observation_space.shape == (4,)
    for probability in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"probability.*got {probability}"):
            missing_sensors.MissingSensors(gym.make("CartPole-v1"), probability)
    with pytest.raises(ValueError, match="vectors"):
        missing_sensors.MissingSensors(FakeEnv(spaces.Discrete(3)))


@needs_frame_stack
def test_what_is_missing_is_the_mean_for_a_network_that_knows_none(load_script):
    missing_sensors = load_script("missing_sensors")
    mean, deviation = np.array([1.0, 2.0]), np.array([2.0, 0.5])
    env = FakeEnv(spaces.Box(-5, 5, (2,)))
    observation = np.array([5.0, np.nan], dtype=np.float32)
    without = missing_sensors.Zeros(env, mean, deviation, with_flags=False)
    assert np.array_equal(without.observation(observation), [2.0, 0.0])
    with_flags = missing_sensors.Zeros(env, mean, deviation, with_flags=True)
    assert np.array_equal(with_flags.observation(observation), [2.0, 0.0, 0.0, 1.0])
    assert with_flags.observation_space.shape == (4,)


@pytest.mark.expensive
def test_cartpole(load_script, monkeypatch, tmp_path):
    cartpole = load_script("cartpole")
    arguments = ("--timesteps", 2_000, "--recorded", 500, "--updates", 2, "--seeds", 0, "--out", tmp_path)
    arms = ("--folder", tmp_path / "runs", "--arms", "scratch", "salt, frozen")
    run_script(cartpole, *arguments, *arms, monkeypatch=monkeypatch)
    rows = read_rows(tmp_path / "cartpole.csv")
    assert [row["arm"] for row in rows] == ["scratch", "salt, frozen"]
    assert all(8 < float(row["return_at_end"]) <= 500 for row in rows)
    # What was recorded counts
    first_steps = [int(row["curve"].split(":")[0]) for row in rows]
    assert first_steps[1] == 500 + 1_024
    assert all(name in (tmp_path / "cartpole.md").read_text() for name in ("scratch", "salt, frozen"))
    assert (tmp_path / "cartpole.png").stat().st_size > 5_000
