import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import (
    PPO,
    JepaCallback,
    JepaExtractor,
    JepaPolicy,
    JepaRolloutBuffer,
    Recordings,
    Salt,
    SaltTeacher,
    pretrain,
    read_encoder,
)
from sb3_jepa.alternating.learner import find_objectives
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.extractors.teachers import TeacherFile
from tests.conftest import SMALL_EXTRACTOR, SMALL_PPO

SPACE = spaces.Box(-np.inf, np.inf, (4,))
# Much larger than all the rest, and of other sizes
TEACHER = dict(embed_dim=128, num_heads=2, depth=2, standardize_frames=32)
SMALL_SALT = dict(predictor_dim=8, predictor_depth=1, predictor_heads=2)
SMALL_PRETRAINING = dict(n_updates=2, eval_freq=2, device="cpu")


def make_recordings() -> Recordings:
    observations = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    return Recordings(SPACE, observations, np.arange(80) // 8)


@pytest.fixture
def folder(tmp_path):
    """Of a teacher."""
    path = tmp_path / "teacher"
    pretrain(make_recordings(), path, SaltTeacher, features_extractor_kwargs=TEACHER, **SMALL_PRETRAINING)
    return path


def make_env():
    return make_vec_env("CartPole-v1", n_envs=2, seed=0)


def policy_kwargs(teacher) -> dict:
    return dict(
        features_extractor_kwargs=SMALL_EXTRACTOR,
        net_arch=[16],
        objective_class=Salt,
        objective_kwargs=dict(SMALL_SALT, teacher=teacher),
    )


def make_joint(teacher) -> PPO:
    return PPO("JepaPolicy", make_env(), policy_kwargs=policy_kwargs(teacher), **SMALL_PPO)


def make_stock() -> stable_baselines3.DQN:
    kwargs = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16])
    return stable_baselines3.DQN(
        "MlpPolicy", make_env(), policy_kwargs=kwargs, learning_starts=32, batch_size=16, seed=0, device="cpu"
    )


def make_callback(teacher) -> JepaCallback:
    return JepaCallback(objective_class=Salt, objective_kwargs=dict(SMALL_SALT, teacher=teacher), n_updates=1)


def teacher_of(model) -> dict[str, th.Tensor]:
    ((objective, _),) = find_objectives(model).values()
    return {name: value.clone() for name, value in objective.target_encoder.encoder.state_dict().items()}


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(th.equal(value, other[name]) for name, value in one.items())


def data_of(path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("data")


@pytest.mark.parametrize("is_file", [False, True])
def test_a_teacher_was_stored_twice(is_file, folder, tmp_path):
    path = next(folder.glob("encoder.[sp]*")) if is_file else folder
    n_bytes = next(folder.glob("encoder.[sp]*")).stat().st_size
    model = make_joint(path).learn(64)
    model.save(tmp_path / "described")
    other = make_joint(read_encoder(folder)).learn(64)
    other.save(tmp_path / "module")
    # It is what a model learns with that was given the module
    assert_same(model.policy.state_dict(), other.policy.state_dict())
    described, module = (len(data_of(tmp_path / f"{name}.zip")) for name in ("described", "module"))
    assert described < 0.1 * n_bytes < n_bytes < module
    assert (tmp_path / "described.zip").stat().st_size < (tmp_path / "module.zip").stat().st_size - n_bytes
    # The user's own arguments are as they were
    kwargs = policy_kwargs(path)
    PPO("JepaPolicy", make_env(), policy_kwargs=kwargs)
    assert kwargs == policy_kwargs(path)


def test_a_model_outlives_the_folder_of_its_teacher(folder, tmp_path):
    model = make_joint(str(folder)).learn(64)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy.pth")
    observations = model.get_env().reset()
    expected = model.predict(observations, deterministic=True)[0]
    teacher = read_encoder(folder).state_dict()
    shutil.rmtree(folder)
    loaded = PPO.load(tmp_path / "model", env=make_env(), device="cpu")
    for policy in (loaded.policy, JepaPolicy.load(tmp_path / "policy.pth", device="cpu")):
        assert_same(policy.state_dict(), model.policy.state_dict())
        assert np.array_equal(policy.predict(observations, deterministic=True)[0], expected)
    loaded.learn(64)
    assert_same(teacher_of(loaded), teacher)
    assert all(value.isfinite().all() for value in loaded.policy.state_dict().values())
    loaded.save(tmp_path / "again")
    assert_same(teacher_of(PPO.load(tmp_path / "again")), teacher)
    # What cannot be a teacher any more is none by mistake
    with pytest.raises(ValueError, match=rf"`path` must be an encoder .*, got {folder}"):
        make_joint(str(folder))
    new = PPO("JepaPolicy", make_env(), policy_kwargs=loaded.policy_kwargs)
    assert teacher_of(new)["encoder.class_token"].isnan().all()


def test_a_model_keeps_its_teacher_where_the_folder_has_another(folder, tmp_path):
    model = make_joint(folder)
    model.save(tmp_path / "model")
    before = teacher_of(model)
    shutil.rmtree(folder)
    small = dict(TEACHER, embed_dim=16)
    for kwargs in (TEACHER, small):
        pretrain(make_recordings(), folder, SaltTeacher, features_extractor_kwargs=kwargs, seed=1, **SMALL_PRETRAINING)
        assert_same(teacher_of(PPO.load(tmp_path / "model")), before)
        shutil.rmtree(folder)
    # Nor does it need one that is broken
    folder.mkdir()
    pathlib.Path(model.policy.objective_kwargs["teacher"].path).write_text("something else")
    assert_same(teacher_of(PPO.load(tmp_path / "model")), before)


def test_a_broken_teacher_is_refused_at_once(folder, tmp_path):
    next(folder.glob("encoder.[sp]*")).write_bytes(b"")
    for use in (
        lambda: make_joint(folder),
        lambda: make_stock().learn(60, callback=make_callback(folder)),
        lambda: pretrain("CartPole-v1", tmp_path / "new", Salt, dict(teacher=folder), n_steps=50),
    ):
        with pytest.raises(ValueError, match=r"encoder\.\w+ must be an encoder .* and is empty"):
            use()
    assert not (tmp_path / "new").exists()


def test_encoders_that_are_trained_in_turn_keep_theirs_too(folder, tmp_path):
    model = make_stock().learn(60, callback=make_callback(folder))
    model.save(tmp_path / "model")
    with_module = make_stock().learn(60, callback=make_callback(read_encoder(folder)))
    assert_same(model.policy.state_dict(), with_module.policy.state_dict())
    with_module.save(tmp_path / "module")
    n_bytes = next(folder.glob("encoder.[sp]*")).stat().st_size
    assert len(data_of(tmp_path / "model.zip")) < len(data_of(tmp_path / "module.zip")) - n_bytes
    teacher = read_encoder(folder).state_dict()
    shutil.rmtree(folder)
    loaded = stable_baselines3.DQN.load(tmp_path / "model", env=make_env(), device="cpu")
    assert_same(teacher_of(loaded), teacher)
    loaded.learn(60, callback=make_callback(folder))
    assert_same(teacher_of(loaded), teacher)
    assert all(value.isfinite().all() for value in loaded.policy.state_dict().values())
    with pytest.raises(ValueError, match="`path` must be an encoder"):
        make_stock().learn(60, callback=make_callback(folder))


def test_pretraining_takes_a_path(folder, tmp_path):
    paths = [
        pretrain(
            make_recordings(),
            tmp_path / name,
            Salt,
            dict(SMALL_SALT, teacher=teacher),
            SMALL_EXTRACTOR,
            **SMALL_PRETRAINING,
        )
        for name, teacher in (("a", folder), ("b", str(folder)), ("c", read_encoder(folder)))
    ]
    for path in paths[1:]:
        assert_same(read_encoder(path).state_dict(), read_encoder(paths[0]).state_dict())
        assert describe_encoder(path) == describe_encoder(paths[0])
    with pytest.raises(ValueError, match=r"`path` must be an encoder"):
        pretrain("CartPole-v1", tmp_path / "d", Salt, dict(teacher="nowhere"), n_steps=50)
    assert not (tmp_path / "d").exists()


def test_a_description_is_small_and_draws_no_random_numbers(folder):
    description = pickle.loads(pickle.dumps(TeacherFile(folder)))
    assert len(pickle.dumps(description)) < 2000
    before = th.get_rng_state()
    assert_same(description.make().state_dict(), read_encoder(folder).state_dict())
    assert th.equal(th.get_rng_state(), before)


def test_stock_algorithms_with_a_joint_policy(folder):
    kwargs = dict(rollout_buffer_class=JepaRolloutBuffer, n_steps=16, batch_size=16, device="cpu")
    model = stable_baselines3.PPO(JepaPolicy, make_env(), policy_kwargs=policy_kwargs(folder), **kwargs)
    model.learn(64, callback=JepaCallback())
    assert_same(teacher_of(model), read_encoder(folder).state_dict())
