"""Masked prediction beside a policy: jointly, and in turn with the algorithm."""

import shutil

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_jepa import (
    A2C,
    PPO,
    DmtJepa,
    JepaCallback,
    JepaExtractor,
    LatentModel,
    MaskedPrediction,
    PictureCallback,
    RecurrentPPO,
    Salt,
    SaltTeacher,
    TJepa,
    VecSurprise,
    load_encoder,
    read_encoder,
    save_encoder,
)
from sb3_jepa.extractors.files import write_encoder
from tests.conftest import SMALL_PPO, FakeEnv

VECTOR = spaces.Box(-1, 1, (6,))
IMAGE = spaces.Box(0, 255, (3, 16, 16), np.uint8)
EXTRACTOR = dict(embed_dim=16, num_heads=2, depth=1, patch_size=4, standardize_frames=32)
SMALL_PREDICTOR = dict(predictor_dim=16, predictor_depth=1)
OFF_POLICY = dict(learning_starts=20, buffer_size=200, batch_size=16, train_freq=8, seed=0, device="cpu")
METHODS = {"i-jepa": MaskedPrediction, "t-jepa": TJepa, "salt-teacher": SaltTeacher, "salt": Salt, "dmt-jepa": DmtJepa}


def make_env(space: spaces.Space = VECTOR):
    return make_vec_env(lambda: FakeEnv(space), n_envs=2, seed=0)


def write_teacher(folder, space: spaces.Space) -> None:
    th.manual_seed(1)
    kwargs = dict(EXTRACTOR, embed_dim=24)
    write_encoder(JepaExtractor(space, **kwargs), folder / "encoder", kwargs)


@pytest.fixture
def make_kwargs(tmp_path):
    """What a method needs, with a teacher whose folder is gone."""

    def make(method: str, space: spaces.Space = VECTOR) -> dict:
        objective_kwargs: dict = dict(SMALL_PREDICTOR)
        if method == "salt":
            write_teacher(tmp_path / "teacher", space)
            objective_kwargs["teacher"] = read_encoder(tmp_path / "teacher")
            shutil.rmtree(tmp_path / "teacher")
        return dict(objective_class=METHODS[method], objective_kwargs=objective_kwargs)

    return make


def space_of(method: str) -> spaces.Space:
    return IMAGE if method == "dmt-jepa" else VECTOR


def assert_same_state(one: th.nn.Module, other: th.nn.Module) -> None:
    own, theirs = one.state_dict(), other.state_dict()
    assert own.keys() == theirs.keys()
    assert all(th.equal(value, theirs[name]) for name, value in own.items())


def assert_moved(objective: MaskedPrediction, before: dict[str, th.Tensor]) -> None:
    """What learns has moved, what follows too, and a teacher has not."""
    moved = {name for name, value in objective.state_dict().items() if not th.equal(value, before[name])}
    assert any(name.startswith("predictor.") for name in moved)
    assert any(name.startswith("target_encoder.") for name in moved) == objective.has_momentum_target
    if objective.target_transform is not None:
        assert {name.split(".")[0] for name in moved} >= {"target_transform", "target_transform_copy"}


def copy_state(module: th.nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_beside_ppo(method, make_kwargs, tmp_path):
    env = make_env(space_of(method))
    policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16], **make_kwargs(method, space_of(method)))
    # Momentum as the paper has it, from 0.996 on, would not be seen after so few updates in all tensors
    if method != "salt":
        policy_kwargs["objective_kwargs"] = dict(SMALL_PREDICTOR, momentum=0.5)
    model = PPO("JepaPolicy", env, policy_kwargs=policy_kwargs, **SMALL_PPO)
    before = copy_state(model.policy.objective)
    callback = JepaCallback()
    model.learn(64, callback=callback)
    objective = callback.objectives["shared"]
    assert isinstance(objective, METHODS[method])
    assert_moved(objective, before)

    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=env, device="cpu")
    assert_same_state(model.policy.objective, loaded.policy.objective)
    observations = env.reset()
    actions = [one.predict(observations, deterministic=True)[0] for one in (model, loaded)]
    assert np.array_equal(*actions)
    loaded.learn(32, reset_num_timesteps=False)


def test_what_does_not_pass_the_embedding_is_no_gradient_of_it():
    policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16], objective_class=TJepa)
    scalars = []
    for objective_kwargs in (SMALL_PREDICTOR, dict(SMALL_PREDICTOR, variance_coef=0.1)):
        kwargs = dict(policy_kwargs, objective_kwargs=objective_kwargs)
        model = PPO("JepaPolicy", make_env(), policy_kwargs=kwargs, **SMALL_PPO)
        model.learn(32)
        model.train()
        scalars.append(model.policy.gauges["shared"].scalars())
    gradients = [{name for name in one if "gradient" in name} for one in scalars]
    assert gradients == [{"rl_gradient_norm"}, {"rl_gradient_norm", "jepa_gradient_norm", "gradient_cosine"}]


@pytest.mark.parametrize("objective_for", ["actor", "critic", "both"])
def test_beside_ppo_with_separate_encoders(objective_for):
    policy_kwargs = dict(
        features_extractor_kwargs=EXTRACTOR,
        net_arch=[16],
        share_features_extractor=False,
        objective_for=objective_for,
        objective_class=TJepa,
        objective_kwargs=SMALL_PREDICTOR,
    )
    model = PPO("JepaPolicy", make_env(), policy_kwargs=policy_kwargs, **SMALL_PPO)
    before = {name: copy_state(objective) for name, objective in model.policy.objectives.items()}
    assert list(before) == (["actor", "critic"] if objective_for == "both" else [objective_for])
    model.learn(64)
    for name, objective in model.policy.objectives.items():
        assert_moved(objective, before[name])


@pytest.mark.parametrize("algorithm", [A2C, RecurrentPPO])
def test_beside_other_algorithms(algorithm):
    policy_kwargs = dict(
        features_extractor_kwargs=dict(EXTRACTOR, output="per_token", class_tokens=2),
        net_arch=[16],
        objective_class=TJepa,
        objective_kwargs=dict(SMALL_PREDICTOR),
    )
    kwargs = SMALL_PPO if algorithm is RecurrentPPO else dict(n_steps=8, seed=0, device="cpu")
    model = algorithm("JepaPolicy", make_env(), policy_kwargs=policy_kwargs, **kwargs)
    before, batches = copy_state(model.policy.objective), []
    model.policy.objective.register_forward_pre_hook(lambda _, inputs: batches.extend(inputs))
    model.learn(64)
    assert_moved(model.policy.objective, before)
    # The padding of sequences is not learned from: FakeEnv's observations are never all zeros
    assert batches
    assert all((batch.observations != 0).any(dim=1).all() for batch in batches)
    assert all(len(batch.observations) == len(batch.embedding) for batch in batches)


@pytest.mark.parametrize("method", ["t-jepa", "salt", "dmt-jepa"])
@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_in_turn_with_a_stock_algorithm(algorithm, method, make_kwargs, tmp_path):
    space = space_of(method)
    policy_kwargs = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=EXTRACTOR, net_arch=[16])
    policy = "CnnPolicy" if space is IMAGE else "MlpPolicy"
    kwargs = SMALL_PPO if algorithm == "PPO" else OFF_POLICY
    model = getattr(stable_baselines3, algorithm)(policy, make_env(space), policy_kwargs=policy_kwargs, **kwargs)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callback_kwargs = make_kwargs(method, space)
    callback = JepaCallback(n_updates=2, **callback_kwargs)
    model.learn(64, callback=callback)
    (objective,) = callback.objectives.values()
    assert isinstance(objective, METHODS[method])
    if algorithm == "PPO":
        curves = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
        assert {"jepa/prediction_loss", "jepa/momentum", "jepa/embedding_variance"} <= set(curves)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=make_env(space), device="cpu")
    observations = model.get_env().reset()
    assert np.array_equal(*(one.predict(observations, deterministic=True)[0] for one in (model, loaded)))
    resumed = JepaCallback(n_updates=2, **callback_kwargs)
    loaded.learn(0, callback=resumed, reset_num_timesteps=False)
    assert_same_state(objective, *resumed.objectives.values())


def test_a_loaded_encoder_leaves_the_teacher_as_it_is(make_kwargs, tmp_path):
    def make(method: str) -> PPO:
        policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16], **make_kwargs(method))
        return PPO("JepaPolicy", make_env(), policy_kwargs=policy_kwargs, **SMALL_PPO)

    model, other = make("salt"), make("t-jepa")
    path = save_encoder(other.learn(64), tmp_path / "encoder.pth")
    teacher = copy_state(model.policy.objective.target_encoder)
    load_encoder(model, path)
    assert_same_state(model.policy.features_extractor, other.policy.features_extractor)
    after = model.policy.objective.target_encoder.state_dict()
    assert all(th.equal(value, after[name]) for name, value in teacher.items())
    # A momentum copy begins where the encoder does
    third = make("t-jepa")
    load_encoder(third, path)
    assert_same_state(third.policy.objective.target_encoder.encoder, other.policy.features_extractor)


def test_what_needs_a_predictor_of_actions_says_so():
    env = make_env()
    policy_kwargs = dict(
        features_extractor_kwargs=dict(EXTRACTOR, class_tokens=0, output="mean"),
        net_arch=[16],
        objective_class=TJepa,
        objective_kwargs=dict(SMALL_PREDICTOR),
    )
    model = PPO("JepaPolicy", env, policy_kwargs=policy_kwargs, **SMALL_PPO)
    latent_model = LatentModel(model)
    observations = env.reset()
    assert latent_model.embed(observations).shape == (2, 16)
    with pytest.raises(ValueError, match="no JEPA objective that predicts what an action leads to"):
        latent_model.surprise(observations, np.zeros(2), observations)
    with pytest.raises(ValueError, match=r"'shared' of this PPO learns TJepa"):
        VecSurprise(env).set_model(model)
    surprised = PPO("JepaPolicy", VecSurprise(env, reward_coef=0.1), policy_kwargs=policy_kwargs, **SMALL_PPO)
    with pytest.raises(ValueError, match=r"'shared' of this PPO learns TJepa"):
        surprised.learn(32)


@pytest.mark.parametrize(
    ("class_tokens", "names"),
    [(0, {"spectrum", "trajectory"}), (1, {"spectrum", "trajectory", "attention"})],
)
def test_pictures_of_what_there_is(class_tokens, names, tmp_path):
    policy_kwargs = dict(
        features_extractor_kwargs=dict(EXTRACTOR, class_tokens=class_tokens, output="mean"),
        net_arch=[16],
        objective_class=DmtJepa,
        objective_kwargs=dict(SMALL_PREDICTOR),
    )
    model = PPO("JepaPolicy", make_env(IMAGE), policy_kwargs=policy_kwargs, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(64, callback=PictureCallback(projector=False))
    shown = EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
    assert {name.removeprefix("jepa_pictures/") for name in shown} == names


def test_the_defaults_are_those_of_the_papers():
    vectors, images = JepaExtractor(VECTOR, **EXTRACTOR), JepaExtractor(IMAGE, **EXTRACTOR)
    tabular = TJepa(vectors, 16)
    assert (tabular.masks[0].n_masks, tabular.prediction_loss, tabular.target) == (4, "mse", "momentum")
    teacher, student = SaltTeacher(images, 16), Salt(images, 16, teacher=images)
    for objective in (teacher, student):
        assert [(one.n_masks, one.target_scale) for one in objective.masks] == [(8, (0.15, 0.15)), (2, (0.7, 0.7))]
        assert all(one.union for one in objective.masks)
        assert objective.prediction_loss == "l1"
        # Each of the two hides about as much as its name says, and predicts all that it hides
        for family in objective.masks:
            context, targets = family.sample(4)
            assert targets.shape[1] == 1
            assert context.shape[1] + targets.shape[2] <= 16
    assert (teacher.target, student.target, student.normalize_targets) == ("input", "frozen", True)
    dense = DmtJepa(images, 16)
    assert (dense.prediction_loss, dense.target) == ("smooth_l1", "momentum")
    # What a paper has chosen can be chosen anew
    assert TJepa(vectors, 16, prediction_loss="l1", mask_kwargs=dict(n_masks=2)).masks[0].n_masks == 2
    with pytest.raises(ValueError, match="needs the patches of an image"):
        DmtJepa(vectors, 16)
