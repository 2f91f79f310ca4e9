"""Pictures of LiDAR in TensorBoard and in the report."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_jepa import PPO, BevPrediction, LidarExtractor, NextLatentPrediction, PictureCallback, pretrain
from sb3_jepa.data import Recordings
from sb3_jepa.report import write_report

SMALL = dict(range=(-8, 8, -8, 8, -2, 2), cell=1.0, width=4, cell_dim=8, halvings=1)
POINTS = spaces.Box(-np.inf, np.inf, (40, 3), np.float32)


class Corridor(gym.Env):
    """Points on two walls, along which it goes."""

    observation_space, action_space = POINTS, spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.n_steps = 0.0, 0
        return self._points(), {}

    def step(self, action):
        self.place += float(action[0])
        self.n_steps += 1
        return self._points(), -abs(self.place), False, self.n_steps == 10, {}

    def _points(self):
        x = self.np_random.uniform(-7, 7, 40)
        y = np.where(np.arange(40) % 2, 3.0, -3.0) + self.place
        return np.stack([x, y, self.np_random.uniform(-1, 1, 40)], axis=1).astype(np.float32)


def tags(folder):
    return EventAccumulator(str(folder), size_guidance=dict(images=0)).Reload().Tags()


@pytest.mark.parametrize("objective_class", [BevPrediction, NextLatentPrediction])
def test_a_training_and_its_report_show_lidar_from_above(objective_class, tmp_path):
    model = PPO(
        "JepaPolicy",
        Corridor(),
        n_steps=32,
        batch_size=16,
        n_epochs=1,
        policy_kwargs=dict(
            features_extractor_class=LidarExtractor,
            features_extractor_kwargs=SMALL,
            objective_class=objective_class,
        ),
        tensorboard_log=str(tmp_path / "runs"),
        device="cpu",
    )
    model.learn(64, callback=PictureCallback(1, projector=False))
    logged = tags(next((tmp_path / "runs").iterdir()))
    assert "jepa_pictures/birds_eye" in logged["images"]
    assert ("jepa/occupancy_iou" in logged["scalars"]) == (objective_class is BevPrediction)
    write_report(model, DummyVecEnv([Corridor]), tmp_path / "report.html", n_steps=40)
    assert 'id="birds_eye"' in (tmp_path / "report.html").read_text()


def test_a_pretraining_draws_and_measures_what_is_free(tmp_path):
    env = Corridor()
    env.reset(seed=0)
    rows = np.stack([env._points() for _ in range(60)])
    file = pretrain(
        Recordings(POINTS, rows, np.arange(60) // 10),
        tmp_path,
        BevPrediction,
        features_extractor_class=LidarExtractor,
        features_extractor_kwargs=SMALL,
        n_updates=4,
        batch_size=8,
        eval_freq=2,
        device="cpu",
    )
    logged = tags(tmp_path)
    assert "jepa_pictures/birds_eye" in logged["images"]
    assert {"jepa/occupancy_iou", "jepa/occupied_loss", "jepa/empty_loss"} <= set(logged["scalars"])
    assert file.exists()


def test_a_pretraining_refuses_what_is_no_encoder(tmp_path):
    with pytest.raises(ValueError, match=r"`features_extractor_class` must be one of JepaExtractor"):
        pretrain(np.zeros((10, 4), np.float32), tmp_path, features_extractor_class=BevPrediction)
