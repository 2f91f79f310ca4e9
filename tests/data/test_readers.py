import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, FrameDictReplayBuffer, FrameReplayBuffer, RecurrentPPO
from sb3_jepa.buffers.frames import FrameStacks
from sb3_jepa.common.observations import by_key
from sb3_jepa.data import Recordings, read, read_buffer, read_file, read_minari, record_env, save_recordings
from sb3_jepa.data.readers import is_env
from tests.conftest import SMALL_POLICY, SMALL_PPO, CountingImageEnv, FakeEnv, make_counting_env
from tests.data.test_collection import files_of

DICT_SPACE = spaces.Dict(
    image=spaces.Box(0, 255, (3, 36, 40), np.uint8), vector=spaces.Box(-1, 1, (2,)), mode=spaces.Discrete(3)
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 20, 16, 3), dtype=np.uint8)


class LargeCountingEnv(CountingImageEnv):
    """Its images are large enough to be stored frame by frame."""

    def __init__(self, number, lengths):
        super().__init__(number, lengths)
        self.observation_space = spaces.Box(0, 255, (3, 32, 32), np.uint8)

    def _observation(self):
        return super()._observation().repeat(2, axis=1).repeat(2, axis=2)


def large_counting_env():
    numbers = iter(range(2))
    return make_vec_env(lambda: LargeCountingEnv(next(numbers), (3, 5, 4)), n_envs=2)


def check_counts(recordings: Recordings, n_rows: int) -> np.ndarray:
    """That each number stands for one episode of one environment, and each of these has one number."""
    assert len(recordings) == n_rows
    shown = recordings.take(np.arange(n_rows))[:, :, 0, 0]
    pairs = {(*where, number) for where, number in zip(map(tuple, shown[:, :2]), recordings.episodes, strict=True)}
    assert len(pairs) == len({pair[:2] for pair in pairs}) == len({pair[2] for pair in pairs})
    return shown


def fill(buffer: ReplayBuffer, env, n_steps: int) -> None:
    """As ``OffPolicyAlgorithm`` does."""
    observations = env.reset()
    for _ in range(n_steps):
        new_observations, rewards, dones, infos = env.step(np.zeros(env.num_envs, dtype=np.int64))
        next_observations = new_observations.copy()
        for index in np.flatnonzero(dones):
            next_observations[index] = infos[index]["terminal_observation"]
        buffer.add(observations, next_observations, np.zeros(env.num_envs), rewards, dones, infos)
        observations = new_observations


@pytest.mark.parametrize("n_steps", [5, 20, 24, 47])
@pytest.mark.parametrize("optimize_memory_usage", [False, True])
def test_replay_buffers(n_steps, optimize_memory_usage):
    env = make_counting_env(((3, 5, 4), (7, 2, 6)))
    buffer = ReplayBuffer(
        40,
        env.observation_space,
        env.action_space,
        n_envs=2,
        optimize_memory_usage=optimize_memory_usage,
        handle_timeout_termination=False,
    )
    fill(buffer, env, n_steps)
    recordings = read_buffer(buffer)
    shown = check_counts(recordings, 2 * min(n_steps, 20))
    assert np.shares_memory(recordings.observations, buffer.observations)
    # One row for each step, and none twice
    assert len(np.unique(shown, axis=0)) == len(recordings)


def test_frames_of_a_replay_buffer_are_not_copied():
    env = large_counting_env()
    buffer = FrameReplayBuffer(40, env.observation_space, env.action_space, n_envs=2)
    for n_steps in (7, 20):
        fill(buffer, env, n_steps)
        recordings = read_buffer(buffer)
        n_rows = 2 * buffer.size()
        assert isinstance(recordings.observations, FrameStacks)
        assert recordings.observations._frames[0, 0] is buffer.observations._frames[0, 0, 0]
        expected = np.asarray(buffer.observations)[: buffer.size()].reshape(n_rows, 3, 32, 32)
        assert np.array_equal(recordings.take(np.arange(n_rows)), expected)
    check_counts(recordings, 40)


@pytest.mark.parametrize("buffer_class", [None, FrameDictReplayBuffer])
def test_replay_buffers_that_dqn_filled(buffer_class):
    env = make_vec_env(lambda: FakeEnv(DICT_SPACE), n_envs=2)
    model = DQN(
        "MultiInputPolicy", env, buffer_size=64, learning_starts=1_000, replay_buffer_class=buffer_class, device="cpu"
    )
    model.learn(40)
    recordings = read_buffer(model.replay_buffer)
    assert len(recordings) == 40
    assert len(np.unique(recordings.episodes)) == 8
    taken = recordings.take(np.arange(40))
    assert taken["mode"].shape == (40,)
    for key, array in model.replay_buffer.observations.items():
        expected = array[:20].reshape(40, *DICT_SPACE[key].shape)
        assert np.array_equal(taken[key], expected)


class ReadBuffer(BaseCallback):
    """Reads the rollout buffer when it holds nine steps, and when it is full."""

    def _on_step(self) -> bool:
        if self.model.rollout_buffer.pos == 9:
            self.partial = check_counts(read_buffer(self.model.rollout_buffer), 9 * self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        # It is not yet, if the input statistics are measured
        n_rows = self.model.rollout_buffer.pos * self.training_env.num_envs
        self.full = check_counts(read_buffer(self.model.rollout_buffer), n_rows)


@pytest.mark.parametrize("algorithm", [StockPPO, PPO, RecurrentPPO])
@pytest.mark.parametrize("make_env", [make_counting_env, large_counting_env])
def test_rollout_buffers_before_and_after_they_are_flattened(algorithm, make_env):
    env = make_env()
    policy = (
        dict(policy="MlpPolicy") if algorithm is StockPPO else dict(policy="JepaPolicy", policy_kwargs=SMALL_POLICY)
    )
    model = algorithm(env=env, **policy, **SMALL_PPO)
    reader = ReadBuffer()
    model.learn(3 * 16 * env.num_envs, callback=reader)
    flattened = check_counts(read_buffer(model.rollout_buffer), 16 * env.num_envs)
    # Environment by environment
    assert np.array_equal(flattened, reader.full.reshape(16, env.num_envs, 3).swapaxes(0, 1).reshape(-1, 3))
    assert np.array_equal(reader.partial, reader.full[: 9 * env.num_envs])


def test_an_empty_buffer_is_refused():
    env = make_counting_env()
    with pytest.raises(ValueError, match="is empty"):
        read_buffer(ReplayBuffer(40, env.observation_space, env.action_space))
    with pytest.raises(ValueError, match="`buffer` must be a ReplayBuffer or a RolloutBuffer, got list"):
        read_buffer([])


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
    ("told", "episodes"),
    [
        (dict(), [0, 0, 0, 0, 0]),
        (dict(episodes=[4, 4, 7, 4, 7]), [4, 4, 7, 4, 7]),
        (dict(terminals=[0, 1, 0, 0, 0], timeouts=[0, 0, 0, 1, 0]), [0, 0, 1, 1, 2]),
        (dict(dones=[[0.0], [0.0], [1.0], [0.0], [1.0]]), [0, 0, 0, 1, 1]),
    ],
)
def test_what_a_file_says_of_episodes(told, episodes, tmp_path):
    np.savez(tmp_path / "data.npz", observations=np.zeros((5, 2)), **told)
    assert read_file(tmp_path / "data.npz").episodes.tolist() == episodes


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
    ],
)
def test_files_that_cannot_be_read_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "data.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_broken_files_are_refused(suffix, tmp_path):
    for content in (b"", b"half of a"):
        (tmp_path / f"data{suffix}").write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.np|pickle"):
            read_file(tmp_path / f"data{suffix}")


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


def test_anything_that_holds_observations_is_read(tmp_path):
    recordings = read("CartPole-v1", n_steps=30, progress_bar=False)
    assert len(recordings) == 30
    assert read(recordings) is recordings
    for env in (gym.make("CartPole-v1"), make_vec_env("CartPole-v1", n_envs=3)):
        assert len(read(env, n_steps=20, progress_bar=False)) == 20
    np.save(tmp_path / "data.npy", recordings.observations)
    assert np.array_equal(read(str(tmp_path / "data.npy")).observations, recordings.observations)
    buffer = ReplayBuffer(40, recordings.observation_space, spaces.Discrete(2))
    fill(buffer, make_vec_env("CartPole-v1"), 10)
    assert len(read(buffer)) == 10
    for source in (3, None, "no/such/file.npy", "NoSuchEnv-v0", [np.zeros(3)]):
        with pytest.raises(ValueError, match="`source` must be Recordings, the path of a file"):
            read(source)
    with pytest.raises(ValueError, match="without further arguments"):
        read(recordings, n_steps=3)


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
    with pytest.raises(ValueError, match=r"`folder` holds other recordings.*rewards is not the same there"):
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
