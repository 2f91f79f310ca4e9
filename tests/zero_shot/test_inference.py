"""Tasks and their policies, as users of Stable-Baselines3 handle them."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import (
    TDJEPA,
    DrqExtractor,
    FrameReplayBuffer,
    JepaExtractor,
    Recordings,
    TaskEvalCallback,
    TaskPictureCallback,
)
from sb3_jepa.data import record_env
from sb3_jepa.zero_shot import TDJEPAPolicy
from tests.conftest import FakeEnv
from tests.zero_shot.test_td_jepa import make_model

pytestmark = pytest.mark.filterwarnings("ignore:The task vector reproduces")


@pytest.fixture(scope="module")
def data() -> Recordings:
    return record_env("Pendulum-v1", 1_000, progress_bar=False)


@pytest.fixture(scope="module")
def model(data) -> TDJEPA:
    return make_model().learn_offline(data, 30)


def upright(observations: np.ndarray) -> np.ndarray:
    return observations[:, 0]


def test_a_task_of_rewards_has_a_policy_of_stable_baselines3(model, tmp_path):
    task = model.infer(reward=upright)
    assert task.fit.r2 > 0.5
    assert task.fit.n_observations == 1_000 - 5
    assert np.linalg.norm(task.vector) == pytest.approx(6**0.5, rel=1e-4)
    np.testing.assert_array_equal(task.vector, model.infer(reward=upright).vector)
    policy, env = model.policy_for(task), make_vec_env("Pendulum-v1", 2, seed=0)
    mean, _ = evaluate_policy(policy, env, n_eval_episodes=2)
    assert np.isfinite(mean)
    observations = env.reset()
    actions, state = policy.predict(observations, deterministic=True)
    assert actions.shape == (2, 1)
    assert state is None
    assert policy.predict(observations[0], deterministic=True)[0].shape == (1,)
    policy.save(tmp_path / "policy.zip")
    loaded = TDJEPAPolicy.load(tmp_path / "policy.zip")
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)


def test_a_policy_is_a_copy(data):
    model = make_model().learn_offline(data, 5)
    policy = model.policy_for(model.random_task())
    observation = np.zeros(3, np.float32)
    before, _ = policy.predict(observation, deterministic=True)
    model.learn_offline(None, 20)
    np.testing.assert_array_equal(policy.predict(observation, deterministic=True)[0], before)


def test_a_saved_model_infers_the_same_tasks(model, tmp_path):
    task = model.infer(reward=upright)
    model.save(tmp_path / "model")
    loaded = TDJEPA.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    np.testing.assert_allclose(loaded.infer(reward=upright).vector, task.vector, atol=1e-5)
    goal = np.array([1, 0, 0], np.float32)
    np.testing.assert_allclose(loaded.infer(goal=goal).vector, model.infer(goal=goal).vector, atol=1e-6)
    with pytest.raises(ValueError, match="`data` must be recordings as long as the replay buffer is empty"):
        loaded.learn_offline(None, 5)


def test_the_same_seed_learns_the_same(data):
    one, other = (make_model().learn_offline(data, 10) for _ in range(2))
    for name, value in one.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[name]), name


def test_logging_does_not_change_what_is_learned(data):
    one, other = (make_model().learn_offline(data, 10, log_interval=interval) for interval in (2, 100))
    for name, value in one.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[name]), name


def test_a_demonstration_has_a_task_for_each_step(model):
    episode = np.stack([np.array([np.cos(a), np.sin(a), 0.5], np.float32) for a in np.linspace(0, 2, 9)])
    task = model.infer(demonstration=episode, horizon=3)
    assert task.vector.shape == (8, 6)
    policy = model.policy_for(task)
    observations = np.repeat(episode[:1], 2, axis=0)
    state, starts, seen = None, np.array([True, True]), []
    for _ in range(3):
        actions, state = policy.predict(observations, state, starts, deterministic=True)
        seen.append(actions)
        # The second environment begins anew at each step
        starts = np.array([False, True])
    for step, actions in enumerate(seen):
        for row, at in ((0, step), (1, 0)):
            expected, _ = model.policy_for(task.vector[at]).predict(observations[row], deterministic=True)
            np.testing.assert_allclose(actions[row], expected, atol=1e-5)
    evaluate_policy(policy, make_vec_env("Pendulum-v1"), n_eval_episodes=1)


def test_rewards_can_be_lived_through(model):
    task = model.infer(env=gym.make("Pendulum-v1"), n_steps=300)
    assert task.source == "interaction"
    assert task.fit.n_observations > 290


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(), "exactly one of"),
        (dict(goal=np.zeros(3), reward=upright), "exactly one of"),
        (dict(rewards=np.ones(3)), "exactly one of"),
        (dict(goal=np.zeros(4)), "`goal` must have observations of"),
        (dict(goal=np.array([7.0, 0, 0])), "`goal` must lie in"),
        (dict(goal=np.array([np.nan, 0, 0])), "`goal` must be finite"),
        (dict(reward=lambda observations: 1.0), "must return a number for each of 995 observations"),
        (dict(reward=lambda observations: observations.no_such), "`reward` failed with 995 observations at once"),
        (dict(reward=lambda observations: 0 * observations[:, 0]), "All 995 rewards are 0"),
        (dict(rewards=np.ones(2), observations=np.zeros((3, 3))), "one number for each of 3 observations"),
        (dict(demonstration=np.zeros((1, 3))), "at least 2 observations"),
    ],
)
def test_what_is_wrong_with_a_task_is_told(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.infer(**arguments)


def test_nothing_can_be_inferred_before_anything_was_learned():
    with pytest.raises(ValueError, match="Nothing was learned yet"):
        make_model().infer(reward=upright)
    with pytest.raises(ValueError, match="no task to act for"):
        make_model().predict(np.zeros(3, np.float32))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_offline_learning_has_the_callbacks_of_stable_baselines3(data, tmp_path, n_envs):
    model = make_model(env=make_vec_env("Pendulum-v1", n_envs), tensorboard_log=str(tmp_path))
    tasks = dict(upright=dict(env=gym.make("Pendulum-v1"), reward=upright))
    evaluation = TaskEvalCallback(tasks, 10, 1, log_path=tmp_path / "log", best_model_save_path=tmp_path / "best")
    checkpoints = CheckpointCallback(10, str(tmp_path / "checkpoints"))
    pictures = TaskPictureCallback(tasks, 20)
    model.learn_offline(data, 20, callback=[evaluation, checkpoints, pictures], log_interval=5, progress_bar=True)
    assert model.num_timesteps == 20
    assert set(np.load(tmp_path / "log" / "evaluations.npz")["timesteps"]) == {10, 20}
    assert evaluation.last_returns.keys() == {"upright"}
    TDJEPA.load(tmp_path / "best" / "best_model.zip")
    assert len(list((tmp_path / "checkpoints").glob("*.zip"))) == 2
    model.learn_offline(None, 5, reset_num_timesteps=False)
    assert model.num_timesteps == 25


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        (dict(actions=None, action_space=None), "`data` must have actions"),
        (dict(action_space=spaces.Box(-2, 2, (2,)), actions=np.zeros((300, 2), np.float32)), "the action space"),
        (dict(observation_space=spaces.Box(-1, 1, (4,)), observations=np.zeros((300, 4), np.float32)), "observation"),
        (dict(episodes=np.zeros(300, np.int64)), "must say where episodes end"),
        (dict(observations=np.full((300, 3), np.nan, np.float32)), "must be finite"),
        (dict(episodes=np.arange(300)), "at least one step"),
    ],
)
def test_what_is_wrong_with_data_is_told(recordings, message):
    arguments = dict(
        observation_space=spaces.Box(-1, 1, (3,)),
        observations=np.zeros((300, 3), np.float32),
        episodes=np.arange(300) // 100,
        action_space=spaces.Box(-2, 2, (1,)),
        actions=np.zeros((300, 1), np.float32),
    )
    with pytest.raises(ValueError, match=message):
        make_model().learn_offline(Recordings(**{**arguments, **recordings}), 1)


def test_a_file_is_read_with_the_spaces_of_the_environment(tmp_path, data):
    path = tmp_path / "data.npz"
    ends = np.append(data.episodes[1:] != data.episodes[:-1], True)
    np.savez(path, observations=data.observations, actions=data.actions, terminals=0 * ends, timeouts=ends)
    model = make_model().learn_offline(path, 3)
    assert model.replay_buffer.size() == 1_000 - 5
    # Time limits are no terminations, and actions are scaled
    assert model.replay_buffer.dones.sum() == 5
    assert model.replay_buffer.timeouts.sum() == 5
    assert np.abs(model.replay_buffer.actions).max() <= 1.0


@pytest.mark.parametrize("extractor", [None, JepaExtractor, DrqExtractor])
def test_pixels(extractor):
    env = make_vec_env(lambda: FakeEnv(spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Box(-1, 1, (2,))))
    policy_kwargs = dict(net_arch=[16, 16], state_dim=12, task_dim=6, encoder_dim=16)
    if extractor is not None:
        policy_kwargs.update(features_extractor_class=extractor)
    if extractor is JepaExtractor:
        policy_kwargs.update(features_extractor_kwargs=dict(embed_dim=16, num_heads=2, depth=1, patch_size=12))
    model = TDJEPA(
        "CnnPolicy",
        env,
        learning_starts=20,
        batch_size=8,
        buffer_size=200,
        replay_buffer_kwargs=dict(random_shift=2),
        policy_kwargs=policy_kwargs,
    )
    assert isinstance(model.replay_buffer, FrameReplayBuffer)
    model.learn(30)
    if extractor is JepaExtractor:
        standardizations = model.policy.state_encoder.features_extractor.standardizations
        assert all(int(one.n_seen) > 0 for one in standardizations)
    recordings = record_env(env, 60, progress_bar=False)
    model.learn_offline(recordings, 3)
    assert isinstance(model.replay_buffer, FrameReplayBuffer)
    task = model.infer(reward=lambda images: images.mean(axis=(1, 2, 3)))
    model.policy_for(task).predict(env.reset())


def test_dict_observations_and_vec_normalize():
    space = spaces.Dict(a=spaces.Box(-5, 5, (2,)), b=spaces.Discrete(3))
    env = make_vec_env(lambda: FakeEnv(space, spaces.Discrete(3)))
    model = TDJEPA("MultiInputPolicy", env, learning_starts=20, batch_size=8, policy_kwargs=dict(net_arch=[8, 8]))
    model.learn(40)
    task = model.infer(reward=lambda observations: observations["a"][:, 0])
    model.policy_for(task).predict(env.reset())
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    model = make_model(env=env).learn(60)
    # The reward sees what the environment gives, and not what is normalised
    model.infer(reward=lambda observations: (np.abs(observations[:, :2]) <= 1.0).all(axis=1) + observations[:, 0])


def test_warnings_of_a_bad_fit_point_to_the_caller(model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.infer(rewards=np.eye(1, 500)[0], observations=np.repeat([[1.0, 0.0, 0.0]], 500, axis=0))
    assert [one.filename for one in caught] == [__file__]
