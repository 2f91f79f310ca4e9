"""Callbacks that look at a training and change nothing of it."""

import json
import sys

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, IMAGES, EventAccumulator

from sb3_jepa import (
    A2C,
    PPO,
    JepaCallback,
    JepaExtractor,
    JepaPolicy,
    LatentModel,
    PictureCallback,
    ProbeCallback,
    RecurrentPPO,
)
from sb3_jepa.callbacks import pictures as monitors
from sb3_jepa.callbacks.every_n_rollouts import EveryNRollouts
from sb3_jepa.envs.pixels import make_pixel_vec_env
from tests.algorithms.test_matrix import EXTRACTOR, OBSERVATIONS
from tests.conftest import (
    EPISODE_LENGTHS,
    SMALL_POLICY,
    SMALL_PPO,
    FakeEnv,
    make_counting_env,
)

PICTURES = ("attention", "spectrum", "trajectory", "unrolled")
MATRIX_POLICY = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16])
OFF_POLICY = dict(learning_starts=20, buffer_size=200, batch_size=16, seed=0, device="cpu")


def make_off_policy(algorithm: str = "DQN", observation="vector", n_envs: int = 1, **kwargs):
    action_space = spaces.Discrete(2) if algorithm == "DQN" else spaces.Box(-2, 2, (2,))
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS[observation], action_space), n_envs=n_envs, seed=0)
    extractor_kwargs = dict(EXTRACTOR, standardize_frames=0)
    policy_kwargs = dict(
        features_extractor_class=JepaExtractor, features_extractor_kwargs=extractor_kwargs, net_arch=[16]
    )
    return getattr(stable_baselines3, algorithm)("MlpPolicy", env, policy_kwargs=policy_kwargs, **OFF_POLICY, **kwargs)


def read_events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={IMAGES: 0, HISTOGRAMS: 0}).Reload()


def steps_of(folder, name: str) -> list[int]:
    return [event.step for event in read_events(folder).Images(f"jepa_pictures/{name}")]


class Looks(EveryNRollouts):
    """When it looked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = []

    def _look(self) -> None:
        self.steps.append(self.num_timesteps)


class KeepsPortraits(PictureCallback):
    """What there was to draw."""

    def __init__(self, **kwargs):
        super().__init__(projector=False, **kwargs)
        self.episodes, self.steps = [], []

    def _look(self) -> None:
        super()._look()
        self.steps.append(self.num_timesteps)
        self.episodes.append(self._recorder.latest())


# --- When


def test_every_n_rollouts_on_policy():
    looks = Looks(every_n_rollouts=2)
    model = PPO("JepaPolicy", "CartPole-v1", policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.learn(7 * 16, callback=looks)
    # ... and at the end
    assert looks.steps == [32, 64, 96, 112]


def test_every_twenty_rollouts_by_default():
    looks = Looks()
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS["vector"]), n_envs=2, seed=0)
    A2C("JepaPolicy", env, n_steps=1, policy_kwargs=dict(MATRIX_POLICY)).learn(90, callback=looks)
    assert looks.steps == [40, 80, 90]


def test_every_so_many_steps_off_policy(monkeypatch):
    monkeypatch.setattr("sb3_jepa.callbacks.every_n_rollouts.STEPS_APART", 30)
    looks = Looks()
    model = make_off_policy(train_freq=4)
    model.learn(100, callback=looks)
    assert looks.steps == [32, 64, 96, 100]
    # ... but rollouts if they are asked for
    looks = Looks(every_n_rollouts=10)
    model.learn(100, callback=looks)
    assert looks.steps == [40, 80, 100]


def test_a_second_training_counts_from_where_it_begins(monkeypatch):
    monkeypatch.setattr("sb3_jepa.callbacks.every_n_rollouts.STEPS_APART", 40)
    looks = Looks()
    model = make_off_policy(train_freq=4)
    model.learn(60, callback=looks)
    model.learn(60, callback=looks)
    assert looks.steps == [40, 60, 40, 60]
    # One that goes on does not begin with a picture
    looks = Looks()
    model.learn(60, callback=looks, reset_num_timesteps=False)
    assert looks.steps == [100, 120]


@pytest.mark.parametrize("callback", [PictureCallback, lambda **kwargs: ProbeCallback("state", **kwargs)])
def test_arguments_of_both(callback):
    for number in (0, -1):
        with pytest.raises(
            ValueError, match=f"`every_n_rollouts` must be a positive whole number, or None, got {number}"
        ):
            callback(every_n_rollouts=number)
    model = PPO("JepaPolicy", "CartPole-v1", policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    with pytest.raises(ValueError, match=r"\['shared'\], got \['critic'\]"):
        model.learn(16, callback=callback(encoder="critic"))
    assert model.num_timesteps == 0


# --- Pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training that was looked at twice."""
    folder = tmp_path_factory.mktemp("run")
    env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32)
    model = PPO(JepaPolicy, env, policy_kwargs=SMALL_POLICY, tensorboard_log=str(folder), **SMALL_PPO)
    callback = PictureCallback(every_n_rollouts=3, max_steps=20)
    model.learn(4 * 32, callback=callback)
    return model, callback, folder / "PPO_1"


def test_pictures_reach_tensorboard_every_n_rollouts_and_at_the_end(run):
    _, _, folder = run
    events = read_events(folder)
    assert set(events.Tags()["images"]) == {f"jepa_pictures/{name}" for name in PICTURES}
    for name in PICTURES:
        pictures = events.Images(f"jepa_pictures/{name}")
        assert [picture.step for picture in pictures] == [96, 128], name
        assert pictures[0].encoded_image_string != pictures[1].encoded_image_string
    histograms = events.Histograms("jepa_pictures/embedding")
    assert [histogram.step for histogram in histograms] == [96, 128]


def test_the_histogram_is_of_the_embeddings_of_the_latest_episodes(run):
    model, callback, folder = run
    histogram = read_events(folder).Histograms("jepa_pictures/embedding")[-1].histogram_value
    embeddings = th.cat([LatentModel(model).embed(one.observations) for one in callback._recorder.latest()])
    assert histogram.num == embeddings.numel() > 20 * 16
    assert histogram.sum == pytest.approx(float(embeddings.sum()), rel=1e-3, abs=1e-2)
    assert histogram.max == pytest.approx(float(embeddings.max()), rel=1e-4)


def test_the_projector_has_embeddings_labels_and_thumbnails(run):
    model, callback, folder = run
    config = (folder / "projector_config.pbtxt").read_text()
    for step in ("00096", "00128"):
        assert f'tensor_name: "embedding:{step}"' in config
        assert f'image_path: "{step}/embedding/sprite.png"' in config
        # Width and height
        assert "single_image_dim: 48\n    single_image_dim: 32" in config
    (files,) = folder.glob("00128/*")
    episodes = callback._recorder.latest()
    n_points = sum(len(episode.rewards) + 1 for episode in episodes)
    embeddings = np.loadtxt(files / "tensors.tsv", ndmin=2)
    expected = th.cat([LatentModel(model).embed(episode.observations) for episode in episodes])
    assert np.allclose(embeddings, expected.numpy(), atol=1e-4)
    header, *labels = (files / "metadata.tsv").read_text().splitlines()
    assert header == "episode\tstep"
    assert labels == [f"{n}\t{step}" for n, one in enumerate(episodes) for step in range(len(one.rewards) + 1)]
    sprite = np.asarray(Image.open(files / "sprite.png"))
    n_columns = int(np.ceil(n_points**0.5))
    assert sprite.shape[:2] == (48 * n_columns, 48 * n_columns)
    # The newest frame of the second observation is the second picture
    assert np.array_equal(sprite[:32, 48:96, 0], episodes[0].observations[1, -1])


@pytest.mark.parametrize("shape", [(3, 24, 16), (3, 16, 24)])
def test_thumbnails_may_be_tall_or_wide(shape, tmp_path):
    space = spaces.Box(0, 255, shape, np.uint8)
    env = make_vec_env(lambda: FakeEnv(space), n_envs=1, seed=0)
    model = PPO("JepaPolicy", env, policy_kwargs=MATRIX_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO)
    callback = PictureCallback(max_steps=10)
    model.learn(32, callback=callback)
    assert steps_of(tmp_path / "PPO_1", "attention") == [32]
    (path,) = tmp_path.glob("PPO_1/*/*/sprite.png")
    sprite = np.asarray(Image.open(path))
    config = (tmp_path / "PPO_1" / "projector_config.pbtxt").read_text()
    width, height = (int(line.split()[-1]) for line in config.splitlines() if "single_image_dim" in line)
    # A square of pictures, as TensorBoard wants it, each as large as it is said to be
    assert sprite.shape[0] == sprite.shape[1]
    frames = np.concatenate([episode.observations for episode in callback._recorder.latest()])[:, -1]
    n_columns = sprite.shape[1] // width
    for index, frame in enumerate(frames):
        row, column = divmod(index, n_columns)
        shown = sprite[row * height : (row + 1) * height, column * width : (column + 1) * width, 0]
        assert np.array_equal(shown[:, : shape[2]], frame)
        # Black beside it
        assert (shown[:, shape[2] :] == 0).all()


def test_the_projector_can_be_left_out(tmp_path):
    model = PPO("JepaPolicy", "CartPole-v1", policy_kwargs=SMALL_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO)
    model.learn(48, callback=PictureCallback(projector=False))
    assert steps_of(tmp_path / "PPO_1", "spectrum") == [48]
    assert not list(tmp_path.glob("PPO_1/*.pbtxt"))


def rows_of(folder) -> tuple[list[dict], list[dict], list[str]]:
    """What the tables say, but for how long it took."""
    lines = (folder / "progress.csv").read_text().splitlines()
    header = lines[0].split(",")
    clock = {"time/fps", "time/time_elapsed"}
    csv = [
        {name: value for name, value in zip(header, line.split(","), strict=True) if name not in clock}
        for line in lines
    ]
    rows = [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in clock} for row in rows]
    return csv, rows, without_clock((folder / "log.txt").read_text())


def without_clock(text: str) -> list[str]:
    return [line for line in text.splitlines() if not any(word in line for word in ("fps", "elapsed", "Logging to"))]


@pytest.mark.parametrize(("off_policy", "every"), [(False, 3), (True, 25)])
def test_tables_and_the_training_are_what_they_are_without_it(tmp_path, capsys, off_policy, every):
    tables, said, policies = [], [], []
    for name, callback in (("with", [PictureCallback(every_n_rollouts=every, max_steps=20)]), ("without", [])):
        if off_policy:
            model = make_off_policy(train_freq=4)
            callback = [JepaCallback(), *callback]
        else:
            env = make_vec_env(lambda: FakeEnv(OBSERVATIONS["image"]), n_envs=2, seed=0)
            model = PPO("JepaPolicy", env, policy_kwargs=MATRIX_POLICY, **SMALL_PPO)
        model.set_logger(configure(str(tmp_path / name), ["stdout", "log", "csv", "json", "tensorboard"]))
        model.learn(220, callback=callback, log_interval=1)
        tables.append(rows_of(tmp_path / name))
        said.append(without_clock(capsys.readouterr().out))
        policies.append(model.policy.state_dict())
    assert tables[0] == tables[1]
    assert said[0] == said[1]
    assert len(said[0]) > 20
    assert not any("pictures" in line for line in said[0])
    assert read_events(tmp_path / "with").Tags()["images"]
    assert not read_events(tmp_path / "without").Tags()["images"]
    for name, value in policies[0].items():
        assert th.equal(value, policies[1][name]), name


def test_without_an_output_for_pictures_a_warning_is_given_and_nothing_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(monitors, "Portrait", None)
    model = PPO("JepaPolicy", "CartPole-v1", policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["csv", "log", "json"]))
    with pytest.warns(UserWarning, match="`tensorboard_log`"):
        model.learn(48, callback=PictureCallback(every_n_rollouts=1))
    assert model.num_timesteps == 48


@pytest.mark.parametrize("observation", ["frames of Gymnasium", "channels-last image", "MultiDiscrete", "Dict"])
def test_of_every_kind_of_observation(observation, tmp_path):
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS[observation]), n_envs=2, seed=0)
    model = PPO("JepaPolicy", env, policy_kwargs=MATRIX_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO)
    model.learn(48, callback=PictureCallback(max_steps=10))
    events = read_events(tmp_path / "PPO_1")
    assert set(events.Tags()["images"]) == {f"jepa_pictures/{name}" for name in PICTURES}
    has_frames = observation != "MultiDiscrete"
    assert len(list(tmp_path.glob("PPO_1/*/*/sprite.png"))) == has_frames
    assert len(list(tmp_path.glob("PPO_1/*/*/tensors.tsv"))) == 1


@pytest.mark.parametrize("algorithm", [A2C, RecurrentPPO])
def test_of_other_algorithms(algorithm, tmp_path):
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS["vector"], spaces.Box(-0.1, 0.1, (2,))), n_envs=2, seed=0)
    kwargs = {} if algorithm is A2C else dict(batch_size=16)
    model = algorithm(
        "JepaPolicy", env, n_steps=8, policy_kwargs=dict(SMALL_POLICY), tensorboard_log=str(tmp_path), seed=0, **kwargs
    )
    callback = KeepsPortraits()
    model.learn(64, callback=callback)
    assert steps_of(tmp_path / f"{algorithm.__name__}_1", "unrolled") == callback.steps == [64]
    # What was clipped is what was executed
    (episodes,) = callback.episodes
    actions = np.concatenate([episode.actions for episode in episodes])
    assert np.abs(actions).max() == pytest.approx(0.1)
    assert [len(episode.actions) for episode in episodes] == [5] * 6


def test_of_alternating_training_by_the_name_of_the_encoder(tmp_path):
    model = make_off_policy("SAC", tensorboard_log=str(tmp_path))
    callbacks = [KeepsPortraits(encoder="critic"), JepaCallback(encoders=["critic"])]
    model.learn(100, callback=callbacks)
    assert set(read_events(tmp_path / "SAC_1").Tags()["images"]) == {f"jepa_pictures/{name}" for name in PICTURES}
    # An encoder that has no predictor can be drawn too, but for what it expects
    model.learn(50, callback=PictureCallback(encoder="actor", projector=False))
    names = set(read_events(tmp_path / "SAC_2").Tags()["images"])
    assert names == {f"jepa_pictures/{name}" for name in PICTURES if name != "unrolled"}


def test_normalised_observations_are_drawn_as_the_policy_gets_them(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0), clip_obs=0.5)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO)
    callback = KeepsPortraits()
    model.learn(128, callback=callback)
    (episodes,) = callback.episodes
    # The last observations of episodes too
    assert np.abs(np.concatenate([episode.observations for episode in episodes])).max() == 0.5
    for episode in episodes:
        assert (episode.rewards != 1.0).any()


def test_episodes_are_those_of_the_first_environment(tmp_path):
    model = PPO(
        "JepaPolicy", make_counting_env(), policy_kwargs=SMALL_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO
    )
    callback = KeepsPortraits(max_steps=10)
    model.learn(96, callback=callback)
    (episodes,) = callback.episodes
    assert sum(len(episode.actions) for episode in episodes) >= 10
    for episode in episodes:
        numbers, counts, times = episode.observations[:, :, 0, 0].T
        assert set(numbers) == {0}
        assert len(set(counts)) == 1
        assert times.tolist() == list(range(EPISODE_LENGTHS[0][counts[0] % 3] + 1))


def test_a_second_training_ends_with_a_picture_too(tmp_path):
    model = PPO("JepaPolicy", "CartPole-v1", policy_kwargs=SMALL_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO)
    callback = KeepsPortraits()
    model.learn(64, callback=callback)
    model.learn(32, callback=callback)
    assert callback.steps == [64, 32]
    # rl-baselines3-zoo ends a training twice
    callback.on_training_end()
    assert callback.steps == [64, 32]


def test_patches_are_as_large_as_they_are(tmp_path, monkeypatch):
    # 36 pixels are three patches of 16, and 12 are none
    drawn = []
    draw = monitors.Portrait._attention_picture
    monkeypatch.setattr(monitors.Portrait, "_attention_picture", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    env = make_vec_env(lambda: FakeEnv(spaces.Box(0, 255, (1, 36, 50), np.uint8)), n_envs=2, seed=0)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO)
    model.learn(48, callback=PictureCallback(projector=False))
    (figure,) = drawn
    _, overlay = figure.axes[0].images
    assert overlay.get_extent() == [-0.5, 63.5, 47.5, -0.5]


def test_arguments_of_pictures():
    for name in ("horizon", "max_steps"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive whole number, got 0"):
            PictureCallback(**{name: 0})


def test_without_matplotlib_it_objects_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-jepa\[plot\]"'):
        PictureCallback()
