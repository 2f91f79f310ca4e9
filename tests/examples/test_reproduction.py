import json

import pytest

from tests.conftest import run_example


@pytest.mark.expensive
def test_finished_runs_are_kept_others_start_again_and_all_are_reported(tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    runs = ("--folder", str(tmp_path / "runs"), "--jobs", "1", "--timesteps", "2048")
    run_example("reproduction/run.py", *runs, "--arms", "1", "cnn-ours")
    results = [tmp_path / "runs" / "cartpole" / arm / "seed0" / "result.json" for arm in ("1", "cnn-ours")]
    finished, interrupted = ((path, path.stat().st_mtime_ns) for path in results)
    assert json.loads(finished[0].read_text())["settings"]["policy"] == "JepaPolicy"
    interrupted[0].rename(interrupted[0].with_name("result.json.unfinished"))

    run_example("reproduction/run.py", *runs, "--arms", "1", "cnn-ours")
    assert finished[0].stat().st_mtime_ns == finished[1]
    assert interrupted[0].stat().st_mtime_ns > interrupted[1]
    # Other settings are another run
    run_example("reproduction/run.py", *runs, "--arms", "1", "--timesteps", "2049")
    assert finished[0].stat().st_mtime_ns > finished[1]

    run_example("reproduction/run.py", *runs, "--tasks", "pendulum", "--arms", "default")
    table = run_example("reproduction/report.py", "--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "report"))
    assert "| 1 |" in table
    assert "| cnn-ours |" in table
    assert "**pendulum**" in table
    for figure in ("figure.png", "other_tasks.png"):
        assert (tmp_path / "report" / figure).stat().st_size > 10_000
    probe = run_example(
        "reproduction/probe.py",
        "--folder",
        str(tmp_path / "runs"),
        "--episodes",
        "8",
        "--out",
        str(tmp_path / "probe.csv"),
    )
    assert "true positions" in probe
    assert len((tmp_path / "probe.csv").read_text().splitlines()) > 2


@pytest.mark.expensive
def test_arms_take_turns_until_they_return_enough(tmp_path):
    out = tmp_path / "times.json"
    arguments = ("--arms", "default", "cnn-sb3", "--wanted", "15", "--timesteps", "100000", "--out", str(out))
    table = run_example("reproduction/time_to_return.py", *arguments)
    (competition,) = json.loads(out.read_text())
    # An untrained policy returns that much
    assert all(result["timesteps"] == 1024 for result in competition["results"].values())
    assert all(result["seconds"] > 0 and 15 <= result["mean_return"] < 50 for result in competition["results"].values())
    assert "not reached" not in table
    assert "cnn-sb3 / default: time" in table
    # What is finished is not run again
    modified = out.stat().st_mtime_ns
    assert run_example("reproduction/time_to_return.py", *arguments) == table
    assert out.stat().st_mtime_ns == modified
