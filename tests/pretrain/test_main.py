import json
import re
import subprocess
import sys

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, load_encoder, read_encoder
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.pretrain.__main__ import main
from tests.conftest import SMALL_PPO
from tests.pretrain.test_training import EXTRACTOR, rows_of

SHORT = ("--updates", "4", "--batch-size", "16", "--device", "cpu")
SMALL_ENCODER = ("--features-extractor-kwargs", json.dumps(EXTRACTOR))
SMALL_PREDICTOR = ("--objective-kwargs", json.dumps(dict(predictor_dim=8, predictor_depth=1)))


def run(*arguments) -> None:
    main([*map(str, arguments), *SHORT, *SMALL_ENCODER, *SMALL_PREDICTOR])


def test_an_encoder_of_an_environment(tmp_path, capsys):
    out = tmp_path / "encoder"
    arguments = ("CartPole-v1", "--out", out, "--method", "t-jepa", "--n-steps", "90", "--n-envs", "3", "--seed", "2")
    run(*arguments)
    printed = capsys.readouterr().out
    # What is printed can be used as it is
    path, call, kwargs = re.search(r"Wrote (\S+)\n.*(load_encoder\(model, .*?\)) .*_kwargs=(\{.*\})", printed).groups()
    policy_kwargs = dict(features_extractor_kwargs=eval(kwargs))
    model = PPO("JepaPolicy", make_vec_env("CartPole-v1"), policy_kwargs=policy_kwargs, **SMALL_PPO)
    eval(call, dict(load_encoder=load_encoder, model=model))
    assert read_encoder(path).features_dim == 8
    assert np.load(out / "recordings" / "observations.npy").shape == (90, 4)
    recording = json.loads((out / "recordings" / "recording.json").read_text())
    assert (recording["n_envs"], recording["seed"], recording["policy"]) == (3, 2, "random")
    run(*arguments)
    assert capsys.readouterr().out == printed
    run(*arguments[:2], tmp_path / "second", *arguments[3:], "--initial-encoder", out)
    assert describe_encoder(tmp_path / "second")["settings"]["initial_encoder"] == describe_encoder(out)["id"]


def test_through_rendered_frames_and_a_policy_acts(tmp_path):
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1"), device="cpu")
    model.save(tmp_path / "model")
    run("CartPole-v1", "--out", tmp_path / "a", "--method", "i-jepa", "--pixels", "--n-steps", "80", "--n-envs", "1")
    assert read_encoder(tmp_path / "a").encoder.token_shape == (1, 4, 6)
    run("CartPole-v1", "--out", tmp_path / "b", "--method", "i-jepa", "--n-steps", "40", "--policy", tmp_path / "model")
    assert json.loads((tmp_path / "b" / "recordings" / "recording.json").read_text())["policy"].startswith("PPO ")


def test_salt_in_two_stages_and_with_a_teacher_that_exists(tmp_path):
    np.save(tmp_path / "numbers.npy", np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32))
    run(tmp_path / "numbers.npy", "--out", tmp_path / "a", "--method", "salt")
    teacher = tmp_path / "a" / "teacher"
    described = describe_encoder(tmp_path / "a")
    assert described["teacher"] == describe_encoder(teacher)["id"]
    run(tmp_path / "numbers.npy", "--out", tmp_path / "b", "--method", "salt", "--teacher", teacher)
    assert describe_encoder(tmp_path / "b")["teacher"] == described["teacher"]
    assert not (tmp_path / "b" / "teacher").exists()
    assert rows_of(tmp_path / "b")[-1]["time/updates"] == "4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CartPole-v1", "--method", "t-jepa"], "the following arguments are required: --out"),
        (["CartPole-v1", "--out", "o"], "the following arguments are required: --method"),
        (["CartPole-v1", "--out", "o", "--method", "mae"], "invalid choice: 'mae'"),
        (["NoSuchEnv-v0", "--out", "o", "--method", "t-jepa"], "`source` must be Recordings.*got 'NoSuchEnv-v0'"),
        (["NoSuchEnv-v0", "--out", "o", "--method", "t-jepa", "--pixels"], "--pixels: only for an environment"),
        (["x.npy", "--out", "o", "--method", "t-jepa", "--n-steps", "5", "--n-envs", "2"], "--n-steps, --n-envs: only"),
        (["CartPole-v1", "--out", "o", "--method", "t-jepa", "--n-envs", "0"], "--n-envs must be positive, got 0"),
        (
            ["CartPole-v1", "--out", "o", "--method", "t-jepa", "--n-steps", "0"],
            "`n_steps` must be a positive",
        ),
        (
            ["CartPole-v1", "--out", "o", "--method", "t-jepa", "--updates", "0"],
            "`n_updates` must be a positive",
        ),
        (["CartPole-v1", "--out", "o", "--method", "t-jepa", "--device", "abacus"], "--device must be .* got 'abacus'"),
        (["CartPole-v1", "--out", "o", "--method", "t-jepa", "--teacher", "t"], "--teacher is for --method salt"),
        (["CartPole-v1", "--out", "o", "--method", "salt", "--teacher", "t"], "`path` must be an encoder"),
        (["CartPole-v1", "--out", "o", "--method", "t-jepa", "--policy", "none"], "`path` must be a saved model"),
        (["CartPole-v1", "--out", "o", "--method", "t-jepa", "--objective-kwargs", "{"], "must be JSON, got '{'"),
        (["CartPole-v1", "--out", "o", "--method", "t-jepa", "--objective-kwargs", "[1]"], "must be a JSON object"),
        (
            [
                "CartPole-v1",
                "--out",
                "o",
                "--method",
                "t-jepa",
                "--n-steps",
                "9",
                "--objective-kwargs",
                '{"n_maks": 1}',
            ],
            "unexpected keyword argument 'n_maks'",
        ),
        (
            ["CartPole-v1", "--out", "o", "--method", "dmt-jepa", "--n-steps", "9"],
            "`target_transform_class` needs the patches of an image",
        ),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"error: .*{message}", last)


def test_as_a_module():
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "sb3_jepa.pretrain", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--features-extractor-kwargs JSON" in result.stdout
