import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy

import sb3_jepa
from sb3_jepa import JepaExtractor
from sb3_jepa.algorithms.saved_models import find_model, load_model
from sb3_jepa.envs.for_model import make_env_for
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.report.curves import read_curves
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO

STOCK_POLICY = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "MaskablePPO", "RecurrentPPO"])
def test_the_joint_algorithm_is_guessed(algorithm, tmp_path):
    cls = getattr(sb3_jepa, algorithm)
    cls("JepaPolicy", "CartPole-v1", policy_kwargs=dict(SMALL_POLICY)).save(tmp_path / "model")
    loaded = load_model(tmp_path / "model.zip")
    assert type(loaded) is cls


@pytest.mark.parametrize(
    ("cls", "env"),
    [
        (stable_baselines3.PPO, "CartPole-v1"),
        (stable_baselines3.A2C, "CartPole-v1"),
        (stable_baselines3.DQN, "CartPole-v1"),
        (stable_baselines3.SAC, "Pendulum-v1"),
        (stable_baselines3.TD3, "Pendulum-v1"),
        (sb3_contrib.TRPO, "CartPole-v1"),
        (sb3_contrib.QRDQN, "CartPole-v1"),
        (sb3_contrib.TQC, "Pendulum-v1"),
        (sb3_contrib.CrossQ, "Pendulum-v1"),
    ],
)
def test_the_stock_algorithm_is_guessed(cls, env, tmp_path):
    cls("MlpPolicy", env, policy_kwargs=dict(STOCK_POLICY)).save(tmp_path / "model")
    assert type(load_model(tmp_path / "model.zip")) is cls


class OwnPolicy(ActorCriticPolicy):
    pass


class OwnPPO(stable_baselines3.PPO):
    pass


def test_a_policy_of_ones_own_is_that_of_its_ancestor(tmp_path):
    OwnPPO(OwnPolicy, "CartPole-v1").save(tmp_path / "model")
    assert type(load_model(tmp_path / "model.zip")) is stable_baselines3.PPO
    assert type(load_model(tmp_path / "model.zip", f"{__name__}:OwnPPO")) is OwnPPO
    with pytest.raises(ValueError, match=r'"module:class".*:Other'):
        load_model(tmp_path / "model.zip", f"{__name__}:Other")


def test_the_latest_model_of_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no saved model \(\*\.zip\)"):
        find_model(tmp_path)
    with pytest.raises(ValueError, match="`path` must be a saved model"):
        find_model(tmp_path / "model")
    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1")
    (tmp_path / "models").mkdir()
    for name in ("old", "models/new"):
        model.save(tmp_path / name)
    assert find_model(tmp_path) == tmp_path / "models" / "new.zip"
    assert find_model(tmp_path / "old") == tmp_path / "old.zip"


def test_the_environment_is_drawn_if_the_model_takes_pixels(pixel_cartpole):
    model = sb3_jepa.PPO("JepaPolicy", pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    env = make_env_for(model, "CartPole-v1", n_envs=2, seed=0)
    assert env.observation_space == model.observation_space
    assert np.array_equal(env.reset(), pixel_cartpole.reset())


def test_an_environment_that_does_not_fit_is_refused(pixel_cartpole):
    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1")
    assert make_env_for(model, "CartPole-v1").num_envs == 8
    with pytest.raises(ValueError, match=r"The model takes .*\(4,\).*Pendulum-v1 gives .*write_report"):
        make_env_for(model, "Pendulum-v1")


@pytest.mark.parametrize("output", ["csv", "tensorboard"])
def test_curves_are_those_that_were_logged(output, pixel_cartpole, tmp_path):
    assert read_curves(tmp_path) == {}
    model = sb3_jepa.PPO("JepaPolicy", pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path / "run"), [output]))
    model.learn(3 * 32)
    steps, values = read_curves(tmp_path)["jepa/embedding_variance"]
    assert steps.tolist() == [64, 96, 128]
    assert np.all(values > 0)
    # A text is no curve
    assert "jepa/verdict" not in read_curves(tmp_path)


@pytest.mark.parametrize("frames", [1, 3])
def test_frames_of_colour_are_drawn_in_colour(frames):
    env = make_pixel_vec_env("CartPole-v1", seed=0, frame_size=32, frames=frames, grayscale=False)
    kwargs = dict(SMALL_POLICY, features_extractor_kwargs=dict(SMALL_EXTRACTOR, frames=frames))
    model = sb3_jepa.PPO("JepaPolicy", env, policy_kwargs=kwargs, **SMALL_PPO)
    assert np.array_equal(make_env_for(model, "CartPole-v1", n_envs=1, seed=0).reset(), env.reset())


def test_tables_that_are_not_whole(tmp_path):
    table = tmp_path / "progress.csv"
    for content in ("", "time/total_timesteps,a\n"):
        table.write_text(content)
        assert all(len(steps) == 0 for steps, _ in read_curves(tmp_path).values())
    table.write_text("time/total_timesteps,a,b\n1,2,yes\n2\n3,4,no,5\n")
    # An event file that holds nothing does not hide it
    (tmp_path / "events.out.tfevents.0").write_bytes(b"")
    curves = read_curves(tmp_path)
    assert curves["a"][0].tolist() == [1, 3]
    assert curves["a"][1].tolist() == [2, 4]
    assert "b" not in curves


def test_vectors_are_taken_as_they_are():
    model = sb3_jepa.PPO("JepaPolicy", make_vec_env("CartPole-v1"), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    assert make_env_for(model, "CartPole-v1", n_envs=3).reset().shape == (3, 4)
