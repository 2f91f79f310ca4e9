"""Whatever can be read."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa.data import read
from sb3_jepa.data.readers import is_env
from tests.arguments.cases import replay_buffer


def test_anything_that_holds_observations_is_read(tmp_path):
    recordings = read("CartPole-v1", n_steps=30, progress_bar=False)
    assert len(recordings) == 30
    assert read(recordings) is recordings
    for env in (gym.make("CartPole-v1"), make_vec_env("CartPole-v1", n_envs=3)):
        assert len(read(env, n_steps=20, progress_bar=False)) == 20
    np.save(tmp_path / "data.npy", recordings.observations)
    assert np.array_equal(read(str(tmp_path / "data.npy")).observations, recordings.observations)
    assert len(read(replay_buffer())) == 1
    for source in (3, None, "no/such/file.npy", "NoSuchEnv-v0", [np.zeros(3)]):
        with pytest.raises(ValueError, match="`source` must be Recordings, the path of a file"):
            read(source)
    with pytest.raises(ValueError, match="without further arguments"):
        read(recordings, n_steps=3)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("CartPole-v1", True),
        ("CartPole-v77", False),
        ("registers_late:LateCartPole-v0", True),
        ("registers_late:NoSuchEnv-v0", False),
        ("no_such_module:CartPole-v1", False),
        ("./folder:2/numbers.npy", False),
        ("minari:CartPole-v1", False),
        (3, False),
    ],
)
def test_what_is_an_environment(source, expected, monkeypatch, tmp_path):
    (tmp_path / "registers_late.py").write_text(
        "import gymnasium\ngymnasium.register('LateCartPole-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert is_env(source) == expected
