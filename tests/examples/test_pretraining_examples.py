"""The scripts of examples/pretraining: that they run, keep what is finished, and what they are made of."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa.extractors.files import describe_encoder
from tests.conftest import FakeEnv

pytest.importorskip("matplotlib")


# Its oldest version has no such wrapper
needs_frame_stack = pytest.mark.skipif(
    not hasattr(gym.wrappers, "FrameStackObservation"), reason="the script needs Gymnasium 1.0"
)


def test_tables(load_script, run_script, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    tables = load_script("tables")
    arguments = ("tables", "--tables", "wine", "--seeds", 0, "--updates")
    arms = ("--arms", "raw", "untrained", "tjepa-0", "salt")
    rows = run_script(*arguments, 3, *arms)
    assert [row["arm"] for row in rows] == list(arms[1:])
    # A linear probe of wines gets most of them right
    assert all(0.8 < float(row["accuracy_flat"]) <= 1 for row in rows)
    assert all(1 < float(row["effective_rank"]) <= 32 for row in rows[1:])
    text = (tmp_path / "results" / "tables.md").read_text()
    assert all(tables.LABELS[arm] in text for arm in arms[1:])

    # Each encoder is that of its arm, and the student's teacher is the one beside it
    def read_description(arm: str) -> dict:
        return describe_encoder(tmp_path / "runs" / "wine" / "seed0" / arm)

    assert read_description("tjepa-0")["features_extractor_kwargs"]["class_tokens"] == 0
    assert read_description("salt")["teacher"] == read_description("salt-teacher")["id"]

    # What is finished is not run again, and what is new is added
    monkeypatch.setattr(tables, "pretrained_encoder", lambda *_: pytest.fail("It is finished"))
    assert run_script(*arguments, 3, *arms) == rows
    more = run_script(*arguments, 4, "--arms", "raw")
    assert more[: len(rows)] == rows
    assert len(more) == len(rows) + 1


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
def test_missing_sensors(load_script, run_script, monkeypatch):
    missing_sensors = load_script("missing_sensors")
    monkeypatch.setattr(missing_sensors, "N_MEASURED", 64)
    monkeypatch.setitem(missing_sensors.EXTRACTOR, "standardize_frames", 64)
    monkeypatch.setitem(missing_sensors.PPO_KWARGS, "n_steps", 16)
    arms = ("flags", "objective", "finetuned", "frozen-flat", "untrained-flat")
    arguments = ("--timesteps", 400, "--updates", 2, "--episodes", 1, "--seeds", 0, "--arms", *arms)
    rows = run_script("missing_sensors", *arguments)
    assert [row["arm"] for row in rows] == list(arms)
    assert all(8 <= float(row[f"return_{p:g}"]) <= 500 for row in rows for p in missing_sensors.PROBABILITIES)
    monkeypatch.setattr(missing_sensors, "run", lambda *_: pytest.fail("It is finished"))
    assert run_script("missing_sensors", *arguments) == rows


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
def test_what_is_missing_is_the_mean_for_a_network_without_missing_numbers(load_script):
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
def test_cartpole(run_script, tmp_path):
    arms = ("scratch", "salt, frozen")
    arguments = ("--timesteps", 2_000, "--recorded", 500, "--updates", 2, "--seeds", 0, "--arms", *arms)
    rows = run_script("cartpole", *arguments)
    assert [row["arm"] for row in rows] == list(arms)
    assert all(8 < float(row["return_at_end"]) <= 500 for row in rows)
    # Recorded steps count
    first_steps = [int(row["curve"].split(":")[0]) for row in rows]
    assert first_steps[1] == 500 + 1_024
    assert all(name in (tmp_path / "results" / "cartpole.md").read_text() for name in arms)
