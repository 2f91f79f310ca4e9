"""SequenceExtractor: what it sees, what it does not, and that it encodes a view once while it acts."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_jepa import JepaExtractor, MlpExtractor, SequenceExtractor, export_policy
from sb3_jepa.envs import VecHistory
from sb3_jepa.extractors.preprocessing import preprocess
from tests.envs.test_history import Counting

LENGTH, N_ENVS = 4, 3
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 40, 40), np.uint8)
SMALL = dict(embed_dim=16, action_embed_dim=8, num_heads=2)


class Noise(Counting):
    def _observation(self):
        return self.observation_space.sample()


def histories_of(space, n_steps=8, episode_steps=5, n_envs=N_ENVS):
    """Histories of an environment one after the other, over ends of episodes; and their space."""
    env = VecHistory(
        DummyVecEnv([lambda: Noise(episode_steps=episode_steps, observation_space=space)] * n_envs), LENGTH
    )
    space.seed(0)
    observations = [env.reset()]
    for step in range(n_steps):
        observations.append(env.step(np.arange(n_envs) % 3 if step % 2 else np.zeros(n_envs, int))[0])
    tensors = [{key: th.as_tensor(array) for key, array in one.items()} for one in observations]
    return tensors, env.observation_space


def prepared(tensors, space, extractor):
    return preprocess(tensors, space, True, [extractor])


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_what_acts_computes_the_same_as_what_learns(space):
    observations, history_space = histories_of(space)
    extractor = SequenceExtractor(history_space, **SMALL).eval()
    for one in observations:
        inputs = prepared(one, history_space, extractor)
        with th.no_grad():
            acting = extractor(inputs)
        th.testing.assert_close(acting, extractor(inputs).detach(), atol=1e-5, rtol=1e-4)


class Counter(nn.Module):
    """Counts the views that pass."""

    n_views = 0

    def forward(self, module, args):
        first = next(iter(args[0].values())) if isinstance(args[0], dict) else args[0]
        self.n_views += len(first)


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_while_acting_each_view_is_encoded_once(space):
    observations, history_space = histories_of(space, episode_steps=5)
    extractor, counter = SequenceExtractor(history_space, **SMALL).eval(), Counter()
    extractor.view_encoder.extractor.register_forward_pre_hook(counter.forward)
    with th.no_grad():
        for one in observations:
            extractor(prepared(one, history_space, extractor))
    assert counter.n_views == len(observations) * N_ENVS


@pytest.mark.parametrize("change", ["optimizer", "polyak", "load", "statistics"])
def test_after_a_change_of_the_encoder_no_old_embedding_is_used(change):
    observations, history_space = histories_of(IMAGE)
    extractor, other = (SequenceExtractor(history_space, **SMALL).eval() for _ in range(2))
    with th.no_grad():
        extractor(prepared(observations[2], history_space, extractor))
    inputs = prepared(observations[3], history_space, extractor)
    if change == "optimizer":
        extractor(inputs).sum().backward()
        th.optim.Adam(extractor.parameters(), lr=0.1, fused=True).step()
    elif change == "polyak":
        # As target networks of Stable-Baselines3 move
        with th.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        polyak_update(other.parameters(), extractor.parameters(), 0.5)
    elif change == "load":
        extractor.load_state_dict(other.state_dict())
    else:
        extractor.view_encoder.extractor.measure_inputs(th.randint(0, 256, (64, *IMAGE.shape), dtype=th.uint8))
    with th.no_grad():
        acting = extractor(inputs)
    th.testing.assert_close(acting, extractor(inputs).detach(), atol=1e-5, rtol=1e-4)


def test_a_caller_may_write_into_its_arrays():
    observations, history_space = histories_of(VECTOR)
    extractor = SequenceExtractor(history_space, **SMALL).eval()
    array = {key: tensor.float().clone() for key, tensor in observations[2].items()}
    with th.no_grad():
        extractor(array)
        for key, tensor in observations[3].items():
            array[key].copy_(tensor)
        acting = extractor(array)
    th.testing.assert_close(acting, extractor(array).detach())


def test_bytes_after_floats_are_views_of_their_own():
    observations, history_space = histories_of(IMAGE, n_steps=4)
    extractor = SequenceExtractor(history_space, **SMALL).eval()
    as_floats = preprocess(observations[3], history_space, True, [nn.Linear(1, 1)])
    as_bytes = prepared(observations[4], history_space, extractor)
    with th.no_grad():
        extractor(as_floats)
        acting = extractor(as_bytes)
    th.testing.assert_close(acting, extractor(as_bytes).detach(), atol=1e-5, rtol=1e-4)


def test_what_lies_before_the_episode_has_no_effect():
    observations, history_space = histories_of(VECTOR)
    extractor = SequenceExtractor(history_space, **SMALL)
    history = {key: tensor.float() for key, tensor in observations[1].items()}
    assert history["is_real"].sum() == 2 * N_ENVS
    other = {key: tensor.clone() for key, tensor in history.items()}
    other["views"][:, :2] = 1e6
    other["actions"][:, :2] = 1.0
    th.testing.assert_close(extractor(history), extractor(other))


@pytest.mark.parametrize("order_code", [True, False])
def test_order_is_seen_with_its_code_only(order_code):
    observations, history_space = histories_of(VECTOR, n_steps=4)
    extractor = SequenceExtractor(history_space, order_code=order_code, output="aggregate", **SMALL)
    history = {key: tensor.float() for key, tensor in observations[4].items()}
    swapped = {key: tensor.clone() for key, tensor in history.items()}
    # The pairs of view and action change places, but for the newest view
    swapped["views"][:, [0, 1]], swapped["actions"][:, [0, 1]] = (
        history["views"][:, [1, 0]],
        history["actions"][:, [1, 0]],
    )
    assert th.allclose(extractor(history), extractor(swapped), atol=1e-6) != order_code


def test_actions_are_seen_unless_their_embedding_has_no_width():
    observations, history_space = histories_of(VECTOR, n_steps=4)
    history = {key: tensor.float() for key, tensor in observations[4].items()}
    other = dict(history, actions=1.0 - history["actions"])
    for action_embed_dim in (8, 0):
        extractor = SequenceExtractor(history_space, embed_dim=16, num_heads=2, action_embed_dim=action_embed_dim)
        assert th.allclose(extractor(history), extractor(other)) == (action_embed_dim == 0)


def test_features_are_the_aggregate_then_the_newest_view_then_the_rest():
    space = spaces.Dict(number=spaces.Box(-np.inf, np.inf, (2,), np.float32), kind=spaces.Discrete(3))
    env = VecHistory(DummyVecEnv([lambda: Counting(observation_space=space)]), 2, keys=["number"])
    history = preprocess(
        {key: th.as_tensor(array) for key, array in env.reset().items()}, env.observation_space, True, []
    )
    extractor = SequenceExtractor(env.observation_space, **SMALL)
    features = extractor(history)
    assert features.shape == (1, extractor.features_dim) == (1, 16 + 8 + 16 + 3)
    th.testing.assert_close(features[:, 24:40], extractor.view_encoder(history))
    th.testing.assert_close(features[:, 40:], history["kind"].flatten(1))


def test_bytes_and_floats_of_images_are_the_same():
    observations, history_space = histories_of(IMAGE, n_steps=4)
    extractor = SequenceExtractor(history_space, **SMALL)
    as_bytes = prepared(observations[4], history_space, extractor)
    as_floats = preprocess(observations[4], history_space, True, [nn.Linear(1, 1)])
    assert as_bytes["views"].dtype == th.uint8
    assert as_floats["views"].dtype == th.float32
    th.testing.assert_close(extractor(as_bytes), extractor(as_floats), atol=1e-5, rtol=1e-4)


def test_a_single_grey_picture_is_scaled_once():
    # Its stack looks to Stable-Baselines3 like an image with channels, and is scaled there
    observations, history_space = histories_of(spaces.Box(0, 255, (40, 40), np.uint8), n_steps=4)
    extractor = SequenceExtractor(history_space, **SMALL)
    as_bytes = prepared(observations[4], history_space, extractor)
    as_floats = preprocess(observations[4], history_space, True, [nn.Linear(1, 1)])
    th.testing.assert_close(extractor(as_bytes), extractor(as_floats), atol=1e-5, rtol=1e-4)


def test_the_encoder_of_views_comes_from_the_data_or_is_chosen():
    _, of_vectors = histories_of(VECTOR, n_steps=1)
    _, of_images = histories_of(IMAGE, n_steps=1)
    assert isinstance(SequenceExtractor(of_vectors).view_encoder.extractor, MlpExtractor)
    assert isinstance(SequenceExtractor(of_images).view_encoder.extractor, JepaExtractor)
    chosen = SequenceExtractor(of_images, view_extractor_class=NatureCNN, **SMALL)
    assert isinstance(chosen.view_encoder.extractor, NatureCNN)


def test_stock_algorithms_take_it_and_save_it(tmp_path):
    env = VecHistory(DummyVecEnv([lambda: Counting(episode_steps=6)]), LENGTH)
    kwargs = dict(features_extractor_class=SequenceExtractor, features_extractor_kwargs=SMALL)
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=kwargs, device="cpu")
    model.learn(32)
    model.save(tmp_path / "model")
    history = env.reset()
    before, _ = model.predict(history, deterministic=True)
    after, _ = PPO.load(tmp_path / "model", device="cpu").predict(history, deterministic=True)
    np.testing.assert_array_equal(before, after)
    copied = copy.deepcopy(model.policy)
    np.testing.assert_array_equal(copied.predict(history, deterministic=True)[0], before)


def test_observations_without_a_history_are_refused():
    with pytest.raises(ValueError, match="VecHistory"):
        SequenceExtractor(VECTOR)


def test_it_is_exported_for_any_number_of_environments(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    env = VecHistory(DummyVecEnv([lambda: Noise(observation_space=VECTOR)] * 3), LENGTH)
    kwargs = dict(features_extractor_class=SequenceExtractor, features_extractor_kwargs=SMALL)
    model = PPO("MultiInputPolicy", env, policy_kwargs=kwargs, device="cpu")
    export_policy(model, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    histories = env.reset()
    for _ in range(3):
        expected = model.policy.predict(histories, deterministic=True)[0]
        np.testing.assert_array_equal(session.run(["action"], histories)[0], expected)
        histories, *_ = env.step(np.zeros(3, int))
