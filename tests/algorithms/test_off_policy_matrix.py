"""Every off-policy algorithm with every observation space and replay buffer that it takes."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import DDPG, DQN, SAC, TD3, FrameDictReplayBuffer, FrameReplayBuffer, JepaExtractor
from sb3_jepa.algorithms.contrib import QRDQN, TQC
from sb3_jepa.algorithms.saved_models import load_model
from sb3_jepa.alternating import find_objectives
from sb3_jepa.callbacks import JepaCallback
from sb3_jepa.extractors.measuring import n_inputs_to_measure
from tests.algorithms.test_matrix import OBSERVATIONS, CheckedPrediction, distance, parameters
from tests.conftest import FakeEnv

ALGORITHMS = {"DQN": DQN, "QRDQN": QRDQN, "SAC": SAC, "TD3": TD3, "DDPG": DDPG, "TQC": TQC}
DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-2, 2, (2,))
EXTRACTOR = dict(embed_dim=16, num_heads=2, depth=1, patch_size=8, standardize_frames=16)
FRAMES = spaces.Box(0, 255, (3, 36, 40), np.uint8)


def make_env(algorithm: str, observation_space: spaces.Space):
    action_space = DISCRETE if "DQN" in algorithm else CONTINUOUS
    return make_vec_env(lambda: FakeEnv(observation_space, action_space), n_envs=2, seed=0)


def make_model(algorithm: str, env, **kwargs):
    policy_kwargs = dict(
        features_extractor_class=JepaExtractor,
        features_extractor_kwargs=EXTRACTOR,
        net_arch=[16],
        objective_class=CheckedPrediction,
    )
    kwargs = dict(dict(learning_starts=20, batch_size=8, buffer_size=100), **kwargs)
    return ALGORITHMS[algorithm]("JepaPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)


# All spaces with one algorithm of each kind, and all algorithms with the one that has all kinds of input
SPACES = [(one, observation) for one in ("DQN", "SAC") for observation in OBSERVATIONS]
SPACES += [(one, "Dict") for one in ALGORITHMS if one not in ("DQN", "SAC")]


@pytest.mark.parametrize(("algorithm", "observation"), SPACES)
def test_joint_off_policy_training(algorithm, observation, tmp_path):
    model = make_model(algorithm, make_env(algorithm, OBSERVATIONS[observation]))
    policy, objective = model.policy, model.policy.objective
    encoder = policy.encoders[policy.learner]
    before = parameters(encoder)
    assert distance(before, parameters(objective.target_encoder.encoder)) == 0.0
    model.learn(80)
    moved = distance(before, parameters(encoder))
    assert 0 < distance(before, parameters(objective.target_encoder.encoder)) < moved
    # Once for each gradient step, however often features were extracted
    assert objective.n_updates == model._n_updates > 0
    assert n_inputs_to_measure(policy) == 0
    ((_, (found, first_variance)),) = find_objectives(model).items()
    assert found is objective
    assert first_variance > 0

    # Resumed with its buffer, a saved model learns the same
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    for one in (model, loaded):
        one.set_env(make_env(algorithm, OBSERVATIONS[observation]))
        one.set_random_seed(1)
        one.learn(30, reset_num_timesteps=False)
    for name, value in policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[name]), name
    observations = model.env.reset()
    actions = [one.predict(observations, deterministic=True)[0] for one in (model, loaded)]
    assert np.array_equal(*actions)
    assert type(load_model(tmp_path / "model.zip")) is (TD3 if algorithm == "DDPG" else type(model))

    # And without the buffer
    fresh = type(model).load(tmp_path / "model", env=make_env(algorithm, OBSERVATIONS[observation]), device="cpu")
    fresh.learn(40, reset_num_timesteps=False)
    assert fresh.policy.objective.n_updates > 0


@pytest.mark.parametrize("algorithm", ["DQN", "TQC"])
def test_images_are_stored_once_unless_another_buffer_is_asked_for(algorithm):
    model = make_model(algorithm, make_env(algorithm, FRAMES))
    assert type(model.replay_buffer) is FrameReplayBuffer
    both = spaces.Dict(camera=FRAMES, speed=spaces.Box(-1, 1, (3,)))
    assert type(make_model(algorithm, make_env(algorithm, both)).replay_buffer) is FrameDictReplayBuffer
    kwargs = dict(replay_buffer_class=ReplayBuffer)
    other = make_model(algorithm, make_env(algorithm, FRAMES), **kwargs)
    assert type(other.replay_buffer) is ReplayBuffer
    # What they sample is the same, and so is what is learned
    for one in (model, other):
        one.set_random_seed(1)
        one.learn(40)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[name]), name


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(n_steps=3),
        dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False)),
        dict(replay_buffer_class=FrameReplayBuffer, replay_buffer_kwargs=dict(random_shift=4)),
        dict(gradient_steps=-1, train_freq=(2, "step")),
    ],
)
@pytest.mark.parametrize("algorithm", ["DQN", "SAC", "TD3"])
def test_joint_training_with_other_buffers(algorithm, kwargs):
    model = make_model(algorithm, make_env(algorithm, FRAMES), **kwargs).learn(60)
    assert model.policy.objective.n_updates == model._n_updates > 0


@pytest.mark.parametrize("algorithm", ["DQN", "QRDQN"])
def test_joint_training_with_goals_in_hindsight(algorithm):
    env = BitFlippingEnv(n_bits=4, continuous=False, max_steps=4)
    model = ALGORITHMS[algorithm](
        "JepaPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        learning_starts=20,
        batch_size=8,
        buffer_size=200,
        policy_kwargs=dict(objective_class=CheckedPrediction),
        seed=0,
    ).learn(60)
    assert model.policy.objective.n_updates == model._n_updates > 0


def test_joint_training_with_normalised_observations():
    env = VecNormalize(make_env("SAC", spaces.Box(100, 200, (3,))))
    model = make_model("SAC", env).learn(60)
    seen = []
    model.policy.critic.features_extractor.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model.train(1, 8)
    assert max(float(inputs.abs().max()) for inputs in seen) < 20


def test_what_is_logged_of_an_off_policy_algorithm(tmp_path):
    model = make_model("DQN", make_env("DQN", OBSERVATIONS["vector"]), train_freq=1)
    callback = JepaCallback()
    model.learn(300, callback=callback)
    assert callback.alternating is None
    scalars = model.logger.name_to_value
    assert {"jepa/prediction_loss", "jepa/embedding_variance", "jepa/effective_rank", "jepa/momentum"} <= set(scalars)


def test_schedules_are_followed_off_policy():
    model = DQN(
        "JepaPolicy",
        gym.make("CartPole-v1"),
        learning_starts=10,
        policy_kwargs=dict(objective_kwargs=dict(momentum=(0.9, 1.0))),
    ).learn(200)
    assert 0.98 < model.policy.objective.momentum <= 1.0


def test_stock_policies_train_as_in_stable_baselines3():
    import stable_baselines3

    models = [
        one("MlpPolicy", "Pendulum-v1", learning_starts=20, batch_size=8, seed=0).learn(60)
        for one in (SAC, stable_baselines3.SAC)
    ]
    for (name, one), (_, other) in zip(*(model.policy.state_dict().items() for model in models), strict=True):
        assert th.equal(one, other), name


@pytest.mark.expensive
@pytest.mark.parametrize(
    ("algorithm", "env_id", "timesteps", "least", "kwargs"),
    [
        (
            "DQN",
            "CartPole-v1",
            50_000,
            300,
            # Those of rl-baselines3-zoo
            dict(
                learning_rate=2.3e-3,
                batch_size=64,
                buffer_size=100_000,
                learning_starts=1000,
                target_update_interval=10,
                train_freq=256,
                gradient_steps=128,
                exploration_fraction=0.16,
                exploration_final_eps=0.04,
            ),
        ),
        ("SAC", "Pendulum-v1", 8_000, -300, dict(learning_rate=1e-3)),
    ],
)
def test_joint_off_policy_training_learns(algorithm, env_id, timesteps, least, kwargs):
    # The best of several evaluations, for returns of DQN rise and fall
    evaluation = EvalCallback(
        make_vec_env(env_id),
        eval_freq=timesteps // 8,
        n_eval_episodes=10,
        callback_on_new_best=StopTrainingOnRewardThreshold(least, verbose=0),
        verbose=0,
    )
    ALGORITHMS[algorithm]("JepaPolicy", env_id, seed=0, **kwargs).learn(timesteps, callback=evaluation)
    assert evaluation.best_mean_reward >= least
