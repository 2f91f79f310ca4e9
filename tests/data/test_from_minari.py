"""Recordings of data sets of Minari."""

import sys

import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa.common.observations import by_key
from sb3_jepa.data import read, read_minari
from tests.data.test_collection import files_of


def episode_of(minari_module, observations, number: int):
    n_steps = len(next(iter(by_key(observations).values()))) - 1
    return minari_module.data_collector.EpisodeBuffer(
        id=number,
        observations=observations,
        actions=np.arange(n_steps) % 2,
        rewards=[10.0 * number + step for step in range(n_steps)],
        terminations=[step == n_steps - 1 and number == 1 for step in range(n_steps)],
        truncations=[step == n_steps - 1 and number != 1 for step in range(n_steps)],
    )


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("is_dict", [False, True])
def test_data_sets_of_minari(is_dict, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    for package in ("h5py", "PIL"):
        pytest.importorskip(package)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    states = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    # Of one colour each, for it writes them as JPEG
    images = np.broadcast_to(np.arange(0, 220, 20, dtype=np.uint8)[:, None, None, None], (11, 40, 32, 3))
    space = spaces.Box(-np.inf, np.inf, (4,))
    episodes = [states[:4], states[4:6], states[6:]]
    if is_dict:
        space = spaces.Dict(state=space, image=spaces.Box(0, 255, (40, 32, 3), np.uint8))
        episodes = [dict(state=x, image=image) for x, image in zip(episodes, np.split(images, [4, 6]), strict=True)]
    dataset = minari.create_dataset_from_buffers(
        "ours/test-v0",
        [episode_of(minari, episode, number) for number, episode in enumerate(episodes)],
        observation_space=space,
        action_space=spaces.Discrete(2),
    )
    # The second one in the folder is what the first one has written
    for source, folder in ((dataset, None), ("minari:ours/test-v0", "new"), (dataset, "new")):
        recordings = read(source, folder=folder and tmp_path / folder)
        assert isinstance(recordings.rewards, np.memmap) == (folder is not None)
        has_action = recordings.has_action.astype(bool)
        assert np.flatnonzero(~has_action).tolist() == [3, 5, 10]
        assert recordings.actions[has_action].tolist() == [0, 1, 0, 0, 0, 1, 0, 1]
        assert recordings.rewards[has_action].tolist() == [0, 1, 2, 10, 20, 21, 22, 23]
        assert np.flatnonzero(recordings.terminated).tolist() == [4]
        assert recordings.episodes.tolist() == [0] * 4 + [1] * 2 + [2] * 5
        taken = recordings.take(np.arange(11))
        assert np.array_equal(taken["state"] if is_dict else taken, states)
        if is_dict:
            assert taken["image"].shape == (11, 3, 40, 32)
            np.testing.assert_allclose(taken["image"].mean(axis=(1, 2, 3)), np.arange(0, 220, 20), atol=2)
    some = dataset.filter_episodes(lambda episode: len(episode) > 2)
    assert len(read_minari(some)) == 9
    with pytest.raises(ValueError, match="`folder` holds other recordings"):
        read_minari(some, folder=tmp_path / "new")
    # Killed after the first episode: it goes on, unless the data set became another
    info = tmp_path / "new" / "recording.json"
    whole = files_of(info.parent)
    info.write_text(info.read_text().replace('"n_saved": 11', '"n_saved": 4'))
    np.load(info.parent / "rewards.npy", mmap_mode="r+")[4:] = -1
    read_minari("ours/test-v0", folder=info.parent)
    assert files_of(info.parent) == whole
    info.write_text(info.read_text().replace('"n_saved": 11', '"n_saved": 4'))
    np.load(info.parent / "rewards.npy", mmap_mode="r+")[1] = 3
    with pytest.raises(ValueError, match=r"`folder` holds other recordings.*other rewards lie there"):
        read_minari("ours/test-v0", folder=info.parent)


def test_data_sets_of_minari_that_are_not_there(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name in ("ours/missing-v0", "no name!"):
        with pytest.raises(ValueError, match="`dataset` must be the ID of a data set of Minari"):
            read(f"minari:{name}")
    with pytest.raises(ValueError, match="`dataset` must be a MinariDataset"):
        read_minari(3)


def test_minari_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"sb3-jepa\[offline\]"):
        read("minari:ours/test-v0")
