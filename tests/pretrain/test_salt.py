import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, Salt, load_encoder, pretrain_salt, read_encoder
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.parts.targets import TargetEncoder
from sb3_jepa.pretrain import teacher_budget
from tests.conftest import SMALL_PPO, FakeEnv
from tests.pretrain.test_training import (
    EXTRACTOR,
    SMALL,
    SPACE,
    Interrupted,
    assert_same,
    interrupt,
    make_recordings,
    rows_of,
    state_of,
)

SMALL_SALT = {name: value for name, value in SMALL.items() if name != "objective_class"} | dict(n_updates=12)
LARGER = dict(EXTRACTOR, embed_dim=12, depth=2)


def test_an_encoder_learns_from_a_teacher_of_its_own(tmp_path):
    path = pretrain_salt(make_recordings(), tmp_path, teacher_features_extractor_kwargs=LARGER, **SMALL_SALT)
    described, teacher_described = (describe_encoder(folder) for folder in (tmp_path, tmp_path / "teacher"))
    assert (described["objective_class"], teacher_described["objective_class"]) == ("Salt", "SaltTeacher")
    # A sixth of the updates are the teacher's
    assert [rows_of(folder)[-1]["time/updates"] for folder in (tmp_path / "teacher", tmp_path)] == ["2", "10"]
    teacher = read_encoder(tmp_path / "teacher")
    assert teacher.features_dim == 12
    assert described["teacher"] == teacher_described["id"] == TargetEncoder(teacher).id
    model = PPO(
        "JepaPolicy",
        make_vec_env(lambda: FakeEnv(SPACE)),
        policy_kwargs=dict(
            features_extractor_kwargs=EXTRACTOR,
            objective_class=Salt,
            objective_kwargs=dict(SMALL["objective_kwargs"], teacher=teacher),
        ),
        **SMALL_PPO,
    )
    load_encoder(model, path)
    assert_same(model.policy.features_extractor.state_dict(), state_of(tmp_path))
    assert_same(model.policy.objective.target_encoder.encoder.state_dict(), teacher.state_dict())


def test_each_stage_goes_on_where_it_was(monkeypatch, tmp_path):
    pretrain_salt(make_recordings(), tmp_path / "whole", teacher_updates=2, **SMALL_SALT)
    # In the first stage, and in the second one
    for after in (1, 7):
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            with pytest.raises(Interrupted):
                pretrain_salt(make_recordings(), tmp_path / "interrupted", teacher_updates=2, **SMALL_SALT)
    pretrain_salt(make_recordings(), tmp_path / "interrupted", teacher_updates=2, **SMALL_SALT)
    for part in ("teacher", "."):
        whole, interrupted = tmp_path / "whole" / part, tmp_path / "interrupted" / part
        assert_same(state_of(whole), state_of(interrupted))
        assert rows_of(whole) == rows_of(interrupted)
    with pytest.raises(ValueError, match="n_updates is 2 there and 1 here"):
        pretrain_salt(make_recordings(), tmp_path / "whole", teacher_updates=1, **SMALL_SALT)


def test_an_environment_is_recorded_once(tmp_path):
    pretrain_salt(make_vec_env(lambda: FakeEnv(SPACE), n_envs=2), tmp_path, n_steps=80, **SMALL_SALT)
    assert np.load(tmp_path / "recordings" / "observations.npy").shape == (80, 6)
    assert not (tmp_path / "teacher" / "recordings").exists()


def test_the_budget_of_a_teacher(tmp_path):
    assert [teacher_budget(n) for n in (2, 6, 11, 12, 2000)] == [1, 1, 1, 2, 333]
    with pytest.warns(UserWarning, match=r"`teacher_updates=4` is more than a sixth of `n_updates`, 2"):
        pretrain_salt(make_recordings(), tmp_path / "much", teacher_updates=4, **SMALL_SALT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pretrain_salt(make_recordings(), tmp_path / "enough", teacher_updates=2, **SMALL_SALT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_updates=1), "`n_updates` must be a whole number of at least 2, got 1"),
        (dict(teacher_updates=0), "`teacher_updates` must be a positive whole number, or None"),
        (dict(teacher_updates=12), "`teacher_updates` must leave some of the 12"),
        (dict(batch_size=0), "`batch_size` must be a positive whole number"),
        (dict(features_extractor_kwargs=dict(EXTRACTOR, num_heads=3)), "`num_heads` must divide"),
        (dict(objective_kwargs=dict(prediction_loss="l3")), "`prediction_loss` must be "),
        (dict(n_steps=5), "Recordings are taken as they are"),
    ],
)
def test_bad_arguments_are_refused_before_the_teacher_learns(change, message, monkeypatch, tmp_path):
    monkeypatch.setattr(th.optim.AdamW, "step", lambda *_: pytest.fail("it has learned"))
    before = th.get_rng_state()
    with pytest.raises(ValueError, match=message):
        pretrain_salt(make_recordings(), tmp_path, **{**SMALL_SALT, **change})
    assert th.equal(th.get_rng_state(), before)
