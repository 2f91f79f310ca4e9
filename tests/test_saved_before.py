"""
Files that were saved when all modules of the package still lay in one folder. A pickle names the modules of its
classes, so these have to be found wherever they are now. ``expected.npz`` has what that version computed.
"""

import pathlib
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.dqn.policies import DQNPolicy

import sb3_jepa
from sb3_jepa import PPO, JepaCallback, JepaPolicy, JepaRolloutBuffer, LatentModel
from sb3_jepa.envs import make_pixel_vec_env
from tests.conftest import SMALL_PPO, FakeEnv

# Stable-Baselines3 goes on without what it cannot unpickle
pytestmark = pytest.mark.filterwarnings("error:Could not deserialize")

SAVED = pathlib.Path(__file__).parent / "saved_before"
EXPECTED = dict(np.load(SAVED / "expected.npz"))
EXTRACTOR = dict(embed_dim=4, num_heads=2, depth=1, mlp_ratio=1.0, standardize_frames=16)
VECTOR = spaces.Box(-1, 1, (3,))
DICT = spaces.Dict(camera=spaces.Box(0, 255, (2, 16, 16), np.uint8), speed=VECTOR, mode=spaces.Discrete(3))


def fake(observation_space: spaces.Space = VECTOR, action_space: spaces.Space | None = None):
    return make_vec_env(lambda: FakeEnv(observation_space, action_space or spaces.Discrete(3)), n_envs=2, seed=0)


def vectors():
    return fake(spaces.Box(-1, 1, (4,)), spaces.Discrete(2))


def pixels():
    return make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=(32, 32), frames=2)


JOINT = (JepaPolicy, JepaRolloutBuffer)
# Algorithm, environment, and the classes of policy and buffer
MODELS = {
    "ppo_vectors": (PPO, vectors, *JOINT),
    "ppo_dict": (PPO, lambda: fake(DICT), JepaPolicy, sb3_jepa.JepaDictRolloutBuffer),
    "ppo_salt": (PPO, vectors, *JOINT),
    "ppo_tjepa": (PPO, vectors, *JOINT),
    "a2c": (sb3_jepa.A2C, lambda: fake(VECTOR, spaces.Box(-2, 2, (2,))), *JOINT),
    "maskable_ppo": (sb3_jepa.MaskablePPO, fake, sb3_jepa.MaskableJepaPolicy, MaskableRolloutBuffer),
    "recurrent_ppo": (sb3_jepa.RecurrentPPO, fake, sb3_jepa.RecurrentJepaPolicy, RecurrentRolloutBuffer),
    "stock_ppo": (stable_baselines3.PPO, vectors, *JOINT),
    "dqn": (stable_baselines3.DQN, pixels, DQNPolicy, sb3_jepa.FrameReplayBuffer),
}
OBJECTIVES = {"ppo_salt": sb3_jepa.Salt, "ppo_tjepa": sb3_jepa.TJepa}
# Of the algorithms that do not bring one along
CALLBACKS = {"stock_ppo": dict(), "dqn": dict(objective_kwargs=dict(hidden_dim=8))}


def observations_of(name: str, rows: slice = slice(None)) -> Any:
    """Those that ``expected.npz`` has, of one array or by their keys."""
    prefix = f"{name}/observations"
    found = {key.removeprefix(f"{prefix}/"): array[rows] for key, array in EXPECTED.items() if key.startswith(prefix)}
    return found.get(prefix, found)


def check_predictions(name: str, model) -> None:
    actions, _ = model.predict(observations_of(name), deterministic=True)
    np.testing.assert_allclose(actions, EXPECTED[f"{name}/actions"], atol=1e-5)
    latent_model = LatentModel(model)
    np.testing.assert_allclose(latent_model.embed(observations_of(name)), EXPECTED[f"{name}/embeddings"], atol=1e-5)
    # Predictor and target encoder too
    if latent_model.has_objective:
        here, there = observations_of(name, slice(-1)), observations_of(name, slice(1, None))
        surprises = latent_model.surprise(here, actions[:-1], there)
        np.testing.assert_allclose(surprises, EXPECTED[f"{name}/surprises"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_it_was_and_goes_on(name, tmp_path):
    algorithm, make_env, policy_class, buffer_class = MODELS[name]
    model = algorithm.load(SAVED / name, env=make_env(), device="cpu")
    assert isinstance(model.policy, policy_class)
    assert isinstance(getattr(model, "rollout_buffer", None) or model.replay_buffer, buffer_class)
    latent_model = LatentModel(model)
    objective = latent_model.other_objective or latent_model.objective
    assert type(objective) is OBJECTIVES.get(name, sb3_jepa.NextLatentPrediction)
    check_predictions(name, model)
    # Where it is saved again, it is the same
    model.save(tmp_path / name)
    check_predictions(name, algorithm.load(tmp_path / name, device="cpu"))
    n_steps, before = model.num_timesteps, [one.clone() for one in latent_model.encoder.parameters()]
    callback = JepaCallback(**CALLBACKS[name]) if name in CALLBACKS else None
    model.learn(64, callback=callback, reset_num_timesteps=False)
    assert model.num_timesteps == n_steps + 64
    assert not all(map(th.equal, latent_model.encoder.parameters(), before))
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


def test_a_policy_acts_as_it_did():
    policy = JepaPolicy.load(SAVED / "policy.pth")
    actions, _ = policy.predict(observations_of("ppo_vectors"), deterministic=True)
    np.testing.assert_array_equal(actions, EXPECTED["ppo_vectors/actions"])


def test_a_replay_buffer_holds_what_it_held():
    model = stable_baselines3.DQN.load(SAVED / "dqn", env=pixels(), device="cpu")
    model.load_replay_buffer(SAVED / "replay_buffer.pkl")
    buffer = model.replay_buffer
    assert type(buffer) is sb3_jepa.FrameReplayBuffer
    sizes = [buffer.buffer_size, buffer.n_envs, buffer.pos, buffer.full]
    np.testing.assert_array_equal(sizes, EXPECTED["replay_buffer/sizes"])
    np.testing.assert_array_equal(buffer.actions, EXPECTED["replay_buffer/actions"])
    for part in ("observations", "next_observations"):
        sums = np.asarray(getattr(buffer, part)).sum(axis=(2, 3, 4), dtype=np.int64)
        np.testing.assert_array_equal(sums, EXPECTED[f"replay_buffer/{part}"])
    model.learn(24, callback=JepaCallback(**CALLBACKS["dqn"]), reset_num_timesteps=False)
    assert buffer.pos != EXPECTED["replay_buffer/sizes"][2]


def test_a_running_deviation_is_what_it_was():
    env = sb3_jepa.VecSurprise.load(SAVED / "surprise.pkl", vectors())
    deviation = env.return_rms
    settings = [env.reward_coef, env.gamma, env.clip, deviation.mean, deviation.var, deviation.count]
    np.testing.assert_allclose(settings, EXPECTED["surprise/settings"], rtol=1e-6)
    PPO.load(SAVED / "ppo_vectors", env=env, device="cpu").learn(32)
    assert env.return_rms.count > EXPECTED["surprise/settings"][-1]


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_an_encoder_embeds_as_it_did(ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    model = PPO("JepaPolicy", vectors(), policy_kwargs=dict(features_extractor_kwargs=EXTRACTOR), **SMALL_PPO)
    sb3_jepa.load_encoder(model, SAVED / f"encoder.{ending}")
    embeddings = LatentModel(model).embed(observations_of("ppo_vectors"))
    np.testing.assert_allclose(embeddings, EXPECTED["ppo_vectors/embeddings"], atol=1e-5)


def test_a_pretrained_encoder_embeds_as_it_did():
    pytest.importorskip("safetensors")
    encoder = sb3_jepa.read_encoder(SAVED / "pretrained")
    assert type(encoder) is sb3_jepa.JepaExtractor
    embeddings = encoder(th.as_tensor(EXPECTED["pretrained/observations"])).detach()
    np.testing.assert_allclose(embeddings, EXPECTED["pretrained/embeddings"], atol=1e-5)
