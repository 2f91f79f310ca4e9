import csv
import pathlib
import shutil

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_jepa import (
    PPO,
    JepaCallback,
    JepaExtractor,
    MaskedPrediction,
    NextLatentPrediction,
    Recordings,
    Salt,
    SaltTeacher,
    TJepa,
    load_encoder,
    pretrain,
    read_encoder,
)
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.extractors.finding import find_encoders
from sb3_jepa.pretrain.validation import Validation
from tests.conftest import SMALL_PPO, FakeEnv

SPACE = spaces.Box(-5, 5, (6,))
IMAGE = spaces.Box(0, 255, (3, 16, 16), np.uint8)
EXTRACTOR = dict(embed_dim=8, num_heads=2, depth=1, standardize_frames=64)
SMALL = dict(
    objective_class=TJepa,
    objective_kwargs=dict(predictor_dim=8, predictor_depth=1, predictor_heads=2),
    features_extractor_kwargs=EXTRACTOR,
    n_updates=6,
    eval_freq=2,
    batch_size=32,
    device="cpu",
)


def make_recordings(n_episodes: int = 10, length: int = 20) -> Recordings:
    """Numbers of which each depends on two others, in episodes."""
    random = np.random.default_rng(0)
    causes = random.normal(size=(n_episodes * length, 2))
    rows = (causes @ random.normal(size=(2, 6))).astype(np.float32)
    return Recordings(SPACE, rows.clip(-5, 5), np.repeat(np.arange(n_episodes), length))


def make_images(n_rows: int = 80) -> Recordings:
    images = np.random.default_rng(0).integers(0, 256, (n_rows, 3, 16, 16), dtype=np.uint8)
    return Recordings(IMAGE, images, np.arange(n_rows) // 10)


def rows_of(folder: pathlib.Path) -> list[dict[str, str]]:
    """Of the table of curves, whatever the order of its columns."""
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state_of(folder: pathlib.Path) -> dict[str, th.Tensor]:
    return read_encoder(folder).state_dict()


def assert_same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(th.equal(value, other[name]) for name, value in one.items())


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, after: int) -> None:
    """Stop after so many updates of a pretraining, which its optimiser has counted."""
    step = th.optim.AdamW.step

    def fail(self, *args):
        if max((int(state["step"]) for state in self.state.values()), default=0) == after:
            raise Interrupted
        return step(self, *args)

    monkeypatch.setattr(th.optim.AdamW, "step", fail)


def test_an_environment_is_recorded_in_the_folder(tmp_path):
    env = make_vec_env(lambda: FakeEnv(SPACE), n_envs=2)
    pretrain(env, tmp_path, n_steps=60, **SMALL)
    assert np.load(tmp_path / "recordings" / "observations.npy").shape == (60, 6)
    with pytest.raises(ValueError, match="n_rows is 60 there and 80 here"):
        pretrain(env, tmp_path, n_steps=80, **SMALL)


def test_random_numbers_of_others_are_untouched(tmp_path):
    env = make_vec_env(lambda: FakeEnv(SPACE), n_envs=2)
    model = stable_baselines3.PPO("MlpPolicy", env, device="cpu", n_steps=8)
    th.manual_seed(7)
    np.random.seed(7)
    before, numpy_before = th.get_rng_state(), np.random.get_state()[1].copy()
    pretrain(make_recordings(), tmp_path / "recordings", **SMALL)
    pretrain(env, tmp_path / "env", n_steps=40, policy=model, **SMALL)
    assert th.equal(th.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def script_measurements(monkeypatch, **curves: list[float]) -> list[dict[str, th.Tensor]]:
    """Let the evaluations, of the untrained encoder on, find these numbers; the encoders that they saw."""
    seen = []

    def measure(self, encoder, objective, result):
        index = len(seen)
        seen.append({name: value.clone() for name, value in result.state_dict().items()})
        found = dict(validation_loss=1.0, probe_r2=0.5, embedding_variance=1.0, effective_rank=1.0)
        return {**found, **{name: values[index] for name, values in curves.items()}}

    monkeypatch.setattr(Validation, "measure", measure)
    return seen


@pytest.mark.parametrize(
    ("objective_class", "criterion", "kept_by"),
    [
        (TJepa, None, "probe_r2"),
        (SaltTeacher, None, "validation_loss"),
        (TJepa, "validation_loss", "validation_loss"),
        (SaltTeacher, "probe_r2", "probe_r2"),
    ],
)
def test_the_best_encoder_is_kept_and_not_the_last(objective_class, criterion, kept_by, monkeypatch, tmp_path):
    # The untrained one would be the best by either
    seen = script_measurements(monkeypatch, validation_loss=[0.1, 0.9, 0.4, 0.8], probe_r2=[0.99, 0.8, 0.1, 0.3])
    settings = {**SMALL, "objective_class": objective_class, "criterion": criterion}
    pretrain(make_recordings(), tmp_path, **settings)
    index = dict(probe_r2=1, validation_loss=2)[kept_by]
    assert_same(state_of(tmp_path), seen[index])
    described = describe_encoder(tmp_path)
    assert described["n_updates"] == 2 * index
    assert described["criterion"] == kept_by
    assert described["objective_class"] == objective_class.__name__


def test_patience(monkeypatch, tmp_path):
    losses = [5.0, 3.0, 4.0, 2.0, 2.0, 2.5, 1.0, 0.9]
    seen = script_measurements(monkeypatch, validation_loss=losses)
    settings = {**SMALL, "objective_class": SaltTeacher, "n_updates": 100, "patience": 2}
    pretrain(make_recordings(), tmp_path, **settings)
    # Two that found nothing better, in a row
    assert [row["time/updates"] for row in rows_of(tmp_path)] == ["0", "2", "4", "6", "8", "10"]
    assert_same(state_of(tmp_path), seen[3])
    pretrain(make_recordings(), tmp_path, **settings)
    assert len(seen) == 6


def test_the_momentum_copy_is_what_is_kept(tmp_path):
    # Measured at the end alone: what is kept is of the last checkpoint
    settings = {**SMALL, "eval_freq": 6}
    for objective_class, is_copy in ((TJepa, True), (SaltTeacher, False)):
        pretrain(make_recordings(), tmp_path, **{**settings, "objective_class": objective_class})
        checkpoint = th.load(tmp_path / "checkpoint.pth", weights_only=True)
        prefix = "target_encoder.encoder."
        copied = {name.removeprefix(prefix): value for name, value in checkpoint["objective"].items() if prefix in name}
        assert_same(state_of(tmp_path), copied if is_copy else checkpoint["encoder"])
        shutil.rmtree(tmp_path)


def test_an_encoder_goes_into_models(tmp_path):
    path = pretrain(make_recordings(), tmp_path / "new" / "folder", **SMALL)
    encoder = read_encoder(path)
    assert not encoder.training
    assert_same(encoder.state_dict(), state_of(path.parent))
    # Nothing is left to measure
    assert encoder.n_inputs_to_measure == 0
    env = make_vec_env(lambda: FakeEnv(SPACE), n_envs=2, seed=0)
    policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16])
    for freeze in (True, False):
        model = PPO("JepaPolicy", env, policy_kwargs=policy_kwargs, **SMALL_PPO)
        load_encoder(model, path, freeze=freeze)
        assert_same(model.policy.features_extractor.state_dict(), encoder.state_dict())
        model.learn(32)
        own = model.policy.features_extractor.state_dict()
        assert all(th.equal(value, own[name]) for name, value in encoder.state_dict().items()) == freeze
    stock = dict(policy_kwargs, features_extractor_class=JepaExtractor)
    dqn = stable_baselines3.DQN("MlpPolicy", env, policy_kwargs=stock, learning_starts=4, buffer_size=100, device="cpu")
    load_encoder(dqn, path)
    assert_same(dqn.policy.q_net_target.features_extractor.state_dict(), encoder.state_dict())
    dqn.learn(40, callback=JepaCallback(objective_class=TJepa, objective_kwargs=SMALL["objective_kwargs"], n_updates=1))
    assert find_encoders(dqn.policy)


def test_validation_sees_other_episodes_and_always_the_same(monkeypatch, tmp_path):
    recordings, taken = make_recordings(), []
    take = recordings.take
    monkeypatch.setattr(recordings, "take", lambda rows: (taken.append(rows), take(rows))[1])
    # Five batches of 32 rows and a rest
    pretrain(recordings, tmp_path, **{**SMALL, "n_updates": 10})
    # What is measured comes in order, and what is learned from does not
    learned = [rows for rows in taken if (np.diff(rows) < 0).any()]
    assert len(learned) == 10
    epochs = [np.concatenate(learned[:5]), np.concatenate(learned[5:])]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 5 * 32
    assert not np.array_equal(*epochs)
    put_aside = set(range(10)) - set(recordings.episodes[np.concatenate(epochs)].tolist())
    assert put_aside
    only_seen = [rows for rows in taken if set(recordings.episodes[rows].tolist()) <= put_aside]
    assert len(only_seen) >= 6
    assert len({tuple(rows) for rows in only_seen}) == 1


def test_fewer_observations_than_a_minibatch(tmp_path):
    pretrain(make_recordings(4, 5), tmp_path, **{**SMALL, "batch_size": 1000, "validation_fraction": 0.3})
    assert len(rows_of(tmp_path)) == 4


def test_fewer_observations_than_the_statistics_want(tmp_path):
    recordings = make_recordings(4, 5)
    encoder = read_encoder(pretrain(recordings, tmp_path, **SMALL))
    rows, _ = recordings.split(0.1, seed=0)
    (statistics,) = encoder.standardizations
    assert len(rows) < EXTRACTOR["standardize_frames"]
    assert statistics.mean.numpy() == pytest.approx(recordings.observations[rows].mean(axis=0), abs=1e-4)
    assert statistics.deviation.numpy() == pytest.approx(recordings.observations[rows].std(axis=0), rel=1e-4)
    # A model that learns on measures nothing else
    assert encoder.n_inputs_to_measure == 0


def test_labels_are_what_the_probe_reads(tmp_path):
    recordings = make_recordings(40)
    # One column can be read, and noise cannot
    easy, noise = recordings.observations[:, :1], np.random.default_rng(1).normal(size=(len(recordings), 1))
    r2 = []
    for name, labels in (("easy", easy), ("noise", noise)):
        pretrain(recordings, tmp_path / name, labels=labels, **SMALL)
        r2.append(float(rows_of(tmp_path / name)[0]["jepa/probe_r2"]))
    assert r2[0] > 0.5
    assert r2[1] < 0.2
    # They are not learned from
    first, second = (rows_of(tmp_path / name) for name in ("easy", "noise"))
    assert [row["jepa/validation_loss"] for row in first] == [row["jepa/validation_loss"] for row in second]


class NotAnEncoder(nn.Module):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_updates=0), "`n_updates` must be a positive whole number, got 0"),
        (dict(batch_size=0), "`batch_size` must be a positive whole number, got 0"),
        (dict(eval_freq=-1), "`eval_freq` must be a positive whole number, got -1"),
        (dict(learning_rate=0.0), "`learning_rate` must be a finite number above 0, got 0.0"),
        (dict(learning_rate=float("inf")), "`learning_rate` must be a finite number above 0, got inf"),
        (dict(max_grad_norm=0.0), "`max_grad_norm` must be a finite number above 0"),
        (dict(warmup=1.0), "`warmup` must be a finite number of at least 0 and below 1, got 1.0"),
        (dict(patience=0), "`patience` must be a positive whole number, or None, got 0"),
        (dict(criterion="reward"), "`criterion` must be .*, or None, got 'reward'"),
        (dict(validation_fraction=1.0), "`validation_fraction` must be a finite number above 0 and below 1"),
        (
            dict(objective_class=NextLatentPrediction),
            "`source` must have actions for `objective_class=NextLatentPrediction`",
        ),
        (dict(labels=np.zeros((3, 1))), r"`labels` must have a row for each of the 200 observations.*\(3, 1\)"),
        (dict(labels=np.zeros(200)), r"`labels` must have a row for each.*\(200,\)"),
        (dict(labels=np.zeros((200, 2))), "what the probe is to read does not vary"),
        (dict(features_extractor_kwargs=dict(frozen=True)), "what is frozen learns nothing"),
        (
            dict(features_extractor_kwargs=dict(EXTRACTOR, compile_kwargs=dict(backend=print))),
            r"`features_extractor_kwargs\['compile_kwargs'\]\['backend'\]` must be a number, .* got <built-in",
        ),
        (dict(objective_kwargs=dict(target="frozen")), "needs an encoder as `teacher`"),
        (dict(objective_kwargs=dict(prediction_coef=0.0, variance_coef=1.0)), "a positive `prediction_coef`"),
        (dict(objective_kwargs=dict(teacher=NotAnEncoder()), objective_class=Salt), "got NotAnEncoder"),
        (dict(source="nowhere"), "`source` must be Recordings, .*'nowhere'"),
        (dict(n_steps=5), "Recordings are taken as they are.*n_steps"),
        (
            dict(source=Recordings(spaces.Discrete(4), np.arange(4), np.arange(4))),
            "at least 2 tokens",
        ),
        (
            dict(source=make_images(), features_extractor_kwargs=dict(EXTRACTOR, patch_size=4, token_budget=3)),
            "no `token_budget`",
        ),
        (
            dict(source=Recordings(SPACE, np.full((40, 6), np.nan, np.float32), np.arange(40))),
            "The prediction loss is nan after 0 updates: the observations hold NaN",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_learned(change, message, monkeypatch, tmp_path):
    monkeypatch.setattr(th.optim.AdamW, "step", lambda *_: pytest.fail("it has learned"))
    with pytest.raises(ValueError, match=message):
        pretrain(**{**SMALL, "source": make_recordings(), "folder": tmp_path, **change})


def test_missing_numbers_are_learned_around(tmp_path):
    recordings = make_recordings()
    recordings.observations[np.random.default_rng(1).random((200, 6)) < 0.2] = np.nan
    settings = {**SMALL, "features_extractor_kwargs": dict(EXTRACTOR, missing_as_nan=True)}
    pretrain(recordings, tmp_path, **settings)
    assert all(value.isfinite().all() for value in state_of(tmp_path).values())


def test_the_progress_bar(monkeypatch, tmp_path):
    bars = []

    class Bar:
        def __init__(self, total, initial, unit):
            self.total, self.n = total, initial
            bars.append(self)

        def update(self):
            self.n += 1

        def close(self):
            self.is_closed = True

    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", Bar)
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(make_recordings(), tmp_path, progress_bar=True, **SMALL)
    pretrain(make_recordings(), tmp_path, progress_bar=True, **SMALL)
    assert [bar.n for bar in bars] == [5, 6]
    assert all(bar.is_closed and bar.total == 6 for bar in bars)
    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", None)
    with pytest.raises(ImportError, match=r"sb3-jepa\[examples\]"):
        pretrain(make_recordings(), tmp_path, progress_bar=True, **SMALL)


def test_the_learning_rate_rises_and_falls(monkeypatch, tmp_path):
    rates: list[float] = []
    step = th.optim.AdamW.step
    monkeypatch.setattr(
        th.optim.AdamW, "step", lambda self, *args: (rates.append(self.param_groups[0]["lr"]), step(self, *args))[1]
    )
    settings = dict(SMALL, learning_rate=0.1, eval_freq=10)
    pretrain(make_recordings(), tmp_path / "warm", **{**settings, "n_updates": 10, "warmup": 0.4})
    falling = [0.05 * (1 + np.cos(np.pi * (n + 0.5) / 6)) for n in range(6)]
    assert rates == pytest.approx([0.0125, 0.0375, 0.0625, 0.0875, *falling])
    rates.clear()
    pretrain(make_recordings(), tmp_path / "cold", **{**settings, "n_updates": 4, "warmup": 0.0})
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * (n + 0.5) / 4)) for n in range(4)])
    # Prolonged, it goes on at the same place of the longer schedule
    rates.clear()
    pretrain(make_recordings(), tmp_path / "cold", **{**settings, "n_updates": 8, "warmup": 0.0})
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * (n + 0.5) / 8)) for n in range(4, 8)])


def test_images_are_learned_from_as_they_are_stored(tmp_path):
    settings = {
        **SMALL,
        "objective_class": MaskedPrediction,
        "features_extractor_kwargs": dict(EXTRACTOR, patch_size=4),
    }
    path = pretrain(make_images(), tmp_path, **settings)
    encoder = read_encoder(path)
    images = th.as_tensor(make_images().observations[:4])
    with th.no_grad():
        assert th.allclose(encoder(images), encoder(images / 255.0), atol=1e-5)
