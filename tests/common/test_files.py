import os
import pathlib
import subprocess
import sys

import pytest

from sb3_jepa.common.files import reading, replace_when_complete

KILLED = """
import os, signal, sys
from sb3_jepa.common.files import replace_when_complete
with replace_when_complete(sys.argv[1]) as unfinished:
    unfinished.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
ALIVE = """
import sys
from sb3_jepa.common.files import replace_when_complete
with replace_when_complete(sys.argv[1]) as unfinished:
    unfinished.write_text("of another")
    print("writing", flush=True)
    sys.stdin.read()
"""
# Python ignores the signal that comes with it: a write fails, as it does when the disk is full
FULL_DISK = """
import pathlib, resource, sys
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from sb3_jepa import PPO, JepaPolicy, VecSurprise, export_policy, save_encoder
env = VecSurprise(make_vec_env("CartPole-v1", n_envs=2))
policy_kwargs = dict(features_extractor_kwargs=dict(embed_dim=16, num_heads=2, standardize_frames=32), net_arch=[16])
model = PPO(JepaPolicy, env, policy_kwargs=policy_kwargs, n_steps=16, batch_size=16, device="cpu").learn(64)
folder = pathlib.Path(sys.argv[1])
saves = {
    "model.zip": model.save,
    "policy.pth": model.policy.save,
    "encoder.pth": lambda path: save_encoder(model, path),
    "encoder.safetensors": lambda path: save_encoder(model, path),
    "policy.pt2": lambda path: export_policy(model, path),
    "policy.onnx": lambda path: export_policy(model, path),
    "surprise.pkl": env.save,
}
for name in saves:
    (folder / name).write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for name, save in saves.items():
    try:
        save(folder / name)
    except OSError as error:
        print(f"{name}: {error}")
model.learn(64, reset_num_timesteps=False)
print("went on to", model.num_timesteps)
"""


def run(script: str, *arguments: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.zip"
    path.write_text("old")

    def save():
        with replace_when_complete(path) as unfinished:
            unfinished.write_text("half of the n")
            raise OSError("no more room")

    with pytest.raises(OSError, match=r"no more room.*model\.zip"):
        save()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.zip"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "first.zip").write_text("old")
    (tmp_path / "latest.zip").symlink_to(tmp_path / "first.zip")
    for name, text in (("latest.zip", "new"), ("latest", "newer")):
        with replace_when_complete(tmp_path / name, suffix=".zip") as unfinished:
            unfinished.write_text(text)
        assert (tmp_path / "latest.zip").is_symlink()
        assert (tmp_path / "first.zip").read_text() == text


def test_a_completed_save_replaces_the_old_file(tmp_path):
    path = tmp_path / "new folder" / "model.zip"
    for text in ("old", "new"):
        with replace_when_complete(path) as unfinished:
            unfinished.write_text(text)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["model.zip"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(os.name != "posix", reason="only POSIX tells whether a process is alive")
def test_what_killed_processes_left_stayed_for_ever(tmp_path):
    path = tmp_path / "model.zip"
    path.write_text("old")
    for n_left in (1, 1):
        assert run(KILLED, path).returncode == -9
        # The next one removes what the one before has left
        assert len(os.listdir(tmp_path)) == 1 + n_left
    (leftover,) = tmp_path.glob(".*")
    # Those of another file, of another computer, and what only looks alike, are not touched
    others = [leftover.name.replace("model.zip", "other.zip"), ".model.zip.0a0a0a0a.1.01234567", ".model.zip.backup"]
    for name in others:
        (tmp_path / name).mkdir()
    with (
        subprocess.Popen(
            [sys.executable, "-c", ALIVE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
        replace_when_complete(path) as outer,
    ):
        assert other.stdout.readline() == "writing\n"
        assert not leftover.exists()
        with replace_when_complete(path) as inner:
            inner.write_text("inner")
        # Neither what a living process writes, nor what this one does
        assert outer.parent.exists()
        assert len(list(tmp_path.glob(".model.zip.*"))) == 2 + 2
        other.communicate()
        assert path.read_text() == "of another"
        outer.write_text("new")
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == sorted(["model.zip", *others])


@pytest.mark.skipif(os.name != "posix", reason="elsewhere files cannot be limited")
def test_a_full_disk_ended_the_process(tmp_path):
    pytest.importorskip("onnxscript")
    result = run(FULL_DISK, tmp_path)
    assert result.returncode == 0, result.stderr
    *lines, last = result.stdout.splitlines()
    assert last == "went on to 128"
    names = sorted(os.listdir(tmp_path))
    assert len(names) == len(lines) == 7
    for line, name in zip(sorted(lines), names, strict=True):
        assert line.startswith(f"{name}: [Errno 27] File too large. The file could not be written, and an older one is")
        assert line.endswith(f"'{tmp_path / name}'")
        assert (tmp_path / name).read_text() == "old"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_folder_that_is_write_protected_is_a_permission_error(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(PermissionError, match=r"an older one is as it was.*model\.zip"),
        replace_when_complete(tmp_path / "model.zip"),
    ):
        pass
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "folder").write_text("")
    with (
        pytest.raises(FileExistsError, match=r"folder/model\.zip"),
        replace_when_complete(tmp_path / "folder" / "model.zip"),
    ):
        pass


def test_what_is_missing_is_not_called_broken(tmp_path):
    with pytest.raises(FileNotFoundError), reading(tmp_path / "model.zip", "a model"):
        (tmp_path / "model.zip").open()
