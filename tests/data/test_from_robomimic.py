"""robomimic's HDF5 files, written here after their documented layout."""

import numpy as np
import pytest

from sb3_jepa.data import read, read_robomimic

h5py = pytest.importorskip("h5py", reason="needs the extra offline")


def write(path, lengths=(3, 5), with_next=True, change=None):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = "{}"
        # Names in another order than numbers
        for number, length in sorted(zip((10, 2), lengths, strict=True)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"] = rng.uniform(-1, 1, (length, 7))
            demo["rewards"] = np.arange(length, dtype=float)
            demo["dones"] = np.arange(length) == length - 1
            for group, shift in (("obs", 0), ("next_obs", 1)) if with_next else (("obs", 0),):
                demo[f"{group}/robot0_eef_pos"] = 100.0 * number + np.arange(length)[:, None] + shift + np.zeros(3)
                demo[f"{group}/agentview_image"] = np.full((length, 12, 12, 3), number, np.uint8)
        if change is not None:
            change(data)
    return path


def test_demonstrations_are_episodes_with_their_last_observation(tmp_path):
    recordings = read(write(tmp_path / "demos.hdf5"))
    assert len(recordings) == 3 + 5 + 2
    np.testing.assert_array_equal(recordings.episodes, [0] * 6 + [1] * 4)
    # demo_2 comes before demo_10
    positions = recordings.observations["robot0_eef_pos"][:, 0]
    np.testing.assert_array_equal(positions, [*range(200, 206), *range(1000, 1004)])
    assert recordings.observation_space["agentview_image"].shape == (3, 12, 12)
    np.testing.assert_array_equal(recordings.has_action, [1] * 5 + [0] + [1] * 3 + [0])
    np.testing.assert_array_equal(np.flatnonzero(recordings.terminated), [4, 8])
    np.testing.assert_array_equal(recordings.rewards[:5], range(5))
    assert recordings.actions.shape == (10, 7)


def test_without_next_observations_the_last_one_is_not_known(tmp_path):
    recordings = read_robomimic(write(tmp_path / "demos.hdf5", with_next=False), keys=["robot0_eef_pos"])
    assert len(recordings) == 8
    assert set(recordings.observations) == {"robot0_eef_pos"}
    assert recordings.has_action.all()


def remove_actions(data):
    del data["demo_2"]["actions"]


def remove_demos(data):
    for name in list(data):
        del data[name]


def shorten(data):
    actions = data["demo_10"]["actions"][:2]
    del data["demo_10"]["actions"]
    data["demo_10"]["actions"] = actions


@pytest.mark.parametrize(
    ("change", "message"),
    [(remove_actions, "'demo_2' of .*actions"), (remove_demos, "must hold demonstrations"), (shorten, "'demo_10' of")],
)
def test_what_is_missing_is_told_with_the_file(change, message, tmp_path):
    path = write(tmp_path / "demos.hdf5", change=change)
    with pytest.raises(ValueError, match=message) as told:
        read_robomimic(path)
    assert str(path) in str(told.value)


def test_other_files_and_keys_are_refused(tmp_path):
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="robomimic"):
        read_robomimic(broken)
    with pytest.raises(ValueError, match="`path`"):
        read_robomimic(tmp_path / "nothing.hdf5")
    with pytest.raises(ValueError, match="hand"):
        read_robomimic(write(tmp_path / "demos.hdf5"), keys=["hand"])
