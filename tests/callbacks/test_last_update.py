"""What is logged of the last update, after which no rollout comes."""

import json

import pytest
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_jepa import PPO, JepaCallback, JepaExtractor, ProbeCallback
from tests.conftest import SMALL_POLICY, SMALL_PPO, FakeEnv

ALTERNATING = dict(SMALL_POLICY, features_extractor_class=JepaExtractor)


OFF_POLICY = dict(learning_starts=32, batch_size=16, train_freq=2, seed=0, device="cpu")


def make_model(training: str, env="CartPole-v1", **kwargs):
    if training == "joint":
        return PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, **kwargs})
    if training == "in turn":
        return stable_baselines3.PPO("MlpPolicy", env, policy_kwargs=ALTERNATING, **{**SMALL_PPO, **kwargs})
    return stable_baselines3.DQN("MlpPolicy", env, policy_kwargs=ALTERNATING, **{**OFF_POLICY, **kwargs})


def points_of(folder) -> dict[str, list[tuple[int, float]]]:
    """Steps and values, as TensorBoard has them, and checked to be the same in tables."""
    events = EventAccumulator(str(folder)).Reload()
    points = {
        name: [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    rows = [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]
    for name, of_name in points.items():
        assert [(row["time/total_timesteps"], row[name]) for row in rows if name in row] == of_name, name
    return points


@pytest.mark.parametrize("probe_is_last", [True, False])
@pytest.mark.parametrize("training", ["joint", "in turn", "off-policy"])
def test_no_step_has_two_points_though_a_training_goes_on(training, probe_is_last, tmp_path):
    model = make_model(training)
    model.set_logger(configure(str(tmp_path), ["tensorboard", "json"]))
    probe = ProbeCallback(attribute="state", every_n_rollouts=2, every_n_steps=1)
    for _ in range(3):
        callbacks = [JepaCallback(), probe] if probe_is_last else [probe, JepaCallback()]
        model.learn(7 * 16, callback=callbacks, reset_num_timesteps=False, log_interval=1)
    points = points_of(tmp_path)
    assert {"train/loss", "jepa/prediction_loss", "jepa_probe/x"} <= points.keys()
    for name, of_name in points.items():
        steps = [step for step, _ in of_name]
        assert len(set(steps)) == len(steps), (name, steps)


@pytest.mark.parametrize("training", ["joint", "in turn"])
def test_the_last_update_is_logged_where_the_next_rollout_would_have_ended(training, tmp_path):
    for name, trainings in dict(once=[4 * 64], twice=[2 * 64, 2 * 64]).items():
        model = make_model(training, n_steps=64)
        model.set_logger(configure(str(tmp_path / name), ["tensorboard", "json"]))
        for n_steps in trainings:
            model.learn(n_steps, callback=JepaCallback(), reset_num_timesteps=False)
        points = points_of(tmp_path / name)
        for scalar in ("train/loss", "jepa/prediction_loss", "jepa/momentum"):
            assert [step for step, _ in points[scalar]] == [128, 192, 256, 320], scalar


def test_of_a_rollout_that_is_stopped_the_end_is_where_it_would_have_been(tmp_path):
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 16 + 5

    model = make_model("joint")
    model.set_logger(configure(str(tmp_path), ["tensorboard", "json"]))
    model.learn(1000, callback=Stop())
    assert model.num_timesteps == 21
    assert [step for step, _ in points_of(tmp_path)["train/loss"]] == [32]


def test_off_policy_the_last_update_is_logged_at_the_last_step(tmp_path):
    model = make_model("off-policy")
    model.set_logger(configure(str(tmp_path), ["tensorboard", "json"]))
    model.learn(60, callback=JepaCallback(), log_interval=1000)
    points = points_of(tmp_path)
    assert [step for step, _ in points["jepa/prediction_loss"]] == [60]
    assert [step for step, _ in points["train/loss"]] == [60]


def test_off_policy_a_step_at_which_an_episode_was_logged_is_taken(tmp_path):
    # Episodes of 5 steps, in two environments
    env = make_vec_env(lambda: FakeEnv(spaces.Box(-1, 1, (3,))), n_envs=2, seed=0)
    model = make_model("off-policy", env, train_freq=1)
    model.set_logger(configure(str(tmp_path), ["tensorboard", "json"]))
    model.learn(60, callback=JepaCallback(), log_interval=4)
    model.learn(20, callback=JepaCallback(), log_interval=4, reset_num_timesteps=False)
    assert [step for step, _ in points_of(tmp_path)["train/loss"]] == [40, 60, 62, 80, 82]


@pytest.mark.parametrize("training", ["joint", "in turn", "off-policy"])
def test_the_logger_keeps_what_scripts_read_after_the_training(training, tmp_path):
    model = make_model(training)
    model.set_logger(configure(str(tmp_path), ["tensorboard", "json"]))
    model.learn(64, callback=[JepaCallback(), ProbeCallback(attribute="state")])
    kept = dict(model.logger.name_to_value)
    without = stable_baselines3.DQN if training == "off-policy" else stable_baselines3.PPO
    settings = OFF_POLICY if training == "off-policy" else SMALL_PPO
    stock = without("MlpPolicy", "CartPole-v1", **settings).learn(64).logger.name_to_value
    assert set(kept) >= set(stock) >= {"train/loss", "train/n_updates"}
    assert "time/total_timesteps" not in kept
    points = points_of(tmp_path)
    for name in points.keys() & kept.keys():
        assert points[name][-1][1] == kept[name], name


def test_means_begin_anew_in_a_training_that_goes_on(tmp_path):
    class Mean(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record_mean("mine/value", self.value)
            return True

    mean = Mean()
    model = make_model("joint")
    model.set_logger(configure(str(tmp_path), ["tensorboard", "json"]))
    for mean.value in (1.0, 3.0):
        # Nothing is due before the end
        model.learn(64, callback=mean, reset_num_timesteps=False, log_interval=100)
    assert [value for _, value in points_of(tmp_path)["mine/value"]] == [1.0, 3.0]
