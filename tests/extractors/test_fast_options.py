"""Options of JepaExtractor that make it faster, through whole trainings."""

import copy
import pickle
import shutil

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa import (
    PPO,
    JepaCallback,
    JepaExtractor,
    LatentModel,
    PictureCallback,
    VecSurprise,
    export_policy,
    load_encoder,
    save_encoder,
)
from sb3_jepa.diagnostics import attention_maps
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.extractors.measuring import measure_inputs
from tests.algorithms.test_matrix import OBSERVATIONS, distance, parameters
from tests.callbacks.test_picture_callback import read_events
from tests.conftest import SMALL_PPO, FakeEnv
from tests.policies.test_export import check as check_export

# Of the pixels of CartPole, 24 places of which the upper ones never change
SMALL = dict(embed_dim=16, num_heads=2, depth=1, patch_size=8, standardize_frames=32)
# Graphs of TorchDynamo, computed without a compiler
COMPILED = dict(compile_kwargs=dict(backend="eager"))
SELECTING = {
    "drop_constant_tokens": dict(drop_constant_tokens=True),
    "token_budget": dict(token_budget=5),
    "both": dict(drop_constant_tokens=True, token_budget=5),
    "frames as tokens": dict(drop_constant_tokens=True, token_budget=5, frames_as="tokens"),
}
OPTIONS = {
    **SELECTING,
    "autocast": dict(autocast=True),
    "compiled": dict(token_budget=5, **COMPILED),
    "all": dict(drop_constant_tokens=True, token_budget=5, frames_as="tokens", autocast=True, **COMPILED),
}
WITH_TWO_CAMERAS = spaces.Dict(
    camera=spaces.Box(0, 255, (3, 16, 24), np.uint8),
    map=spaces.Box(0, 255, (1, 8, 16), np.uint8),
    speed=spaces.Box(-1, 1, (3,)),
)


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    # PyTorch keeps a few graphs of a function, and compiles it no more
    th.compiler.reset()


def make_env(env_id: str = "CartPole-v1") -> VecEnv:
    return make_pixel_vec_env(env_id, n_envs=2, seed=0, frame_size=32)


def make_model(env: VecEnv | None = None, **options) -> PPO:
    policy_kwargs = dict(features_extractor_kwargs={**SMALL, **options}, net_arch=[16])
    return PPO("JepaPolicy", env or make_env(), policy_kwargs=policy_kwargs, **SMALL_PPO)


def n_tokens(extractor: JepaExtractor, observations) -> int:
    return extractor.encoder.tokenizer(observations).shape[1]


def is_compiled(extractor: JepaExtractor) -> bool:
    return extractor.encoder._compiled_call_impl is not None


def observe(model: PPO, n: int = 20) -> th.Tensor:
    """The first images of the latest rollout, as bytes."""
    return th.as_tensor(model.rollout_buffer.observations[:].reshape(-1, 3, 32, 48)[:n])


def see(env: VecEnv) -> np.ndarray:
    """32 images of two environments."""
    env.action_space.seed(0)
    return np.concatenate([env.reset(), *(env.step([env.action_space.sample() for _ in "ab"])[0] for _ in range(15))])


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "compiled"])
def test_joint_training(option, tmp_path):
    model = make_model(**OPTIONS[option])
    encoder, target = model.policy.features_extractor, model.policy.objective.target_encoder.encoder
    before = parameters(encoder)
    model.learn(96)
    moved = distance(before, parameters(encoder))
    assert moved > 0
    assert 0 < distance(before, parameters(target)) < moved
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    # Both leave out the same, and are compiled or not
    observations = observe(model)
    assert n_tokens(encoder, observations) == n_tokens(target, observations)
    assert (n_tokens(encoder, observations) < 24) == (option != "autocast")
    assert is_compiled(encoder) == is_compiled(target) == (option == "all")
    # No more than the transformer is rounded
    assert encoder(observations).dtype == target(observations).dtype == th.float32
    assert model.policy.predict_values(observations).dtype == th.float32
    assert all(parameter.dtype == th.float32 for parameter in model.policy.parameters())

    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    env = make_env()
    loaded = PPO.load(tmp_path / "model", env=env, device="cpu")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    observations = env.reset()
    for other in (loaded.policy, policy):
        assert is_compiled(other.features_extractor) == is_compiled(encoder)
        assert is_compiled(other.objective.target_encoder.encoder) == is_compiled(encoder)
        for name, value in model.policy.state_dict().items():
            assert th.equal(value, other.state_dict()[name]), name
        actions = [one.predict(observations, deterministic=True)[0] for one in (model, other)]
        assert np.array_equal(*actions)
    images = observe(model)
    for duplicate in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert is_compiled(duplicate) == is_compiled(encoder)
        assert th.equal(duplicate(images), encoder(images))
    # Resumed, both learn the same
    for one in (model, loaded):
        one.set_env(make_env())
        one.set_random_seed(1)
        one.learn(32, reset_num_timesteps=False)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[name]), name


@pytest.mark.parametrize("option", OPTIONS)
def test_a_checkpoint_fits_with_and_without(option, tmp_path):
    plain, fast = make_model(), make_model(**OPTIONS[option])
    if option in ("frames as tokens", "all"):
        plain = make_model(frames_as="tokens")
    assert plain.policy.state_dict().keys() == fast.policy.state_dict().keys()
    load_encoder(fast, save_encoder(plain, tmp_path / "plain"))
    load_encoder(plain, save_encoder(fast, tmp_path / "fast"))
    fast.policy.load_state_dict(plain.policy.state_dict())
    plain.policy.load_state_dict(fast.policy.state_dict())


def test_what_cannot_change_anything_changes_nothing():
    # A budget for all; and observations in which everything changes
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS["image"]), n_envs=2, seed=0)
    models = [
        make_model(env, **options).learn(64)
        for options in ({}, SELECTING["drop_constant_tokens"], dict(token_budget=6))
    ]
    for name, value in models[0].policy.state_dict().items():
        for model in models[1:]:
            assert th.equal(value, model.policy.state_dict()[name]), name


@pytest.mark.parametrize("option", SELECTING)
def test_several_images_and_other_inputs(option):
    env = make_vec_env(lambda: FakeEnv(WITH_TWO_CAMERAS), n_envs=2, seed=0)
    model = make_model(env, **SELECTING[option]).learn(64)
    extractor = model.policy.features_extractor
    observations = {key: th.as_tensor(array) for key, array in env.reset().items()}
    # The map has two places for its one frame and keeps both, as the numbers do. In noise nothing is constant
    frames = 3 if option == "frames as tokens" else 1
    of_camera = 5 if "token_budget" in SELECTING[option] else 6 * frames
    assert n_tokens(extractor, observations) == of_camera + 2 + 3
    maps = attention_maps(extractor.encoder, observations)
    assert {key: tuple(one.shape) for key, one in maps.items()} == dict(
        camera=(2, frames, 2, 3), map=(2, 1, 1, 2), speed=(2, 3)
    )
    assert [(one > 0).flatten(1).sum(dim=1).tolist() for one in maps.values()] == [[of_camera] * 2, [2] * 2, [3] * 2]


@pytest.mark.parametrize("option", ["frames as tokens", "autocast"])
def test_monitors(option, tmp_path):
    model = make_model(VecSurprise(make_env(), reward_coef=0.1), **OPTIONS[option])
    model.tensorboard_log = str(tmp_path)
    model.learn(64, callback=PictureCallback())
    # What the policy sees as bytes, these see as floats
    found = LatentModel(model).embed(observe(model).numpy())
    expected = model.policy.features_extractor(observe(model))
    assert th.allclose(found, expected, atol=0.02 if option == "autocast" else 1e-4)
    (events,) = tmp_path.rglob("events.out.*")
    assert "jepa_pictures/attention" in read_events(events.parent).Tags()["images"]


@pytest.mark.parametrize("option", [*SELECTING, "compiled"])
def test_attention_is_laid_out_where_it_was_paid(option):
    env = make_env()
    extractor, observations = JepaExtractor(env.observation_space, **SMALL, **OPTIONS[option]), th.as_tensor(see(env))
    extractor.measure_inputs(observations / 255.0)
    with th.no_grad():
        extractor(observations)
    (maps,) = attention_maps(extractor.encoder, observations).values()
    frames = 3 if option == "frames as tokens" else 1
    assert maps.shape == (32, frames, 4, 6)
    places = extractor.encoder.tokenizer.places(observations).expand(32, -1)
    is_kept = th.zeros(32, frames * 24, dtype=th.bool).scatter(1, places, True)
    assert th.equal(maps.flatten(1) > 0, is_kept)
    # In the order of the tokens
    encoder, weights = extractor.encoder, []
    attention = encoder.blocks[-1].attention
    hook = attention.register_forward_pre_hook(
        lambda module, inputs: weights.append(module.class_token_weights(inputs[0]).mean(dim=1)[:, 1:])
    )
    encoder.forward(observations)
    hook.remove()
    assert th.allclose(maps.flatten(1)[is_kept].view(32, -1), weights[0])


def test_export(tmp_path):
    # Its actions are continuous, and show all that is different
    env = make_env("Pendulum-v1")
    model = make_model(env, **OPTIONS["frames as tokens"], **COMPILED)
    measure_inputs(model.policy, see(env), model.policy.objectives)
    model.save(tmp_path / "model")
    # It has not acted yet, and so not found out which tokens are constant
    check_export(PPO.load(tmp_path / "model", env=env, device="cpu"), tmp_path)
    # What is exported is not rounded
    observations = env.reset()
    expected, _ = model.predict(observations, deterministic=True)
    model.policy.features_extractor.autocast = True
    rounded, _ = model.predict(observations, deterministic=True)
    export_policy(model, tmp_path / "policy.pt2")
    actions = th.export.load(tmp_path / "policy.pt2").module()(th.as_tensor(observations)).numpy(force=True)
    assert np.abs(actions - expected).max() < 1e-5 < np.abs(rounded - expected).max()


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.expensive, NEEDS_COMPILER])]
)
def test_compiled_training_is_the_same(backend):
    options = dict(drop_constant_tokens=True, token_budget=5)
    plain = make_model(**options).learn(64)
    compiled = make_model(**options, compile_kwargs=dict(backend=backend)).learn(64)
    for (name, one), other in zip(plain.policy.named_parameters(), compiled.policy.parameters(), strict=True):
        assert th.allclose(one, other, atol=1e-4), name


def test_few_graphs_serve_all_batches():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    extractor = JepaExtractor(spaces.Box(0, 255, (3, 32, 48), np.uint8), **SMALL, compile_kwargs=dict(backend=count))
    images = th.randint(0, 256, (64, 3, 32, 48), dtype=th.uint8)
    extractor.measure_inputs(images / 255.0)
    for n in (4, 64, 1, 2, 15, 16, 17, 40, 64, 4, 1):
        extractor(images[:n])
    # Of the first size, of any size, and of one
    assert len(graphs) == 3


def test_an_embedding_outlives_the_next_run():
    # CUDA graphs return the same memory each time
    memory = []

    def overwrite(graph, inputs):
        def run(*args):
            outputs = graph.forward(*args)
            if not memory:
                memory.extend(output.clone() for output in outputs)
            for one, output in zip(memory, outputs, strict=True):
                one.copy_(output)
            return list(memory)

        return run

    extractor = JepaExtractor(
        spaces.Box(0, 255, (3, 32, 48), np.uint8), **SMALL, compile_kwargs=dict(backend=overwrite)
    )
    images = th.randint(0, 256, (8, 3, 32, 48), dtype=th.uint8)
    with th.no_grad():
        here, there = extractor(images[:4]), extractor(images[4:])
    assert memory
    assert th.allclose(here, extractor.encoder.forward(images[:4]), atol=1e-5)
    assert th.allclose(there, extractor.encoder.forward(images[4:]), atol=1e-5)


def test_trpo_differentiates_a_compiled_encoder_twice():
    policy_kwargs = dict(
        features_extractor_class=JepaExtractor,
        features_extractor_kwargs=dict(SMALL, token_budget=5, compile_kwargs=dict(backend="aot_eager")),
        net_arch=[16],
    )
    model = sb3_contrib.TRPO("CnnPolicy", make_env(), n_steps=16, batch_size=16, policy_kwargs=policy_kwargs, seed=0)
    before = parameters(model.policy.features_extractor)
    model.learn(64, callback=JepaCallback())
    assert distance(before, parameters(model.policy.features_extractor)) > 0


class Outer(BaseFeaturesExtractor):
    """An extractor that has ours in it."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, features_dim=16)
        self.inner = JepaExtractor(observation_space, **SMALL, drop_constant_tokens=True, **COMPILED)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.inner(observations)


def test_inputs_are_measured_through_a_compiled_encoder():
    policy_kwargs = dict(features_extractor_class=Outer, net_arch=[16])
    model = stable_baselines3.PPO("CnnPolicy", make_env(), policy_kwargs=policy_kwargs, **SMALL_PPO)
    plain = JepaExtractor(model.observation_space, **SMALL)
    observations = see(model.env)
    model.policy.features_extractor(th.as_tensor(observations) / 255.0)
    measure_inputs(model.policy, observations, {})
    plain.measure_inputs(th.as_tensor(observations) / 255.0)
    for one, other in zip(model.policy.features_extractor.buffers(), plain.buffers(), strict=True):
        assert th.equal(one, other)
    images = th.as_tensor(observations)
    inner = model.policy.features_extractor.inner
    assert th.allclose(inner(images), inner.encoder.forward(images), atol=1e-5)
    assert n_tokens(inner, images) < 24


@pytest.mark.parametrize("frames_as", ["changes", "channels", "tokens"])
def test_autocast_is_close_and_its_gradients_too(frames_as):
    # Nearly white, and hardly changing from frame to frame
    images = th.randint(245, 256, (64, 1, 32, 48), dtype=th.uint8).repeat(1, 3, 1, 1)
    images[:, 1:, 8:16, 8:16] -= 2
    embeddings, gradients = [], []
    for autocast in (False, True):
        th.manual_seed(0)
        space = spaces.Box(0, 255, (3, 32, 48), np.uint8)
        extractor = JepaExtractor(space, **SMALL, frames_as=frames_as, autocast=autocast)
        extractor.measure_inputs(images / 255.0)
        embedding = extractor(images)
        embedding[:, 0].sum().backward()
        embeddings.append(embedding.detach())
        gradients.append(th.cat([parameter.grad.flatten() for parameter in extractor.parameters()]))
        assert embedding.dtype == gradients[-1].dtype == th.float32
    for one, other in (embeddings, gradients):
        assert 0 < (one - other).norm() < 0.03 * one.norm()


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        ("image", dict(drop_constant_tokens=True, standardize_frames=0), "drop_constant_tokens.*standardize_frames"),
        ("vector", dict(drop_constant_tokens=True), "no image in Box"),
        ("vector", dict(token_budget=3), "no image in Box"),
        ("image", dict(compile_kwargs=dict(bakend="eager")), "compile_kwargs.*bakend"),
        ("image", dict(compile_kwargs=dict(backend="nothing")), "compile_kwargs.*nothing"),
        ("image", dict(compile_kwargs=dict(mode="fastest")), "compile_kwargs.*fastest"),
    ],
)
def test_bad_input(space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        JepaExtractor(OBSERVATIONS[space], **{**SMALL, **kwargs})
