import json
import re

import pytest

from tests.conftest import run_example

ARMS = ("cnn", "alternating", "joint")


@pytest.mark.expensive
def test_off_policy_runs_are_kept_when_finished_and_start_again_when_not(tmp_path):
    runs = ("--tasks", "cartpole", "--folder", str(tmp_path / "runs"), "--jobs", "1", "--timesteps", "1100")
    run_example("off_policy/train.py", *runs, "--arms", *ARMS)
    results = {arm: tmp_path / "runs" / "cartpole" / arm / "seed0" / "result.json" for arm in ARMS}
    for path in results.values():
        result = json.loads(path.read_text())
        assert len(result["deterministic_returns"]) == 24
        # Rewards are normalised for the learner alone
        assert 9 <= result["mean_return_of_all_episodes"] < 40
    # Without a JEPA there is none in the log
    curves = {arm: (path.parent / "progress.csv").read_text() for arm, path in results.items()}
    assert {arm for arm, curve in curves.items() if "jepa/prediction_loss" in curve} == {"alternating", "joint"}

    written = {arm: path.stat().st_mtime_ns for arm, path in results.items()}
    results["cnn"].unlink()
    run_example("off_policy/train.py", *runs, "--arms", *ARMS)
    assert results["cnn"].stat().st_mtime_ns > written["cnn"]
    assert results["alternating"].stat().st_mtime_ns == written["alternating"]

    out = tmp_path / "table.md"
    table = run_example("summary.py", "--folder", str(tmp_path / "runs"), "--out", str(out))
    assert out.read_text() == table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    speeds = {row[0]: row[-1] for row in rows[1:]}
    assert speeds["cnn"] == "1.00"
    assert float(speeds["alternating"]) > 0
    assert float(speeds["joint"]) > 0


@pytest.mark.expensive
def test_the_speed_of_off_policy_trainings_is_compared():
    options = ("--algorithms", "DQN", "--inputs", "vector", "--arms", "stock", "alternating")
    output = run_example("benchmark_off_policy.py", *options, "--steps", "40", "--repeats", "2")
    (ratio,) = re.findall(r"^DQN +vector +alternating +\d+/s  / stock: ([\d.]+) \[", output, flags=re.MULTILINE)
    # The transformer and its JEPA take longer than two layers
    assert 0 < float(ratio) < 1
