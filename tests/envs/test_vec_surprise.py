import os
import pickle

import cloudpickle
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnvWrapper, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_jepa import PPO, JepaCallback, JepaExtractor, JepaPolicy
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.envs.vec_surprise import VecSurprise
from sb3_jepa.extractors.measuring import n_inputs_to_measure
from sb3_jepa.inspection.surprise import surprise
from tests.algorithms.test_matrix import ACTIONS, EXTRACTOR, OBSERVATIONS
from tests.conftest import SMALL_PPO, FakeEnv

STOCK = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=EXTRACTOR, net_arch=[16])
OFF_POLICY = dict(learning_starts=20, buffer_size=200, batch_size=8, train_freq=8, seed=0, device="cpu")


def make_env(observation: str = "vector", action: str = "Box", n_envs: int = 2):
    return make_vec_env(lambda: FakeEnv(OBSERVATIONS[observation], ACTIONS[action]), n_envs=n_envs, seed=0)


def make_model(training: str, env):
    """A model, and the callback that it must be given."""
    if training == "joint":
        policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16])
        return PPO(JepaPolicy, env, policy_kwargs=policy_kwargs, **SMALL_PPO), None
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    if training == "alternating":
        return stable_baselines3.PPO(policy, env, policy_kwargs=dict(STOCK), **SMALL_PPO), JepaCallback()
    return stable_baselines3.SAC(policy, env, policy_kwargs=dict(STOCK), **OFF_POLICY), JepaCallback()


@pytest.fixture(params=["joint", "alternating", "SAC"])
def training(request):
    return request.param


def sample_transitions(model, n: int = 6):
    def sample_observations():
        samples = [by_key(model.observation_space.sample()) for _ in range(n)]
        return as_observations({key: np.stack([sample[key] for sample in samples]) for key in samples[0]})

    actions = np.stack([model.action_space.sample() for _ in range(n)])
    return sample_observations(), actions, sample_observations()


class Watch(VecEnvWrapper):
    """Checks each step's surprise, given its model, and keeps surprises, rewards, extrinsic rewards and ends."""

    model = None

    def reset(self):
        self.last = self.venv.reset()
        self.steps = []
        return self.last

    def step_async(self, actions):
        self.actions = actions
        super().step_async(actions)

    def step_wait(self):
        modes = [module.training for module in self.model.policy.modules()]
        observations, rewards, dones, infos = self.venv.step_wait()
        assert modes == [module.training for module in self.model.policy.modules()]
        led_to = {key: array.copy() for key, array in by_key(observations).items()}
        for index in np.flatnonzero(dones):
            for key, terminal in by_key(infos[index]["terminal_observation"]).items():
                led_to[key][index] = terminal
        expected = np.zeros(len(dones))
        if n_inputs_to_measure(self.model.policy) == 0:
            expected = surprise(self.model, self.last, self.actions, as_observations(led_to))
        told = np.array([info["surprise"] for info in infos])
        assert told == pytest.approx(expected, rel=1e-5)
        extrinsic_rewards = np.array([info.get("extrinsic_reward", np.nan) for info in infos])
        self.steps.append((told, rewards, extrinsic_rewards, dones))
        self.last = observations
        return observations, rewards, dones, infos

    def columns(self):
        return [np.stack(column) for column in zip(*self.steps, strict=True)]


@pytest.mark.parametrize("observation", ["image", "channels-last image", "Dict", "Discrete"])
def test_the_surprise_of_every_step(training, observation):
    env = Watch(VecSurprise(make_env(observation)))
    env.model, callback = make_model(training, env)
    model = env.model
    assert isinstance(model.get_env(), VecTransposeImage) == (observation == "channels-last image")
    model.learn(80, callback=callback)
    surprises, rewards, extrinsic_rewards, dones = env.columns()
    # Once the inputs are measured: after the first rollout, and with SAC when it begins to learn. `Discrete` has none
    begin = 0 if observation == "Discrete" else 16
    assert not surprises[:begin].any()
    assert (surprises[begin:] > 0).all()
    assert dones.any()
    # Without a coefficient the rewards are the environment's
    assert np.isnan(extrinsic_rewards).all()
    assert (rewards < 1).all()


def test_watching_changes_nothing(training):
    trained = []
    for wrap in (lambda env: env, VecSurprise):
        model, callback = make_model(training, wrap(make_env("image")))
        model.learn(80, callback=callback)
        trained.append(model.policy.state_dict())
    for name, value in trained[0].items():
        assert th.equal(value, trained[1][name]), name


def test_an_end_without_its_last_observation_is_no_surprise():
    class ForgetEnds(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            observations, rewards, dones, infos = self.venv.step_wait()
            return observations, rewards, dones, [{} for _ in infos]

    env = VecSurprise(ForgetEnds(make_env()))
    model, _ = make_model("joint", env)
    model.learn(16)
    env.reset()
    told = [env.step(np.zeros((2, 2), dtype=np.float32)) for _ in range(10)]
    for step, (_, _, dones, infos) in enumerate(told):
        assert dones.all() == (step in (4, 9))
        assert all((info["surprise"] == 0) == done for info, done in zip(infos, dones, strict=True))


@pytest.mark.parametrize("wrapper_kwargs", [{}, dict(norm=False), dict(clip=0.4, gamma=0.5), dict(training=False)])
def test_the_reward(training, wrapper_kwargs):
    wrapped = VecSurprise(make_env(), reward_coef=0.3, **wrapper_kwargs)
    env = Watch(wrapped)
    model, callback = make_model(training, env)
    env.model = model
    model.learn(100, callback=callback)
    surprises, rewards, extrinsic_rewards, dones = env.columns()
    assert dones.any()
    statistics, returns = RunningMeanStd(), np.zeros(2)
    for row, raw in enumerate(surprises):
        bonus = np.zeros(2)
        if raw.any():
            if wrapper_kwargs.get("training", True):
                # On over the ends of episodes
                returns = wrapper_kwargs.get("gamma", 0.99) * returns + raw
                statistics.update(returns)
            bonus = raw
            if wrapper_kwargs.get("norm", True):
                bonus = np.minimum(raw / np.sqrt(statistics.var + 1e-8), wrapper_kwargs.get("clip", 10.0))
        assert rewards[row] == pytest.approx(extrinsic_rewards[row] + 0.3 * bonus, rel=1e-5)
    assert rewards.dtype == np.float32
    assert float(wrapped.return_rms.var) == pytest.approx(float(statistics.var))
    assert (statistics.count > 1) == wrapper_kwargs.get("training", True)
    # The monitor inside has the environment's own rewards
    episode_returns = [episode["r"] for episode in model.ep_info_buffer]
    assert episode_returns[0] == pytest.approx(extrinsic_rewards[:5, 0].sum(), abs=1e-5)
    if training == "SAC":
        assert model.replay_buffer.rewards[: len(rewards)] == pytest.approx(rewards, rel=1e-6)


def test_without_a_model_nothing_is_added():
    env = VecSurprise(make_env(), reward_coef=1.0)
    env.reset()
    for _ in range(7):
        _, rewards, _, infos = env.step(np.zeros((2, 2), dtype=np.float32))
        assert [info["surprise"] for info in infos] == [0.0, 0.0]
        assert [info["extrinsic_reward"] for info in infos] == pytest.approx(rewards.tolist())
    # A model that was never trained with an objective says nothing either, and one without an encoder is refused
    stock, _ = make_model("alternating", env)
    env.set_model(stock)
    *_, infos = env.step(np.zeros((2, 2), dtype=np.float32))
    assert infos[0]["surprise"] == 0.0
    with pytest.raises(ValueError, match="no encoder that learns"):
        env.set_model(stable_baselines3.PPO("MlpPolicy", env))
    assert env.return_rms.count < 1


def normalized(env):
    return VecNormalize(env, norm_obs_keys=["speed"] if isinstance(env.observation_space, spaces.Dict) else None)


@pytest.mark.parametrize("observation", ["vector", "Dict"])
def test_observations_are_normalised_inside(training, observation):
    model, callback = make_model(training, normalized(VecSurprise(make_env(observation))))
    with pytest.raises(ValueError, match=r"norm_obs=True.*VecSurprise\(VecNormalize\(env\)\)"):
        model.learn(40, callback=callback)
    assert model.num_timesteps == 0
    # The other way round it sees what the policy sees, and so it does if only rewards are normalised
    env = Watch(VecSurprise(normalized(make_env(observation))))
    env.model, callback = make_model(training, VecNormalize(env, norm_obs=False))
    env.model.learn(40, callback=callback)
    assert env.columns()[0][-1].min() > 0


def test_frames_are_stacked_inside():
    model, _ = make_model("joint", VecFrameStack(VecSurprise(make_env("image", "Discrete")), 2))
    with pytest.raises(ValueError, match="VecFrameStack, belong inside"):
        model.learn(16)
    env = Watch(VecSurprise(VecFrameStack(make_env("image", "Discrete"), 2)))
    env.model, _ = make_model("joint", env)
    env.model.learn(40)
    assert env.columns()[0][-1].min() > 0


def test_rewards_of_off_policy_algorithms_are_normalised_outside():
    model, callback = make_model("SAC", VecSurprise(VecNormalize(make_env()), reward_coef=0.1))
    with pytest.raises(ValueError, match=r"SAC stores.*VecNormalize\(VecSurprise\(env\), norm_obs=False\)"):
        model.learn(40, callback=callback)
    env = Watch(VecSurprise(make_env(), reward_coef=0.1))
    env.model, callback = make_model("SAC", VecNormalize(env, norm_obs=False))
    env.model.learn(60, callback=callback)
    _, rewards, extrinsic_rewards, _ = env.columns()
    assert (rewards != extrinsic_rewards).any()
    # The replay buffer normalises when it is sampled
    assert env.model.replay_buffer.rewards[: len(rewards)] == pytest.approx(rewards, rel=1e-6)


def test_a_training_goes_on_with_the_same_wrapper(training, tmp_path):
    env = Watch(VecSurprise(make_env(), reward_coef=0.1))
    model, callback = make_model(training, env)
    env.model = model
    model.learn(48, callback=callback)
    model.learn(48, callback=callback, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=env)
    env.model = loaded
    loaded.learn(48, callback=callback)
    # Of the loaded model, which has learned something else since: Watch compares
    assert env.columns()[0][-1].min() > 0


def test_a_loaded_model_is_as_surprised_in_a_new_environment(training, tmp_path):
    model, callback = make_model(training, make_env())
    model.learn(64, callback=callback)
    model.save(tmp_path / "model")
    env = VecSurprise(make_env())
    env.set_model(type(model).load(tmp_path / "model"))
    before, actions = env.reset(), np.zeros((2, 2), dtype=np.float32)
    after, _, _, infos = env.step(actions)
    expected = surprise(model, before, actions, after)
    assert expected.std() > 0
    assert [info["surprise"] for info in infos] == pytest.approx(expected.tolist())


def test_an_encoder_can_be_chosen():
    env = VecSurprise(make_env(), encoder="critic")
    model, callback = make_model("SAC", env)
    model.learn(48, callback=callback)
    before, actions = env.reset(), np.zeros((2, 2), dtype=np.float32)
    after, _, _, infos = env.step(actions)
    actor, critic = (surprise(model, before, actions, after, encoder=name) for name in ("actor", "critic"))
    assert [info["surprise"] for info in infos] == pytest.approx(critic.tolist())
    assert not np.allclose(actor, critic)
    assert np.array_equal(surprise(model, before, actions, after), actor)


def test_saved_and_loaded(tmp_path):
    env = VecSurprise(make_env(), reward_coef=0.1, gamma=0.9, clip=5.0)
    model, _ = make_model("joint", env)
    model.learn(48)
    path = tmp_path / "folder" / "surprise.pkl"
    env.save(path)
    # Neither the model nor the environment
    assert path.stat().st_size < 5_000
    other = make_env(n_envs=3)
    loaded = VecSurprise.load(path, other)
    assert (loaded.num_envs, loaded.reward_coef, loaded.gamma, loaded.clip) == (3, 0.1, 0.9, 5.0)
    assert loaded.return_rms.var == env.return_rms.var
    assert loaded.return_rms.count == env.return_rms.count > 1
    assert env.normalize(np.ones(1)) == loaded.normalize(np.ones(1)) < 5
    assert env.normalize(np.full(1, 1e9)) == 5
    loaded.reset()
    assert loaded.step(np.zeros((3, 2), dtype=np.float32))[3][0]["surprise"] == 0.0
    loaded.set_model(model)
    loaded.training = False
    assert loaded.step(np.zeros((3, 2), dtype=np.float32))[3][0]["surprise"] > 0
    assert loaded.return_rms.count == env.return_rms.count
    with pytest.raises(ValueError, match="`venv` can be set once"):
        loaded.set_venv(other)
    assert len(cloudpickle.dumps(loaded)) < 5_000

    # One that cannot be pickled leaves what was there
    saved = path.read_bytes()
    env.not_to_be_pickled = lambda: None
    with pytest.raises((AttributeError, pickle.PicklingError)):
        env.save(path)
    assert path.read_bytes() == saved
    assert os.listdir(path.parent) == ["surprise.pkl"]


def test_an_evaluation_environment_is_wrapped_too(tmp_path):
    env = VecNormalize(VecSurprise(make_env(), reward_coef=0.1), norm_obs=False)
    evaluation_env = VecNormalize(VecSurprise(make_env(n_envs=1)), norm_obs=False, norm_reward=False, training=False)
    evaluation = EvalCallback(evaluation_env, eval_freq=24, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    model, _ = make_model("joint", env)
    model.learn(64, callback=evaluation)
    assert np.isfinite(evaluation.last_mean_reward)
