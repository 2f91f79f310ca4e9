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
from sb3_jepa.diagnostics import area_under_curve
from sb3_jepa.envs.pixels import PixelObservation, make_pixel_vec_env
from sb3_jepa.envs.vec_surprise import VecSurprise
from sb3_jepa.extractors.measuring import n_inputs_to_measure
from sb3_jepa.inspection.surprise import surprise
from tests.algorithms.test_matrix import ACTIONS, EXTRACTOR, OBSERVATIONS
from tests.conftest import SMALL_PPO, FakeEnv, make_counting_env

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


@pytest.mark.parametrize("action", ACTIONS)
def test_formula(action):
    model, _ = make_model("joint", make_env(action=action))
    model.learn(32)
    observations, actions, next_observations = sample_transitions(model)
    encoded = {
        "Discrete": lambda: np.eye(3)[actions],
        "Box": lambda: actions / 2,
        "MultiDiscrete": lambda: np.concatenate((np.eye(3)[actions[:, 0]], np.eye(2)[actions[:, 1]]), axis=1),
        "MultiBinary": lambda: actions,
    }[action]()
    encoder, objective = model.policy.features_extractor, model.policy.objective
    with th.no_grad():
        expected = objective.predictor(encoder(th.as_tensor(observations)), th.as_tensor(encoded, dtype=th.float32))
        expected -= objective.target_encoder.encoder(th.as_tensor(next_observations))
    told = surprise(model, observations, actions, next_observations)
    assert told.shape == (6,)
    assert told == pytest.approx((expected**2).sum(dim=1).numpy(), rel=1e-5)
    assert told.min() > 0


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_single_transition_needs_no_batch(observation):
    env = make_env(observation)
    model, _ = make_model("joint", env)
    model.learn(16)
    observations, actions, next_observations = sample_transitions(model, n=3)
    together = surprise(model, observations, actions, next_observations)
    for row in range(3):
        before, after = (
            as_observations({key: array[row] for key, array in by_key(batch).items()})
            for batch in (observations, next_observations)
        )
        alone = surprise(model, before, actions[row], after)
        assert alone.shape == (1,)
        assert alone == pytest.approx(together[[row]], rel=1e-4)
    if observation == "channels-last image":
        last = [np.moveaxis(images, 1, -1) for images in (observations, next_observations)]
        assert last[0].shape[1:] == env.observation_space.shape
        assert np.array_equal(surprise(model, last[0], actions, last[1]), together)


def test_transitions_that_do_not_fit_are_refused():
    model, _ = make_model("joint", make_env())
    observations, actions, next_observations = sample_transitions(model)
    with pytest.raises(ValueError, match=r"got 6 `observations`, 6 `actions`, 1 `next_observations`"):
        surprise(model, observations, actions, next_observations[0])
    with pytest.raises(ValueError, match=r"got 5 `observations`, 6 `actions`, 6 `next_observations`"):
        surprise(model, observations[:5], actions, next_observations)
    with pytest.raises(ValueError, match=r"`actions` must be of shape \(batch, 2\), got \(6, 3\)"):
        surprise(model, observations, np.zeros((6, 3)), next_observations)
    with pytest.raises(ValueError, match=r"'shared'.*'critic'"):
        surprise(model, observations, actions, next_observations, encoder="critic")
    stock, _ = make_model("alternating", make_env())
    with pytest.raises(ValueError, match=r"no JEPA objective.*JepaCallback"):
        surprise(stock, observations, actions, next_observations)


def test_what_is_out_of_range_is_refused():
    env = make_env()
    for name, value in (("reward_coef", -1.0), ("reward_coef", float("nan")), ("clip", 0.0), ("gamma", 1.1)):
        with pytest.raises(ValueError, match=rf"`{name}` must .*, got {value}"):
            VecSurprise(env, **{name: value})
    with pytest.raises(ValueError, match="`venv` must be an instance of VecEnv, got"):
        VecSurprise(FakeEnv(OBSERVATIONS["vector"]))


@pytest.mark.parametrize("observation", ["image", "channels-last image", "Dict", "Discrete"])
def test_the_surprise_of_every_step(training, observation):
    env = Watch(VecSurprise(make_env(observation)))
    model, callback = make_model(training, env)
    assert isinstance(model.get_env(), VecTransposeImage) == (observation == "channels-last image")
    env.model = model
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


def test_the_last_observation_of_an_episode_is_what_counts():
    # Channel 1 of an image is the number of its episode, channel 2 the time in it
    inner = make_counting_env()
    env = VecSurprise(inner)
    model, _ = make_model("joint", env)
    seen = []

    class Spy:
        policy, has_objective = model.policy, True

        def surprise(self, observations, actions, next_observations):
            seen.append((observations[:, :, 0, 0], next_observations[:, :, 0, 0]))
            return np.ones(len(actions), dtype=np.float32)

    model.learn(48)
    env._latent_model = Spy()
    env.reset()
    for _ in range(20):
        env.step(np.zeros(3, dtype=int))
    assert len(seen) == 20
    for before, after in seen:
        assert np.array_equal(before[:, :2], after[:, :2])
        assert np.array_equal(before[:, 2] + 1, after[:, 2])


def test_an_end_that_nobody_knows_is_no_surprise():
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


@pytest.mark.parametrize("observation", ["vector", "Dict"])
def test_it_must_see_what_the_policy_sees(training, observation):
    keys = ["speed"] if observation == "Dict" else None
    model, callback = make_model(training, VecNormalize(VecSurprise(make_env(observation)), norm_obs_keys=keys))
    with pytest.raises(ValueError, match=r"norm_obs=True.*VecSurprise\(VecNormalize\(env\)\)"):
        model.learn(40, callback=callback)
    assert model.num_timesteps == 0
    # The other way round it does, and so it does if only rewards are normalised
    env = Watch(VecSurprise(VecNormalize(make_env(observation), norm_obs_keys=keys)))
    env = VecNormalize(env, norm_obs=False)
    model, callback = make_model(training, env)
    env.venv.model = model
    model.learn(40, callback=callback)
    assert env.columns()[0][-1].min() > 0


def test_wrappers_that_change_observations_belong_inside():
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS["image"]), n_envs=2)
    model, _ = make_model("joint", VecFrameStack(VecSurprise(env), 2))
    with pytest.raises(ValueError, match="VecFrameStack, belong inside"):
        model.learn(16)
    watch = Watch(VecSurprise(VecFrameStack(env, 2)))
    watch.model, _ = make_model("joint", watch)
    watch.model.learn(40)
    assert watch.columns()[0][-1].min() > 0


def test_normalised_rewards_of_off_policy_algorithms():
    model, callback = make_model("SAC", VecSurprise(VecNormalize(make_env()), reward_coef=0.1))
    with pytest.raises(ValueError, match=r"SAC stores.*VecNormalize\(VecSurprise\(env\), norm_obs=False\)"):
        model.learn(40, callback=callback)
    env = VecNormalize(Watch(VecSurprise(make_env(), reward_coef=0.1)), norm_obs=False)
    model, callback = make_model("SAC", env)
    env.venv.model = model
    model.learn(60, callback=callback)
    _, rewards, extrinsic_rewards, _ = env.columns()
    assert (rewards != extrinsic_rewards).any()
    # The replay buffer normalises when it is asked
    assert model.replay_buffer.rewards[: len(rewards)] == pytest.approx(rewards, rel=1e-6)


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
    assert env.columns()[0][-1].min() > 0
    assert env.venv._latent_model.model is loaded


def test_a_loaded_model_is_as_surprised(training, tmp_path):
    model, callback = make_model(training, make_env())
    model.learn(64, callback=callback)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    transitions = sample_transitions(model)
    told = surprise(model, *transitions)
    assert told.std() > 0
    assert np.array_equal(surprise(loaded, *transitions), told)
    # And in an environment that it has never seen
    env = VecSurprise(make_env())
    env.set_model(loaded)
    before = env.reset()
    actions = np.zeros((2, 2), dtype=np.float32)
    after, _, _, infos = env.step(actions)
    expected = surprise(model, before, actions, after)
    assert [info["surprise"] for info in infos] == pytest.approx(expected.tolist())


def test_an_encoder_can_be_chosen():
    env = VecSurprise(make_env(), encoder="critic")
    model, callback = make_model("SAC", env)
    model.learn(48, callback=callback)
    assert env._latent_model.name == "critic"
    transitions = sample_transitions(model)
    actor, critic = (surprise(model, *transitions, encoder=name) for name in ("actor", "critic"))
    assert np.array_equal(env._latent_model.surprise(*transitions), critic)
    assert not np.allclose(actor, critic)
    assert np.array_equal(surprise(model, *transitions), actor)


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


def far_away(pixels: PixelObservation, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What would be seen next if the cart had jumped by at least 1 of the 4.8 that the picture is wide."""
    cartpole = pixels.unwrapped
    state = cartpole.state
    choices = rng.uniform(-2, 2, size=100)
    position = choices[np.abs(choices - state[0]) > 1][0]
    cartpole.state = np.array([position, 0, rng.uniform(-0.2, 0.2), 0])
    frame = pixels._draw()
    cartpole.state = state
    return np.concatenate((observation[len(frame) :], frame))


def areas_under_curves(model, frame_size: int, n: int = 500) -> tuple[float, float]:
    """
    How well surprise tells what happened from what did not, in episodes of a random policy that no training has seen:
    swapped next observations, and jumps.
    """
    rng = np.random.default_rng(0)
    env = make_pixel_vec_env("CartPole-v1", seed=1000, frame_size=frame_size)
    (pixels,) = env.envs
    while not isinstance(pixels, PixelObservation):
        pixels = pixels.env
    before, actions, after, jumped = [], rng.integers(2, size=n), [], []
    observations = env.reset()
    for action in actions:
        before.append(observations[0])
        observations, _, dones, infos = env.step(np.array([action]))
        after.append(infos[0]["terminal_observation"] if dones[0] else observations[0])
        jumped.append(far_away(pixels, before[-1], rng))
    before, after, jumped = np.stack(before), np.stack(after), np.stack(jumped)
    # Each gets that of another
    swapped = after[(np.arange(n) + rng.integers(1, n, size=n)) % n]
    happened = surprise(model, before, actions, after)
    return tuple(area_under_curve(happened, surprise(model, before, actions, other)) for other in (swapped, jumped))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.expensive) for seed in (1, 2))])
def test_what_cannot_happen_is_surprising(seed):
    env = make_pixel_vec_env("CartPole-v1", n_envs=8, seed=seed, frame_size=32)
    policy_kwargs = dict(
        features_extractor_class=JepaExtractor,
        features_extractor_kwargs=dict(depth=1, patch_size=16, standardize_frames=512),
    )
    model = stable_baselines3.PPO(
        "MlpPolicy", env, n_steps=128, batch_size=64, n_epochs=1, policy_kwargs=policy_kwargs, seed=seed, device="cpu"
    )
    model.learn(3072, callback=JepaCallback(n_updates=200, learning_rate=2e-3))
    swapped, jumped = areas_under_curves(model, frame_size=32)
    assert swapped > 0.95
    assert jumped > 0.99
