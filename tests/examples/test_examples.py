import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import run_example


@pytest.mark.expensive
def test_the_run_that_uses_few_dimensions_is_drawn_and_probed(tmp_path):
    arguments = ["--runs", "low_rank", "--timesteps", "2100", "--logdir", str(tmp_path)]
    run_example("reading_a_run/three_runs.py", *arguments)
    events = EventAccumulator(str(tmp_path / "low_rank_1")).Reload().Tags()
    assert {f"jepa_pictures/{name}" for name in ("attention", "spectrum", "trajectory", "unrolled")} <= {
        *events["images"]
    }
    assert {f"jepa_probe/{name}" for name in ("x", "x_dot", "theta", "theta_dot")} <= {*events["scalars"]}
    assert (tmp_path / "low_rank_1" / "model.zip").is_file()


@pytest.mark.expensive
def test_the_speed_of_two_trainings_is_compared():
    output = run_example("benchmark_training.py", "--repeats", "1", "--arms", "JepaPolicy without JEPA", "JepaPolicy")
    ratios = re.findall(r"^JepaPolicy / JepaPolicy without JEPA: ([\w ]+) ([\d.]+) \[", output, flags=re.MULTILINE)
    assert [what for what, _ in ratios] == ["steps per second", "update time", "time of one action"]
    assert all(float(ratio) > 0 for _, ratio in ratios)


def test_the_memory_of_buffers_is_compared():
    output = run_example("benchmark_memory.py", "--frames", "3", "--steps", "64")
    shares = dict(re.findall(r"^(\w+), 3 frames: .* ([\d.]+) / 3$", output, flags=re.MULTILINE))
    assert 0.5 < float(shares["RolloutBuffer"]) <= 1.2
    assert 0.2 < float(shares["ReplayBuffer"]) <= 0.6


def test_the_training_on_ranks_needs_no_more_than_one_process(tmp_path):
    arguments = ["--timesteps", "1100", "--n-envs", "2", "--logdir", str(tmp_path)]
    run_example("train_on_ranks.py", *arguments)
    assert (tmp_path / "cartpole_ranks.zip").is_file()


@pytest.mark.expensive
def test_the_steps_per_second_of_a_process_are_told():
    output = run_example("benchmark_ranks.py", "--measure", "2", "64", "--timesteps", "256")
    assert re.fullmatch(r"[\d.]+ steps/s\n", output)


@pytest.mark.expensive
def test_the_cost_of_the_diagnostics_is_told():
    output = run_example("benchmark_diagnostics.py", "--timesteps", "2048", "--rollouts", "1")
    shares = dict(re.findall(r"^(\w+) .*?([\d.]+)% of the training", output, flags=re.MULTILINE))
    assert set(shares) == {"scalars", "pictures", "probe"}
    assert all(0 < float(share) < 100 for share in shares.values())
