import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file

from sb3_jepa import PPO, JepaCallback, JepaExtractor, JepaPolicy
from sb3_jepa.envs.pixels import make_pixel_vec_env
from tests.conftest import SMALL_POLICY, SMALL_PPO


def make_env():
    return make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32)


def make_model(**policy_kwargs) -> PPO:
    return PPO(JepaPolicy, make_env(), policy_kwargs=dict(SMALL_POLICY, **policy_kwargs), **SMALL_PPO)


def assert_equal_states(one, other) -> None:
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert th.equal(value, other[name]), name


def test_policy_by_name_and_other_policies():
    assert isinstance(PPO("JepaPolicy", make_env(), policy_kwargs=SMALL_POLICY).policy, JepaPolicy)
    # With any other policy the algorithm is what it was
    ours, theirs = (
        ppo("MlpPolicy", "CartPole-v1", seed=0, device="cpu").learn(64) for ppo in (PPO, stable_baselines3.PPO)
    )
    assert_equal_states(ours.policy, theirs.policy)
    # ... and takes its arguments in Stable-Baselines3's order
    model = PPO("JepaPolicy", make_env(), 1e-3, 16, 32, 3, 0.9, 0.8, 0.1, policy_kwargs=SMALL_POLICY)
    assert (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs) == (1e-3, 16, 32, 3)
    assert (model.gamma, model.gae_lambda, model.clip_range(1.0)) == (0.9, 0.8, 0.1)
    assert model.target_kl == 0.05
    order = (1e-3, 16, 32, 3, 0.9, 0.8, 0.1, None, True, 0.0, 0.5, 0.5, False, -1, None, None, 0.07)
    assert PPO("JepaPolicy", make_env(), *order, policy_kwargs=SMALL_POLICY).target_kl == 0.07
    assert PPO("JepaPolicy", make_env(), target_kl=None, policy_kwargs=SMALL_POLICY, **SMALL_PPO).target_kl is None


def test_zero_is_not_taken_for_a_default():
    for kwargs in (dict(n_steps=0), dict(batch_size=0)):
        with pytest.raises((AssertionError, ZeroDivisionError)):
            PPO("JepaPolicy", make_env(), policy_kwargs=SMALL_POLICY, **kwargs)


def test_the_same_seed_gives_the_same_training():
    first, second = make_model().learn(96), make_model().learn(96)
    assert_equal_states(first.policy, second.policy)
    other = PPO(JepaPolicy, make_env(), policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, "seed": 1}).learn(96)
    assert not th.equal(first.policy.action_net.weight, other.policy.action_net.weight)


def test_save_and_load(tmp_path):
    model = make_model(rl_gradient=False, objective_kwargs=dict(variance_coef=0.5)).learn(96)
    model.save(tmp_path / "jepa_cartpole")
    loaded = PPO.load(tmp_path / "jepa_cartpole", env=make_env(), device="cpu")
    # Encoder, target encoder, predictor and statistics
    assert_equal_states(model.policy, loaded.policy)
    assert loaded.policy.features_extractor.n_inputs_to_measure == 0
    assert loaded.policy.rl_gradient is False
    assert loaded.policy.objective.variance_coef == 0.5
    observations = make_env().reset()
    for deterministic in (True, False):
        th.manual_seed(0)
        actions, _ = model.predict(observations, deterministic=deterministic)
        th.manual_seed(0)
        loaded_actions, _ = loaded.predict(observations, deterministic=deterministic)
        assert np.array_equal(actions, loaded_actions)
    evaluate_policy(loaded, make_env(), n_eval_episodes=2)
    # ... and the optimiser, with its hooks
    ours, theirs = (m.policy.optimizer.state_dict()["state"] for m in (model, loaded))
    assert ours.keys() == theirs.keys()
    assert all(th.equal(ours[key]["exp_avg_sq"], theirs[key]["exp_avg_sq"]) for key in ours)
    target = copy.deepcopy(loaded.policy.objective.target_encoder)
    loaded.learn(64)
    assert not th.equal(
        target.encoder.encoder.class_token, loaded.policy.objective.target_encoder.encoder.encoder.class_token
    )


@pytest.mark.parametrize("algorithm", ["JepaPolicy", "CnnPolicy"])
def test_a_continued_run_equals_an_uninterrupted_one(algorithm, tmp_path):
    """Bit for bit, where Stable-Baselines3's own PPO does: with the environments and random numbers in one state."""
    policy_kwargs = SMALL_POLICY if algorithm == "JepaPolicy" else dict(net_arch=[16])
    env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=(48, 48))
    model = PPO(algorithm, env, policy_kwargs=policy_kwargs, **SMALL_PPO).learn(96)
    model.save(tmp_path / "model.zip")

    def continue_training(model) -> PPO:
        env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=1, frame_size=(48, 48))
        model.set_env(env)
        model.set_random_seed(1)
        return model.learn(64, reset_num_timesteps=False)

    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert_equal_states(continue_training(model).policy, continue_training(loaded).policy)
    assert loaded.num_timesteps == model.num_timesteps


def test_a_failed_save_leaves_the_old_file(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    old = (tmp_path / "model.zip").read_bytes()
    model.unpicklable = type("Unpicklable", (), {"__reduce__": lambda self: pickle.dumps(open)})()
    with pytest.raises(Exception):  # noqa: B017, PT011  (whatever pickle says)
        model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_save_to_an_open_file():
    model = make_model()
    model.save(file := io.BytesIO())
    file.seek(0)
    assert_equal_states(PPO.load(file, device="cpu").policy, model.policy)


def test_an_old_zip_names_the_keys_it_does_not_know(tmp_path):
    # Stable-Baselines3 would take missing keys for the sign of a file older than its 1.7.0, and load what fits
    make_model().save(tmp_path / "new.zip")
    data, params, variables = load_from_zip_file(tmp_path / "new.zip", device="cpu")
    for prefix in ("features_extractor", "pi_features_extractor", "vf_features_extractor"):
        params["policy"][f"{prefix}.encoder.cls"] = params["policy"].pop(f"{prefix}.encoder.class_token")
    save_to_zip_file(tmp_path / "old.zip", data, params, variables)
    with pytest.raises(ValueError, match=r"encoder\.class_token is missing there.*encoder\.cls is missing here"):
        PPO.load(tmp_path / "old.zip", device="cpu")

    data["policy_kwargs"] = dict(data["policy_kwargs"], ema_momentum=0.9)
    save_to_zip_file(tmp_path / "older.zip", data, params, variables)
    with pytest.raises(TypeError, match="ema_momentum"):
        PPO.load(tmp_path / "older.zip", device="cpu")


def test_the_zip_is_stable_baselines3s(tmp_path):
    make_model().save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "_stable_baselines3_version" in archive.namelist()
    # Stable-Baselines3's own PPO loads it too: the buffer's class is in it
    loaded = stable_baselines3.PPO.load(tmp_path / "model.zip", env=make_env())
    assert isinstance(loaded.policy, JepaPolicy)


def test_load_with_another_number_of_environments(tmp_path):
    make_model().learn(64).save(tmp_path / "model")
    env = make_pixel_vec_env("CartPole-v1", n_envs=3, seed=0, frame_size=32)
    model = PPO.load(tmp_path / "model", env=env, device="cpu")
    n_before = model.num_timesteps
    model.learn(48, reset_num_timesteps=False)
    assert model.num_timesteps == n_before + 48
    parameters = model.get_parameters()
    other = make_model()
    other.set_parameters(parameters)
    assert_equal_states(model.policy, other.policy)


def test_callbacks_of_stable_baselines3(tmp_path):
    model = make_model()
    callbacks = [
        CheckpointCallback(20, str(tmp_path / "checkpoints")),
        EvalCallback(make_env(), eval_freq=20, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0),
    ]
    model.learn(96, callback=callbacks, progress_bar=True)
    assert (tmp_path / "checkpoints" / "rl_model_40_steps.zip").exists()
    assert isinstance(PPO.load(tmp_path / "best_model.zip").policy, JepaPolicy)


@pytest.mark.parametrize("nest", [lambda mine: mine, lambda mine: CallbackList([mine])])
@pytest.mark.parametrize("algorithm", ["joint", "in turn"])
def test_a_callback_within_an_event_is_refused(algorithm, nest):
    # An event passes on neither every step nor the beginnings of rollouts
    env = make_vec_env("CartPole-v1", n_envs=2)
    if algorithm == "joint":
        model = PPO(JepaPolicy, env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    else:
        kwargs = dict(SMALL_POLICY, features_extractor_class=JepaExtractor)
        model = stable_baselines3.PPO("MlpPolicy", env, policy_kwargs=kwargs, **SMALL_PPO)
    for wrong in (
        EveryNTimesteps(10, nest(JepaCallback())),
        [EveryNTimesteps(10, nest(JepaCallback()))],
        EvalCallback(env, callback_after_eval=nest(JepaCallback())),
    ):
        with pytest.raises(
            ValueError, match=r"(EveryNTimesteps|EvalCallback) does not pass them on.*to learn\(\) itself"
        ):
            model.learn(64, callback=wrong)
        assert model.num_timesteps == 0
    with pytest.raises(ValueError, match="EvalCallback does not pass them on"):
        model.learn(64, callback=EvalCallback(env, callback_on_new_best=JepaCallback()))
    model.learn(64, callback=[EveryNTimesteps(10, CallbackList([])), nest(JepaCallback())])
