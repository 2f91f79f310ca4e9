"""Files that are empty, cut off or something else, for all that reads files."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import (
    ACTJEPA,
    PPO,
    JepaExtractor,
    TJepa,
    VecSurprise,
    load_encoder,
    noise_diagnostic,
    pretrain,
    read_encoder,
    save_encoder,
)
from sb3_jepa.algorithms.saved_models import load_model
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.pretrain import Recordings, read_file, record_env
from sb3_jepa.pretrain.__main__ import main as pretrain_main
from sb3_jepa.report.__main__ import main as report_main
from sb3_jepa.report.curves import read_curves
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 8
BREAKS = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "a text": lambda content: b"curves, and notes of what was tried\n" * 20,
    "a picture": lambda content: PNG,
}
SPACE = spaces.Box(-np.inf, np.inf, (4,))
PRETRAINING = dict(objective_class=TJepa, features_extractor_kwargs=SMALL_EXTRACTOR, n_updates=2, eval_freq=1)


def make_env():
    return make_vec_env("CartPole-v1", n_envs=2, seed=0)


def make_model() -> PPO:
    return PPO("JepaPolicy", make_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)


def make_recordings() -> Recordings:
    observations = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    return Recordings(SPACE, observations, np.arange(80) // 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A folder with one of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    model = make_model()
    model.save(folder / "model.zip")
    stable_baselines3.PPO("MlpPolicy", make_env(), device="cpu").save(folder / "stock.zip")
    ACTJEPA("MlpPolicy", make_env(), horizon=2, device="cpu").save(folder / "imitation.zip")
    save_encoder(model, folder / "encoder.pth")
    save_encoder(model, folder / "encoder.safetensors")
    VecSurprise(make_env()).save(folder / "surprise.pkl")
    VecNormalize(make_env()).save(str(folder / "normalize.pkl"))
    rows = make_recordings().observations
    np.save(folder / "rows.npy", rows)
    np.savez(folder / "rows.npz", observations=rows, next_observations=rows[::-1])
    np.savez_compressed(folder / "pressed.npz", observations=rows)
    record_env(make_env(), 60, folder / "recordings", progress_bar=False)
    pretrain(make_recordings(), folder / "pretrained", device="cpu", **PRETRAINING)
    # As an earlier sb3_jepa wrote it
    (folder / "before").mkdir()
    described = describe_encoder(folder / "pretrained")
    th.save(read_encoder(folder / "pretrained").state_dict(), folder / "before" / "encoder.pth")
    (folder / "before" / "encoder.json").write_text(json.dumps(dict(described, file="encoder.pth")))
    return folder


def load_into_model(path: pathlib.Path) -> None:
    load_encoder(make_model(), path)


def go_on_recording(path: pathlib.Path) -> None:
    # What is complete is read as well
    record_env(make_env(), 60, path.parent, progress_bar=False)


def run_report(*arguments: str) -> None:
    report_main([*arguments, "--env", "CartPole-v1", "--steps", "16", "--out", "never.html"])


READERS = {
    "load": ("model.zip", PPO.load),
    "ACTJEPA.load": ("imitation.zip", ACTJEPA.load),
    "load_model": ("model.zip", load_model),
    "load_model of a stock algorithm": ("stock.zip", load_model),
    "load_model of a named algorithm": (
        "stock.zip",
        lambda path: load_model(path, algorithm="stable_baselines3:PPO"),
    ),
    "load_encoder of .pth": ("encoder.pth", load_into_model),
    "load_encoder of .safetensors": ("encoder.safetensors", load_into_model),
    "read_encoder": ("pretrained/encoder.safetensors", read_encoder),
    "read_encoder of .pth": ("encoder.pth", read_encoder),
    "read_encoder of a description beside": ("before/encoder.json", lambda path: read_encoder(path.parent)),
    "pretrain": (
        "pretrained/checkpoint.pth",
        lambda path: pretrain(make_recordings(), path.parent, device="cpu", **PRETRAINING),
    ),
    "VecSurprise.load": ("surprise.pkl", lambda path: VecSurprise.load(path, make_env())),
    "read_file of .npy": ("rows.npy", read_file),
    "read_file of .npz": ("rows.npz", read_file),
    "read_file of compressed .npz": ("pressed.npz", read_file),
    "read_file of a folder": ("recordings/recording.json", lambda path: read_file(path.parent)),
    "read_file of a folder's observations": ("recordings/observations.npy", lambda path: read_file(path.parent)),
    "read_file of a folder's episodes": ("recordings/episodes.npy", lambda path: read_file(path.parent)),
    "record_env": ("recordings/recording.json", go_on_recording),
    "record_env's observations": ("recordings/observations.npy", go_on_recording),
    "noise_diagnostic": ("rows.npz", noise_diagnostic),
}
COMMAND_LINES = {
    "report": ("model.zip", lambda path: run_report(str(path))),
    "report of a named algorithm": (
        "stock.zip",
        lambda path: run_report(str(path), "--algorithm", "stable_baselines3:PPO"),
    ),
    "report --vecnormalize": (
        "normalize.pkl",
        lambda path: run_report(str(path.parent / "model.zip"), "--vecnormalize", str(path)),
    ),
    "pretrain": ("rows.npy", lambda path: pretrain_main([str(path), "--out", "out", "--method", "t-jepa"])),
    "pretrain --policy": (
        "stock.zip",
        lambda path: pretrain_main(["CartPole-v1", "--out", "out", "--method", "t-jepa", "--policy", str(path)]),
    ),
    "pretrain --teacher": (
        "pretrained/encoder.safetensors",
        lambda path: pretrain_main(
            [str(path.parents[1] / "rows.npy"), "--out", "out", "--method", "salt", "--teacher", str(path.parent)]
        ),
    ),
}


def break_one(whole: pathlib.Path, name: str, how: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of the folder in which one file is broken, and nothing else."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / name
    path.write_bytes(BREAKS[how](path.read_bytes()))
    return path


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("reader", READERS)
def test_broken_files_ended_in_errors_that_named_nothing(reader, how, whole, tmp_path):
    name, read = READERS[reader]
    read(whole / name)
    path = break_one(whole, name, how, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    said = r"\A\S+ must be .*, and (is empty\Z|was cut off or is something else)"
    with pytest.raises(ValueError, match=said) as told:
        read(path)
    assert str(told.value).startswith(str(path))
    assert len(str(told.value).splitlines()) == 1
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("command_line", COMMAND_LINES)
def test_command_lines_tell_of_broken_files_in_one_line(command_line, how, whole, capsys, monkeypatch, tmp_path):
    name, run = COMMAND_LINES[command_line]
    path = break_one(whole, name, how, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(path)
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert f"error: {path} must be" in last


@pytest.mark.parametrize("reader", READERS.keys() - {"pretrain", "record_env"})
def test_missing_files_are_not_called_broken(reader, whole, tmp_path):
    name, read = READERS[reader]
    path = break_one(whole, name, "empty", tmp_path)
    path.unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as told:
        read(path)
    assert "cut off" not in str(told.value)


def test_files_of_another_kind_that_can_be_read(whole, tmp_path):
    for name, other in (
        ("encoder.pth", "model.zip"),
        ("model.zip", "rows.npz"),
        ("model.zip", "encoder.pth"),
        ("surprise.pkl", "normalize.pkl"),
        ("rows.npy", "rows.npz"),
        ("rows.npz", "rows.npy"),
    ):
        (tmp_path / name).write_bytes((whole / other).read_bytes())
        readers = [read for file, read in READERS.values() if file == name]
        for read in readers:
            with pytest.raises(ValueError, match=rf"{name} must be .* something else"):
                read(tmp_path / name)
    (tmp_path / "description.json").write_text(json.dumps(["a", "list"]))
    shutil.copy(whole / "before" / "encoder.pth", tmp_path / "description.pth")
    with pytest.raises(ValueError, match=r"description\.json must be the description of an encoder"):
        read_encoder(tmp_path / "description.pth")
    with pytest.raises(
        ValueError, match=r"normalize\.pkl must be what VecSurprise.save wrote, .* holds a VecNormalize"
    ):
        VecSurprise.load(whole / "normalize.pkl", make_env())


def test_an_encoder_that_its_description_does_not_fit(whole, tmp_path):
    shutil.copytree(whole / "before", tmp_path / "before")
    description = tmp_path / "before" / "encoder.json"
    described = json.loads(description.read_text())
    described["features_extractor_kwargs"]["embed_dim"] = 8
    description.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"encoder\.pth does not fit .*encoder\.json: .*\(1, 1, 16\)"):
        read_encoder(tmp_path / "before")
    described["features_extractor_kwargs"]["of_the_future"] = 1
    description.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"encoder\.json must be .*'of_the_future'"):
        read_encoder(tmp_path / "before")


def test_curves_that_are_none(tmp_path):
    (tmp_path / "progress.csv").write_bytes(PNG)
    with pytest.raises(ValueError, match=r"progress\.csv must be a table of curves"):
        read_curves(tmp_path)
    (tmp_path / "progress.csv").unlink()
    for content in (b"", PNG, b"notes\n" * 50):
        (tmp_path / "events.out.tfevents.1").write_bytes(content)
        assert read_curves(tmp_path) == {}


def test_an_encoder_of_other_tensors_is_told_from_a_broken_one(whole, tmp_path):
    other = JepaExtractor(SPACE, **dict(SMALL_EXTRACTOR, depth=1))
    assert other.features_dim == 16
    with pytest.raises(ValueError, match=r"encoder\.pth does not fit the encoder 'shared'.*is missing in the model"):
        load_encoder(
            PPO("JepaPolicy", make_env(), policy_kwargs=dict(features_extractor_kwargs=dict(SMALL_EXTRACTOR, depth=1))),
            whole / "encoder.pth",
        )
