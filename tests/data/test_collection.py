import json
import os
import pathlib
import signal
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa.data import folders
from sb3_jepa.pretrain import Recordings, record_env
from tests.conftest import EPISODE_LENGTHS, FakeEnv, make_counting_env

DICT_SPACE = spaces.Dict(
    image=spaces.Box(0, 255, (16, 20, 3), np.uint8),
    vector=spaces.Box(np.array([-np.inf, -4.8], np.float32), np.array([np.inf, 4.8], np.float32)),
    mode=spaces.Discrete(3),
    modes=spaces.MultiDiscrete([3, 2]),
    flags=spaces.MultiBinary(4),
)


def record(*args, **kwargs) -> Recordings:
    return record_env(*args, progress_bar=False, **kwargs)


class Interrupted(Exception):
    pass


class InterruptedPolicy:
    """Random actions, and an interruption after so many steps."""

    def __init__(self, n_steps: int):
        self.n_steps, self.random = n_steps, np.random.default_rng(0)

    def predict(self, observations, state=None, episode_start=None):
        if self.n_steps == 0:
            raise Interrupted
        self.n_steps -= 1
        return self.random.integers(0, 2, len(observations)), None


@pytest.mark.parametrize("in_folder", [False, True])
def test_rows_are_what_the_environments_showed(in_folder, tmp_path):
    recordings = record(make_counting_env(), 100, tmp_path / "new" / "folder" if in_folder else None)
    assert len(recordings) == 100
    shown = recordings.take(np.arange(100))[:, :, 0, 0]
    # (environment, episode) and number of the episode belong together, and time goes on within each
    pairs = {(*where, number) for where, number in zip(map(tuple, shown[:, :2]), recordings.episodes, strict=True)}
    assert len(pairs) == len({pair[:2] for pair in pairs}) == len({pair[2] for pair in pairs}) > 10
    for number in np.unique(recordings.episodes):
        environment, episode, times = shown[recordings.episodes == number].T
        assert times.tolist() == list(range(len(times)))
        # With the last observation
        assert len(times) <= EPISODE_LENGTHS[environment[0]][episode[0] % len(EPISODE_LENGTHS[environment[0]])] + 1
    ended = Counter(recordings.episodes.tolist())
    assert ended[0] == EPISODE_LENGTHS[0][0] + 1


def test_arrays_of_a_folder_are_mapped(tmp_path):
    recordings = record(FakeEnv(DICT_SPACE), 40, tmp_path)
    assert recordings.observation_space["image"].shape == (3, 16, 20)
    for key, space in recordings.observation_space.items():
        assert isinstance(recordings.observations[key], np.memmap)
        assert np.load(tmp_path / f"observations.{key}.npy").shape == (40, *space.shape)
    in_memory = record(FakeEnv(DICT_SPACE), 40)
    for key, array in in_memory.observations.items():
        assert np.array_equal(array, recordings.observations[key])
    assert np.array_equal(in_memory.episodes, recordings.episodes)


def test_a_key_may_look_like_a_path(tmp_path):
    env = FakeEnv(spaces.Dict({"robot/joints": spaces.Box(-1, 1, (3,)), "../%2F": spaces.Discrete(3)}))
    folder = tmp_path / "folder"
    recordings = record(env, 20, folder)
    assert {key: array.shape for key, array in recordings.observations.items()} == {
        "robot/joints": (20, 3),
        "../%2F": (20,),
    }
    assert {path.parent for path in tmp_path.rglob("*.npy")} == {folder}


class KilledEnv(gym.Wrapper):
    """An environment whose process is killed at a step of all that there are, or which raises then."""

    n_left: int | None = None

    def step(self, action):
        if KilledEnv.n_left is not None:
            KilledEnv.n_left -= 1
            if KilledEnv.n_left == 0:
                if "PYTEST_CURRENT_TEST" in os.environ:
                    raise Interrupted
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def record_interrupted(
    folder: pathlib.Path, policy: pathlib.Path | None = None, at: int | None = None, env_id: str = "CartPole-v1"
) -> None:
    """By a new environment and model, as a new process has them."""
    KilledEnv.n_left = at
    record(make_vec_env(env_id, n_envs=2, wrapper_class=KilledEnv), 400, folder, policy=policy, seed=7)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("acts", ["random", "model", "gSDE"])
def test_a_recording_that_was_interrupted_went_on_with_other_episodes(acts, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SAVE_FREQ", 50)
    policy, env_id = None, "Pendulum-v1" if acts == "gSDE" else "CartPole-v1"
    if acts != "random":
        policy = tmp_path / "model.zip"
        PPO("MlpPolicy", env_id, use_sde=acts == "gSDE", device="cpu").save(policy)
    record_interrupted(tmp_path / "whole", policy, env_id=env_id)
    folder = tmp_path / "interrupted"
    # Between two saves; while what was saved is played once more; at the end
    n_saved = []
    for at in (130, 20, 300, 380):
        th.manual_seed(at)
        with pytest.raises(Interrupted):
            record_interrupted(folder, policy, at, env_id)
        n_saved.append(json.loads((folder / "recording.json").read_text())["n_saved"])
    assert 80 < n_saved[0] == n_saved[1] < n_saved[2] < n_saved[3] < 400
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record_interrupted(folder, policy, env_id=env_id)
    assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_recording_that_was_killed_went_on_with_other_episodes(tmp_path):
    script = (
        "import pathlib, sys\nfrom sb3_jepa.data import folders\nfolders.SAVE_FREQ = 50\n"
        "from tests.data.test_collection import record_interrupted\n"
        "record_interrupted(pathlib.Path(sys.argv[1]), at=int(sys.argv[2]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), "150"]
    killed = subprocess.run(command, check=False, env=environment, capture_output=True, cwd=pathlib.Path.cwd())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 100 < json.loads((tmp_path / "killed" / "recording.json").read_text())["n_saved"] < 200
    for name in ("killed", "whole"):
        record_interrupted(tmp_path / name)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_what_does_not_repeat_itself_goes_on_with_new_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SAVE_FREQ", 50)

    class Unseeded(gym.ObservationWrapper):
        """Noise that no seed decides about."""

        def observation(self, observation):
            return observation + np.random.default_rng().normal(size=4, scale=1e-3).astype(np.float32)

    n_saved = []
    for n_steps in (30, 75, 10_000):
        env = make_vec_env("CartPole-v1", n_envs=2, wrapper_class=Unseeded)
        with pytest.warns(UserWarning, match="goes on with new episodes") if n_saved else nullcontext():
            try:
                recordings = record(env, 400, tmp_path, policy=InterruptedPolicy(n_steps))
            except Interrupted:
                n_saved.append(json.loads((tmp_path / "recording.json").read_text())["n_saved"])
                before = (np.load(tmp_path / "observations.npy")[: n_saved[-1]], n_saved[-1])
    assert 50 <= n_saved[0] < n_saved[1]
    assert len(recordings) == 400
    states = recordings.take(np.arange(400))
    assert np.array_equal(states[: before[1]], before[0])
    # The same episode would have begun twice otherwise
    assert len(np.unique(states, axis=0)) == 400
    for number in np.unique(recordings.episodes):
        rows = np.flatnonzero(recordings.episodes == number)
        # The cart moves on, and no episode goes on after an interruption
        assert np.abs(np.diff(states[rows, 0])).max(initial=0) < 0.1
        assert not any(rows[0] < border <= rows[-1] for border in n_saved)


def test_what_is_complete_is_not_collected_again(tmp_path):
    first = record("CartPole-v1", 50, tmp_path, policy=None, seed=3)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("observations*")}
    again = record("CartPole-v1", 50, tmp_path, seed=3)
    assert np.array_equal(first.observations, again.observations)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("observations*")}
    # The same in memory, and another with another seed
    assert np.array_equal(first.observations, record("CartPole-v1", 50, seed=3).observations)
    assert not np.array_equal(first.observations, record("CartPole-v1", 50, seed=4).observations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=1), "seed is 0 there and 1 here"),
        (dict(n_steps=21), "n_rows is 20 there and 21 here"),
        (dict(env="Acrobot-v1"), "env is 'CartPole-v1' there and 'Acrobot-v1' here.*observation_space is"),
        (dict(policy=InterruptedPolicy(100)), "policy is 'random' there and 'InterruptedPolicy' here"),
    ],
)
def test_other_recordings_are_not_overwritten(change, message, tmp_path):
    settings = dict(env="CartPole-v1", n_steps=20, folder=tmp_path)
    record(**settings)
    with pytest.raises(ValueError, match=message):
        record(**{**settings, **change})


def test_arrays_of_unknown_origin_are_not_overwritten(tmp_path):
    np.save(tmp_path / "observations.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not known to be recordings"):
        record("CartPole-v1", 20, tmp_path)
    assert np.load(tmp_path / "observations.npy").tolist() == [0, 0, 0]


def test_too_little_room_is_noticed_before(tmp_path):
    with pytest.raises(ValueError, match=r"1000000000000000 observations take .* bytes"):
        record("CartPole-v1", 10**15, tmp_path / "large")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere files cannot be limited")
def test_a_disk_without_room_is_named_before_anything_is_recorded(tmp_path):
    script = (
        "import resource, sys\nfrom sb3_jepa.pretrain import record_env\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n"
        "try:\n    record_env('CartPole-v1', 1000, sys.argv[1], progress_bar=False)\n"
        "except OSError as error:\n    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print(len(record_env('CartPole-v1', 1000, sys.argv[1], progress_bar=False)))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    told, n_recorded = result.stdout.splitlines()
    assert told.startswith("[Errno 27] File too large. There is no room for 1000 observations: ")
    assert str(tmp_path) in told
    assert n_recorded == "1000"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="elsewhere no room can be reserved")
def test_a_disk_that_became_full_later_killed_the_process(tmp_path):
    with pytest.raises(Interrupted):
        record(make_vec_env("CartPole-v1"), 100_000, tmp_path, policy=InterruptedPolicy(3))
    # What all rows will take is taken from the beginning
    for path in tmp_path.glob("*.npy"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size > 100_000 * np.load(path, mmap_mode="r")[0].nbytes


def test_a_model_acts(tmp_path):
    env = make_vec_env("CartPole-v1", n_envs=2)
    model = PPO("MlpPolicy", env, seed=0, device="cpu")
    model.save(tmp_path / "model")

    class AlwaysLeft:
        def predict(self, observations, state=None, episode_start=None):
            assert len(episode_start) == len(observations) == 2
            return np.zeros(2, dtype=np.int64), state

    left = record(env, 200, policy=AlwaysLeft())
    # It soon falls over
    assert np.bincount(left.episodes).max() < 15
    seen = []
    for policy in (model, tmp_path / "model", str(tmp_path / "model.zip"), None):
        seen.append(record(env, 50, policy=policy).observations)
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[3])
    # Of a folder, it is known which model has acted
    for _ in range(2):
        record(env, 50, tmp_path / "recordings", policy=model)
    other = PPO("MlpPolicy", env, seed=1, device="cpu")
    with pytest.raises(ValueError, match=r"policy is 'PPO [0-9a-f]{8}' there and 'PPO [0-9a-f]{8}' here"):
        record(env, 50, tmp_path / "recordings", policy=other)
    with pytest.raises(ValueError, match=r"`policy` must have the observation_space of `env`"):
        record("Acrobot-v1", 20, policy=model)
    with pytest.raises(ValueError, match=r"`policy` must have the action_space of `env`"):
        record(FakeEnv(env.observation_space, spaces.Discrete(5)), 20, policy=model)


def test_the_progress_bar_needs_packages(monkeypatch):
    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", None)
    with pytest.raises(ImportError, match=r"sb3-jepa\[examples\]"):
        record_env("CartPole-v1", 20)


def test_the_progress_bar_counts_what_was_there_before(monkeypatch, tmp_path):
    class Bar:
        def __init__(self, total):
            self.total, self.n, self.is_closed = total, 0, False
            bars.append(self)

        def update(self, n):
            self.n += n

        def close(self):
            self.is_closed = True

    bars: list[Bar] = []
    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", Bar)
    monkeypatch.setattr(folders, "SAVE_FREQ", 1)
    for n_steps in (10, 100):
        env = make_vec_env("CartPole-v1", n_envs=2)
        with pytest.raises(Interrupted) if n_steps == 10 else nullcontext():
            record_env(env, 100, tmp_path, policy=InterruptedPolicy(n_steps))
    # Of the first one the last step is missing
    assert bars[0].n < bars[1].n == bars[1].total == 100
    assert all(bar.is_closed for bar in bars)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(env="NoSuchEnv-v0"), "`env` must be the ID of an environment, got 'NoSuchEnv-v0'"),
        (dict(env=3), "`env` must be the ID of an environment, a gymnasium.Env or a VecEnv, got 3"),
        (dict(n_steps=0), "`n_steps` must be a positive whole number, got 0"),
        (dict(policy=3), "`policy` must be None, a model"),
        (dict(policy="missing"), "`path` must be a saved model"),
        (dict(env=FakeEnv(spaces.Tuple([spaces.Discrete(2)]))), "Observations must be a Box"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        record(**{**dict(env="CartPole-v1", n_steps=20), **arguments})
