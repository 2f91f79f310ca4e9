"""What else Stable-Baselines3 has for a training works as ever."""

import json

import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecVideoRecorder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_jepa import PPO, JepaCallback, JepaExtractor
from sb3_jepa.envs.pixels import make_pixel_vec_env
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO

OFF_POLICY = dict(learning_starts=40, buffer_size=200, batch_size=8, train_freq=8, seed=0, device="cpu")


def make_env(**kwargs):
    return make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32, **kwargs)


def make_model(training: str, env):
    """A model, and the callback that it must be given."""
    if training == "joint":
        return PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO), []
    policy_kwargs = dict(
        features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16]
    )
    if training == "alternating":
        model = stable_baselines3.PPO("CnnPolicy", env, policy_kwargs=policy_kwargs, **SMALL_PPO)
    else:
        model = stable_baselines3.DQN("CnnPolicy", env, policy_kwargs=policy_kwargs, **OFF_POLICY)
    return model, [JepaCallback()]


@pytest.fixture(params=["joint", "alternating", "off-policy"])
def training(request):
    return request.param


def test_callbacks(training, tmp_path):
    model, jepa = make_model(training, make_env())
    evaluation = EvalCallback(
        make_env(),
        eval_freq=24,
        n_eval_episodes=1,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        callback_after_eval=StopTrainingOnNoModelImprovement(100),
        verbose=0,
    )
    checkpoints = CheckpointCallback(20, str(tmp_path), save_replay_buffer=training == "off-policy")
    model.learn(96, callback=[evaluation, checkpoints, ProgressBarCallback(), *jepa])
    assert len(np.load(tmp_path / "evaluations.npz")["timesteps"]) == 2
    for name in ("best_model", "rl_model_40_steps", "rl_model_80_steps"):
        loaded = type(model).load(tmp_path / name, env=make_env(), device="cpu")
        assert 1 <= evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=2)[0] <= 500
    # A checkpoint goes on
    loaded.learn(32, callback=jepa, reset_num_timesteps=False)
    assert loaded.num_timesteps == 80 + 32


def test_logger_formats(training, tmp_path):
    pandas = pytest.importorskip("pandas")
    model, jepa = make_model(training, make_env(monitor_dir=str(tmp_path / "monitor")))
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json", "tensorboard"]))
    # Off-policy, a row is written when an episode ends
    model.learn(160, callback=jepa, log_interval=1)
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("jepa/prediction_loss", "jepa/effective_rank"):
        table = pandas.read_csv(tmp_path / "progress.csv")[name].dropna()
        in_json = [row[name] for row in rows if name in row]
        assert len(in_json) > 0
        assert table.to_list() == pytest.approx(in_json)
        assert [event.value for event in events.Scalars(name)] == pytest.approx(in_json)
    assert "prediction_loss" in (tmp_path / "log.txt").read_text()
    # The monitor's files have every episode, the first ones too
    episodes = load_results(str(tmp_path / "monitor"))["l"]
    assert model.num_timesteps - 2 * 100 < episodes.sum() <= model.num_timesteps


def test_videos(training, tmp_path):
    pytest.importorskip("moviepy")
    env = VecVideoRecorder(make_env(), str(tmp_path), lambda step: step == 0, video_length=20)
    model, jepa = make_model(training, env)
    model.learn(64, callback=jepa)
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000
