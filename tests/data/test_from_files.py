"""Recordings of files."""

import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa.data import read, read_file, save_recordings

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 20, 16, 3), dtype=np.uint8)


def test_channels_last_are_seen_as_channels_first(tmp_path):
    np.save(tmp_path / "last.npy", IMAGES)
    np.save(tmp_path / "first.npy", IMAGES.transpose(0, 3, 1, 2))
    last, first = read_file(tmp_path / "last.npy"), read_file(tmp_path / "first.npy")
    given = read_file(tmp_path / "last.npy", spaces.Box(0, 255, (20, 16, 3), np.uint8))
    assert last.observation_space == first.observation_space == given.observation_space
    assert last.observation_space == spaces.Box(0, 255, (3, 20, 16), np.uint8)
    for recordings in (last, first, given):
        assert isinstance(recordings.observations, np.memmap)
        assert np.array_equal(recordings.take([5, 2]), IMAGES[[5, 2]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_with_keys(save, tmp_path):
    vectors = np.asfortranarray(np.random.default_rng(0).normal(size=(12, 5)))
    dones = np.zeros(12, dtype=bool)
    dones[[3, 7]] = True
    arrays = {"observations.image": IMAGES, "observations.vector": vectors, "actions": np.zeros(12), "dones": dones}
    save(tmp_path / "data.npz", **arrays)
    recordings = read_file(tmp_path / "data.npz")
    assert recordings.observation_space["image"].shape == (3, 20, 16)
    assert recordings.observation_space["vector"] == spaces.Box(-np.inf, np.inf, (5,), np.float64)
    assert recordings.episodes.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for one in (recordings, save_recordings(recordings, tmp_path / "folder"), read(tmp_path / "folder")):
        assert all(isinstance(array, np.memmap) == (one is not recordings) for array in one.observations.values())
        taken = one.take(np.arange(12))
        assert np.array_equal(taken["vector"], vectors)
        assert np.array_equal(taken["image"], IMAGES.transpose(0, 3, 1, 2))
        assert (one.id, one.observation_space) == (recordings.id, recordings.observation_space)


@pytest.mark.parametrize(
    ("told", "episodes", "terminated"),
    [
        (dict(), [0, 0, 0, 0, 0], None),
        (dict(episodes=[4, 4, 7, 4, 7]), [4, 4, 7, 4, 7], None),
        (dict(terminals=[0, 1, 0, 0, 0], timeouts=[0, 0, 0, 1, 0]), [0, 0, 1, 1, 2], [1]),
        (dict(dones=[0, 1, 0, 1, 0], timeouts=[0, 1, 0, 0, 0]), [0, 0, 1, 1, 2], [3]),
        (dict(dones=[[0.0], [0.0], [1.0], [0.0], [1.0]]), [0, 0, 0, 1, 1], None),
    ],
)
def test_what_a_file_says_of_episodes(told, episodes, terminated, tmp_path):
    np.savez(tmp_path / "data.npz", observations=np.zeros((5, 2)), **told)
    recordings = read_file(tmp_path / "data.npz")
    assert recordings.episodes.tolist() == episodes
    assert (recordings.terminated is None) == (terminated is None)
    if terminated is not None:
        assert np.flatnonzero(recordings.terminated).tolist() == terminated


@pytest.mark.parametrize(
    ("array", "space"),
    [
        (np.zeros((4, 3), np.float32), spaces.Box(-np.inf, np.inf, (3,))),
        (np.zeros((4, 3, 2), np.float64), spaces.Box(-np.inf, np.inf, (3, 2), np.float64)),
        (np.zeros((4, 5, 20, 16, 3), np.uint8), spaces.Box(0, 255, (5, 20, 16, 3), np.uint8)),
        (np.array([0, 4, 2]), spaces.Discrete(5)),
        (np.array([[0, 4], [1, 2]], np.uint8), spaces.MultiDiscrete([2, 5])),
        (np.zeros((4, 3), bool), spaces.MultiBinary(3)),
    ],
)
def test_spaces_are_guessed(array, space, tmp_path):
    np.save(tmp_path / "data.npy", array)
    recordings = read_file(tmp_path / "data.npy")
    assert recordings.observation_space == space
    assert recordings.take([0]).dtype == space.dtype


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(states=np.zeros((4, 3))), r"must hold the array 'observations'.*got \['states'\]"),
        (dict(observations=np.zeros((0, 3))), "holds no observations"),
        (dict(observations=np.array([0, -1, 2])), "cannot be guessed.*Say `observation_space`"),
        (
            dict(observations=np.zeros((4, 3), np.int64), dones=np.zeros(3)),
            r"'dones' of .*data.npz must have the shape \(4,\), got \(3,\)",
        ),
        ({"observations": np.zeros(4), "observations.a": np.zeros(4)}, "got both"),
        (dict(observations=np.zeros(4), rewards=np.zeros(3)), r"'rewards' of .*data.npz must have the shape \(4,\)"),
        (dict(observations=np.zeros(4), actions=np.zeros((3, 2))), r"'actions' of .*data.npz .* row for each of 4 obs"),
        (dict(observations=np.zeros(4), actions=np.zeros(4, bool)), "actions, bool.*cannot be.*Say `action_space`"),
    ],
)
def test_files_that_cannot_be_read_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "data.npz")


def test_the_action_space_of_no_actions_is_refused(tmp_path):
    np.save(tmp_path / "data.npy", np.zeros(4))
    with pytest.raises(ValueError, match="`action_space` must be None for a file without 'actions'"):
        read_file(tmp_path / "data.npy", action_space=spaces.Discrete(2))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_broken_files_are_refused(suffix, tmp_path):
    for content in (b"", b"half of a"):
        (tmp_path / f"data{suffix}").write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.np|pickle"):
            read_file(tmp_path / f"data{suffix}")
