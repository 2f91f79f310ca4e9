"""Folders of recordings, whatever wrote them."""

import json
import pathlib

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa.data import Recordings, folders, read, record_env, save_recordings
from tests.data.test_collection import Interrupted, files_of, record_interrupted


class InterruptedRecordings(Recordings):
    """They can be saved twice, fifty rows at a time, and are interrupted then."""

    n_left = 2

    def take(self, rows, keys=None):
        if len(rows) == 50:
            self.n_left -= 1
            if self.n_left < 0:
                raise Interrupted
        return super().take(rows, keys)


def make_recordings(cls=Recordings, seed: int = 0) -> Recordings:
    observations = np.random.default_rng(seed).normal(size=(180, 3)).astype(np.float32)
    actions = dict(action_space=spaces.MultiBinary(2), actions=np.arange(360).reshape(180, 2) % 2)
    return cls(spaces.Box(-9, 9, (3,)), observations, np.arange(180) // 20, **actions, times=-np.arange(180))


def make_old(folder: pathlib.Path) -> None:
    """As earlier versions left it, without actions."""
    info = json.loads((folder / "recording.json").read_text())
    for name in info.pop("arrays"):
        (folder / f"{name}.npy").unlink()
    del info["action_space"]
    (folder / "recording.json").write_text(json.dumps(info))


def test_what_is_saved_is_the_same_when_it_is_read(tmp_path):
    recordings = make_recordings()
    save_recordings(recordings, tmp_path)
    loaded = read(tmp_path)
    assert loaded.id == recordings.id
    assert loaded.action_space == recordings.action_space
    assert loaded.rewards is loaded.terminated is None
    for one, other in zip(loaded.windows([3, 50], 4, 2), recordings.windows([3, 50], 4, 2), strict=True):
        assert np.array_equal(one, other)
    assert all(isinstance(array, np.memmap) for array in (loaded.observations, loaded.actions, loaded.times))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    save_recordings(recordings, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"`folder` holds other recordings.*recordings is"):
        save_recordings(make_recordings(seed=1), tmp_path)


def test_saving_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SAVE_FREQ", 50)
    with pytest.raises(Interrupted):
        save_recordings(make_recordings(InterruptedRecordings), tmp_path / "interrupted")
    assert json.loads((tmp_path / "interrupted" / "recording.json").read_text())["n_saved"] == 100
    for name in ("interrupted", "whole"):
        save_recordings(make_recordings(), tmp_path / name)
    assert files_of(tmp_path / "interrupted") == files_of(tmp_path / "whole")


def test_a_folder_of_an_earlier_version_is_read_without_actions(tmp_path):
    arguments = dict(env="CartPole-v1", n_steps=50, folder=tmp_path, progress_bar=False)
    recorded = record_env(**arguments)
    assert recorded.actions.shape == recorded.rewards.shape == (50,)
    make_old(tmp_path)
    before = files_of(tmp_path)
    for recordings in (read(tmp_path), record_env(**arguments)):
        assert recordings.actions is recordings.rewards is None
        assert recordings.id == recorded.id
        assert recordings.windows([3], 4, with_actions=False).has_action is None
        with pytest.raises(ValueError, match=r"`with_actions` must be False.*earlier versions have none"):
            recordings.windows([3], 4)
    assert files_of(tmp_path) == before


def test_a_recording_that_an_earlier_version_began_goes_on_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SAVE_FREQ", 50)
    with pytest.raises(Interrupted):
        record_interrupted(tmp_path / "old", at=130)
    for name in ("old", "new"):
        if name == "old":
            make_old(tmp_path / name)
        record_interrupted(tmp_path / name)
    old, new = files_of(tmp_path / "old"), files_of(tmp_path / "new")
    assert old.keys() == {"recording.json", "observations.npy", "episodes.npy"}
    assert all(content == new[name] for name, content in old.items() if name != "recording.json")


def test_folders_are_read(tmp_path):
    recorded = record_env("CartPole-v1", 50, tmp_path / "folder", progress_bar=False)
    recordings = read(tmp_path / "folder")
    assert isinstance(recordings.observations, np.memmap)
    assert np.array_equal(recordings.observations, recorded.observations)
    assert recordings.observation_space == gym.make("CartPole-v1").observation_space
    with pytest.raises(ValueError, match=r"`observation_space` must be that of"):
        read(tmp_path / "folder", observation_space=spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"written by `record_env`.*recording.json does not exist"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"`path` must be an .npy or .npz file"):
        read(tmp_path / "folder" / "recording.json")
    info = tmp_path / "folder" / "recording.json"
    info.write_text(info.read_text().replace('"n_saved": 50', '"n_saved": 20'))
    with pytest.warns(UserWarning, match="not complete: it holds 20 of 50"):
        assert len(read(tmp_path / "folder")) == 20
    info.write_text(info.read_text().replace('"n_saved": 20', '"n_saved": 0'))
    with pytest.raises(ValueError, match="holds no observations yet"):
        read(tmp_path / "folder")


def test_rows_that_were_written_and_not_saved_leave_no_action_behind(tmp_path):
    def rows(n: int) -> dict[str, np.ndarray]:
        return dict(observations=np.zeros((n, 3), np.float32), episodes=np.zeros(n, int))

    settings = (spaces.Box(-1, 1, (3,)), 5, tmp_path, {}, spaces.Discrete(2))
    interrupted = folders.RecordingWriter(*settings)
    for n in (2, 3):
        start = interrupted.append(rows(n))
        interrupted.amend(start, dict(has_action=np.ones(n, bool), actions=np.ones(n, int)))
        if n == 2:
            interrupted.save()
    writer = folders.RecordingWriter(*settings)
    writer.skip_saved()
    writer.append(rows(3))
    assert writer.recordings().has_action.tolist() == [True, True, False, False, False]
