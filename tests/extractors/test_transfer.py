import copy
import sys

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa import PPO, JepaCallback, JepaExtractor, load_encoder, save_encoder
from sb3_jepa.common.files import in_memory
from sb3_jepa.extractors.files import read_state
from sb3_jepa.extractors.finding import find_encoders
from tests.conftest import SMALL_PPO, FakeEnv

EXTRACTOR = dict(embed_dim=16, num_heads=2, depth=1, standardize_frames=16)
POLICY = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16])


class Shifted(gym.ObservationWrapper):
    """Other observations of the same shape as Pendulum's, for a CartPole-like transfer between tasks."""

    def observation(self, observation):
        return observation + 1.0


def make_ppo(**kwargs) -> PPO:
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    return PPO("JepaPolicy", env, policy_kwargs={**POLICY, **kwargs}, **SMALL_PPO)


def make_td3(**kwargs) -> stable_baselines3.TD3:
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=1, wrapper_class=Shifted)
    policy_kwargs = dict(POLICY, features_extractor_class=JepaExtractor)
    return stable_baselines3.TD3(
        "MlpPolicy", env, policy_kwargs=policy_kwargs, learning_starts=20, batch_size=16, seed=1, device="cpu", **kwargs
    )


def assert_same(one: th.nn.Module, other: th.nn.Module, same: bool = True) -> None:
    one_state, other_state = one.state_dict(), other.state_dict()
    assert all(th.equal(value, other_state[name]) for name, value in one_state.items()) == same


@pytest.mark.parametrize("file", ["encoder", "encoder.pth", "encoder.safetensors"])
def test_into_another_algorithm_and_all_its_networks(file, tmp_path):
    model = make_ppo().learn(96)
    path = save_encoder(model, tmp_path / file)
    assert path.exists()
    assert path.suffix in (".safetensors", ".pth")
    encoder = model.policy.features_extractor
    other = make_td3()
    load_encoder(other, path)
    for network in (other.actor, other.critic, other.actor_target, other.critic_target):
        assert_same(encoder, network.features_extractor)
    # What was measured came along, and nothing is measured again
    callback = JepaCallback()
    other.learn(60, callback=callback)
    (before,), (after,) = encoder.standardizations, other.actor.features_extractor.standardizations
    assert_same(before, after)
    # ... while the encoder went on learning
    assert_same(encoder, other.actor.features_extractor, same=False)


def test_the_keys_of_a_dict_are_those_of_the_file(tmp_path):
    def make(*keys: str):
        space = spaces.Dict([(key, spaces.Box(-1, 1, (3,))) for key in keys])
        return PPO("JepaPolicy", make_vec_env(lambda: FakeEnv(space), n_envs=1), policy_kwargs=POLICY)

    model = make("left", "right.pop", "pop")
    path = save_encoder(model, tmp_path / "encoder.pth")
    # The order does not matter, and the names do
    other = make("right.pop", "pop", "left")
    load_encoder(other, path)
    observation = {key: np.random.default_rng(len(key)).random((1, 3), np.float32) for key in other.observation_space}
    tensors = obs_as_tensor(observation, "cpu")
    assert th.equal(*(one.policy.eval().extract_features(tensors) for one in (model, other)))
    with pytest.raises(ValueError, match=r"key_wind.* is missing in the file.*key_left.* is missing in the model"):
        load_encoder(make("wind", "right.pop", "pop"), path)


def test_one_of_two_encoders():
    model = make_td3()
    assert list(find_encoders(model.policy)) == ["actor", "critic"]


def test_the_target_encoder_begins_with_it_too(tmp_path):
    path = save_encoder(make_td3().learn(60, callback=JepaCallback()), tmp_path / "encoder.pth", encoder="critic")
    model = make_ppo()
    load_encoder(model, path)
    assert_same(model.policy.features_extractor, model.policy.objective.target_encoder.encoder)
    critic_only = make_td3()
    load_encoder(critic_only, path, encoders=["critic"])
    assert_same(critic_only.critic.features_extractor, critic_only.critic_target.features_extractor)
    assert_same(critic_only.critic.features_extractor, critic_only.actor.features_extractor, same=False)


@pytest.mark.parametrize("make", [make_ppo, make_td3])
def test_a_frozen_encoder_stays_as_it_is_and_the_zip_knows(make, tmp_path):
    path = save_encoder(make_ppo().learn(96), tmp_path / "encoder.pth")
    model = make()
    load_encoder(model, path, freeze=True)
    for _ in range(2):
        born = {
            name: {k: v.clone() for k, v in e.state_dict().items()} for name, e in find_encoders(model.policy).items()
        }
        heads = next(p.clone() for name, p in model.policy.named_parameters() if "mu" in name or "action_net" in name)
        model.learn(96, callback=JepaCallback())
        for name, encoder in find_encoders(model.policy).items():
            assert all(th.equal(value, born[name][key]) for key, value in encoder.state_dict().items())
        after = next(p for name, p in model.policy.named_parameters() if "mu" in name or "action_net" in name)
        assert not th.equal(heads, after)
        model.save(tmp_path / "model")
        model = type(model).load(tmp_path / "model", env=model.get_env(), device="cpu")
    # Fine-tuned after all
    load_encoder(model, path)
    model.learn(96, callback=JepaCallback())
    encoder = next(iter(find_encoders(model.policy).values()))
    assert_same(encoder, make_and_load(path), same=False)


def make_and_load(path) -> JepaExtractor:
    model = make_ppo()
    load_encoder(model, path)
    return model.policy.features_extractor


def test_ortho_init_erases_nothing(tmp_path):
    path = save_encoder(make_ppo().learn(96), tmp_path / "encoder.pth")
    model = make_ppo(ortho_init=True)
    load_encoder(model, path)
    observations = th.as_tensor(np.random.default_rng(0).normal(size=(5, 3)), dtype=th.float32)
    assert th.equal(model.policy.features_extractor(observations), make_and_load(path)(observations))


def test_what_does_not_fit_is_named(tmp_path):
    path = save_encoder(make_ppo(), tmp_path / "encoder.pth")
    model = make_ppo(features_extractor_kwargs=dict(EXTRACTOR, embed_dim=8, depth=2))
    before = {name: value.clone() for name, value in model.policy.features_extractor.state_dict().items()}
    with pytest.raises(ValueError, match=r"'shared'.*class_token is \(1, 1, 16\) in the file and \(1, 1, 8\).*missing"):
        load_encoder(model, path)
    for name, value in model.policy.features_extractor.state_dict().items():
        assert th.equal(value, before[name])
    with pytest.raises(ValueError, match=r"encoders.*shared.*value"):
        load_encoder(model, path, encoders=["value"])
    with pytest.raises(ValueError, match=r"no encoder that learns.*JepaExtractor"):
        save_encoder(stable_baselines3.PPO("MlpPolicy", "Pendulum-v1"), tmp_path / "other")


def test_without_safetensors(tmp_path, monkeypatch):
    path = save_encoder(make_ppo(), tmp_path / "encoder.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for use in (
        lambda: save_encoder(make_ppo(), tmp_path / "other.safetensors"),
        lambda: load_encoder(make_ppo(), path),
    ):
        with pytest.raises(ImportError, match=r"sb3-jepa\[safetensors\]"):
            use()
    assert save_encoder(make_ppo(), tmp_path / "without").suffix == ".pth"


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda value: th.full_like(value, th.nan), "holds NaN or infinite values, first in encoder\\."),
        (lambda value: value.int(), "encoder.class_token is of type torch.int32 in the file and torch.float32"),
    ],
)
def test_an_encoder_of_nan_or_whole_numbers_was_loaded(spoil, message, ending, tmp_path):
    path = save_encoder(make_ppo(), tmp_path / f"encoder.{ending}")
    model = make_ppo()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    state = {name: spoil(value) if value.is_floating_point() else value for name, value in read_state(path).items()}
    path.write_bytes(
        safetensors.torch.save(state) if ending == "safetensors" else in_memory(lambda f: th.save(state, f))
    )
    with pytest.raises(ValueError, match=rf"{path.name}.*{message}"):
        load_encoder(model, path)
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def test_an_encoder_that_has_diverged_was_saved_without_a_word(tmp_path):
    model = make_ppo()
    with th.no_grad():
        model.policy.features_extractor.encoder.class_token[..., 0] = th.inf
    for save in (lambda: save_encoder(model, tmp_path / "encoder.pth"), lambda: model.save(tmp_path / "model")):
        with pytest.warns(UserWarning, match=r"holds NaN or infinite values, first in .*encoder\.class_token"):
            save()


def test_half_precision_is_loaded_as_single(tmp_path):
    path = save_encoder(make_ppo(), tmp_path / "encoder.pth")
    state = {name: value.half() if value.is_floating_point() else value for name, value in read_state(path).items()}
    th.save(state, path)
    assert make_and_load(path).encoder.class_token.dtype == th.float32


def test_an_extractor_that_is_made_of_others():
    space = spaces.Dict(image=spaces.Box(0, 255, (3, 36, 36), np.uint8), vector=spaces.Box(-1, 1, (2,)))
    env = make_vec_env(lambda: FakeEnv(space), n_envs=2)
    model = stable_baselines3.A2C("MultiInputPolicy", env).learn(20, callback=JepaCallback())
    assert list(find_encoders(model.policy).values()) == [model.policy.features_extractor]


def test_the_target_critic_of_a_shared_encoder(tmp_path):
    policy_kwargs = dict(POLICY, features_extractor_class=JepaExtractor, share_features_extractor=True)
    model, other = (stable_baselines3.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs) for _ in range(2))
    load_encoder(other, save_encoder(model, tmp_path / "encoder.pth"))
    assert_same(model.critic.features_extractor, other.critic_target.features_extractor)


def test_what_was_measured_of_a_frozen_encoder_stays(tmp_path):
    path = save_encoder(make_ppo().learn(96), tmp_path / "encoder.pth")
    # One that asks for more observations than were measured
    model = make_ppo(features_extractor_kwargs=dict(EXTRACTOR, standardize_frames=64))
    load_encoder(model, path, freeze=True)
    model.learn(96)
    assert_same(model.policy.features_extractor, make_and_load(path))
    # One of two: the other one is measured alone
    model = make_ppo(share_features_extractor=False)
    load_encoder(model, path, encoders=["actor"], freeze=True)
    before = copy.deepcopy(model.policy.pi_features_extractor.standardizations[0])
    model.learn(96)
    assert_same(before, model.policy.pi_features_extractor.standardizations[0])
    assert model.policy.vf_features_extractor.n_inputs_to_measure == 0


def test_the_zip_knows_what_was_frozen_last(tmp_path):
    model = make_ppo(share_features_extractor=False).learn(64)
    path = save_encoder(model, tmp_path / "encoder.pth")

    def is_frozen_after_loading() -> bool:
        model.save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model")
        return not any(p.requires_grad for e in find_encoders(loaded.policy).values() for p in e.parameters())

    load_encoder(model, path, encoders=["actor"], freeze=True)
    assert not is_frozen_after_loading()
    load_encoder(model, path, encoders=["critic"], freeze=True)
    assert is_frozen_after_loading()
    load_encoder(model, path)
    assert not is_frozen_after_loading()
