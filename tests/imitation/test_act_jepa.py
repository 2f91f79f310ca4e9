"""ACT-JEPA as an algorithm of Stable-Baselines3."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor

import sb3_jepa
from sb3_jepa import ACTJEPA, PPO, JepaPolicy, Recordings, load_encoder, read_encoder, save_encoder
from sb3_jepa.data import add_to_replay_buffer, record_episodes, save_recordings
from sb3_jepa.imitation import ACTJEPAPolicy

SMALL = dict(
    features_extractor_kwargs=dict(embed_dim=16, depth=1, num_heads=2, standardize_frames=64),
    predictor_dim=8,
    num_heads=2,
    predictor_depth=1,
)


class RandomPolicy:
    """Acts at random."""

    def __init__(self, space, n_envs=1):
        self.space, self.n_envs = space, n_envs
        space.seed(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.stack([self.space.sample() for _ in range(self.n_envs)]), None


class LeansUpright:
    """Holds CartPole's pole for long."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return (observation[:, 2] + 0.3 * observation[:, 3] + 0.1 * observation[:, 1] > 0).astype(np.int64), None


def cartpole(n_envs=1):
    return make_vec_env("CartPole-v1", n_envs, seed=0)


def demonstrations(n=6, seed=0):
    env = gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 60)
    return record_episodes(env, LeansUpright(), n, seed)


def make(env, **kwargs):
    settings = dict(horizon=5, batch_size=16, seed=0, device="cpu", policy_kwargs=dict(SMALL))
    return ACTJEPA("MultiInputPolicy", env, **{**settings, **kwargs})


def dict_env():
    return gym.wrappers.TimeLimit(SimpleMultiObsEnv(random_start=False), 20)


@pytest.mark.parametrize("latent_target", ["state", "observation", "raw_state", None])
@pytest.mark.parametrize(
    "env",
    [
        pytest.param(lambda: gym.make("CartPole-v1"), id="vector and Discrete"),
        pytest.param(lambda: gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 15), id="vector and Box"),
        pytest.param(dict_env, id="images and vectors"),
        pytest.param(
            lambda: gym.wrappers.TimeLimit(IdentityEnv(space=spaces.MultiDiscrete([2, 3])), 12), id="MultiDiscrete"
        ),
    ],
)
def test_every_space_and_target_learns_is_saved_and_acts_the_same_when_loaded(env, latent_target, tmp_path):
    env = make_vec_env(env, 2, seed=0)
    recordings = record_episodes(env, RandomPolicy(env.action_space, 2), 6, seed=0)
    kwargs = dict(prediction_coef=0.0) if latent_target is None else dict(latent_target=latent_target)
    model = make(env, horizon=3, **kwargs)
    before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
    model.learn(recordings, n_updates=4, log_interval=2)
    assert any(
        (one != other).any() for one, other in zip(before, model.policy.features_extractor.parameters(), strict=True)
    )
    model.save(tmp_path / "model")
    loaded = ACTJEPA.load(tmp_path / "model", env=env, device="cpu")
    model.policy.save(tmp_path / "policy")
    policy = ACTJEPAPolicy.load(tmp_path / "policy", device="cpu")
    observations, state, states = env.reset(), None, [None, None]
    for step in range(5):
        starts = np.array([step == 0, step in (0, 2)])
        actions, state = model.predict(observations, state, starts, deterministic=True)
        for index, other in enumerate((loaded, policy)):
            same, states[index] = other.predict(observations, states[index], starts, deterministic=True)
            assert (same == actions).all()
        assert all(env.action_space.contains(one) for one in actions)
        observations = env.step(actions)[0]
    loaded.learn(recordings, n_updates=2, reset_num_timesteps=False)
    assert loaded.num_timesteps == 6


def test_it_learns_to_balance_and_evaluates_with_environments_of_any_number(tmp_path):
    model = make(cartpole(), horizon=4, n_action_steps=1, learning_rate=3e-3)
    callback = EvalCallback(cartpole(2), n_eval_episodes=4, eval_freq=150, log_path=str(tmp_path), verbose=0)
    model.learn(demonstrations(20), n_updates=300, callback=callback)
    assert callback.best_mean_reward > 60
    assert evaluate_policy(model, cartpole(3), 6)[0] > 60
    assert model.fit.label == "learned"
    assert model.fit.error < 0.5 * model.fit.error_of_mean_action


def test_only_where_a_chunk_has_ended_an_observation_is_looked_at():
    model = make(cartpole(2), n_action_steps=2)
    decide, numbers = model.policy.decide, []
    model.policy.decide = lambda tensors: numbers.append(len(tensors)) or decide(tensors)
    observations, state = np.zeros((2, 4), np.float32), None
    for starts in ([True, True], [False, True], [False, False], [False, False]):
        _, state = model.predict(observations, state, np.array(starts))
    assert numbers == [2, 1, 1, 1]


def test_how_a_chunk_is_executed_may_be_changed_after_loading(tmp_path):
    model = make(cartpole())
    model.save(tmp_path / "model")
    observation = np.zeros(4, np.float32)
    for kwargs, n_arrays in (
        (dict(n_action_steps=2), 2),
        (dict(temporal_ensemble_coef=0.01), 3),
    ):
        loaded = ACTJEPA.load(tmp_path / "model", device="cpu", **kwargs)
        action, state = loaded.predict(observation, deterministic=True)
        assert np.ndim(action) == 0
        assert len(state) == n_arrays
    loaded.temporal_ensemble_coef, loaded.n_action_steps = None, 9
    with pytest.raises(ValueError, match=r"`n_action_steps` must be a whole number from 1 to 5"):
        loaded.predict(observation)


def test_by_default_so_many_actions_are_executed_as_are_nearly_as_exact_as_the_first(tmp_path):
    model = make(cartpole())
    model.predict(np.zeros(4, np.float32))
    assert model.policy.n_action_steps is None
    model.learn(demonstrations(), n_updates=2)
    errors = dict(error_by_step=[0.2, 0.1, 0.29, 0.31, 0.2])
    model.fit = dataclasses.replace(model.fit, **errors)
    _, state = model.predict(np.zeros(4, np.float32))
    assert model.policy.n_action_steps == model.fit.steady_steps == 3
    model.save(tmp_path / "model")
    loaded = ACTJEPA.load(tmp_path / "model", device="cpu")
    loaded.predict(np.zeros(4, np.float32), state)
    assert loaded.policy.n_action_steps == 3
    assert dataclasses.replace(model.fit, error_by_step=[0.0, 0.001, 0.005]).steady_steps == 3
    assert dataclasses.replace(model.fit, error_by_step=[0.1, 0.1]).steady_steps == 2


def test_one_seed_gives_one_model():
    data = demonstrations()
    one, other = (make(cartpole()).learn(data, n_updates=5) for _ in range(2))
    for a, b in zip(one.policy.state_dict().values(), other.policy.state_dict().values(), strict=True):
        assert (a == b).all()


def test_the_target_follows_with_a_momentum_that_rises_to_one():
    model = make(cartpole(), momentum=0.5, learning_rate=lambda _: 1e-2)
    target = model.policy.latent_future.target_encoder.encoder.encoder.class_token
    own = model.policy.features_extractor.encoder.class_token
    distances = []

    def watch(local_variables, global_variables):
        distances.append((target.clone(), own.detach().clone()))
        return True

    model.learn(demonstrations(), n_updates=4, validation_fraction=0.0, callback=watch)
    # After each update: 0.5, 0.625, 0.75, 0.875 of the target stay
    for number, momentum in enumerate((0.625, 0.75, 0.875), start=1):
        (before, _), (after, context) = distances[number - 1 : number + 1]
        assert th.allclose(after, momentum * before + (1 - momentum) * context, atol=1e-6)
    assert not target.requires_grad


def test_padding_has_no_part_in_the_loss():
    recordings = demonstrations()
    changed = Recordings(
        recordings.observation_space,
        recordings.observations,
        recordings.episodes,
        recordings.action_space,
        # What stands in the place of an action after the last one
        np.where(recordings.has_action, recordings.actions, 1 - recordings.actions),
        has_action=recordings.has_action,
    )
    models = [make(cartpole()).learn(data, n_updates=3, validation_fraction=0.0) for data in (recordings, changed)]
    for one, other in zip(*(model.policy.state_dict().values() for model in models), strict=True):
        assert (one == other).all()


def test_the_encoder_goes_on_into_reinforcement_learning(tmp_path):
    model = make(cartpole()).learn(demonstrations(), n_updates=2)
    kwargs = dict(features_extractor_kwargs=SMALL["features_extractor_kwargs"])
    ppo = PPO(JepaPolicy, cartpole(), n_steps=16, batch_size=16, policy_kwargs=kwargs, device="cpu")
    load_encoder(ppo, model)
    save_encoder(model, tmp_path / "encoder.pth")
    others = (ppo.policy.features_extractor, read_encoder(tmp_path / "encoder.pth"))
    observations = th.randn(3, 4)
    with th.no_grad():
        expected = model.policy.features_extractor(observations)
        for other in others:
            assert th.equal(other(observations), expected)
    ppo.learn(32)
    # And back: the target encoder begins with it too
    load_encoder(model, ppo)
    target = model.policy.latent_future.target_encoder.encoder
    assert all(
        th.equal(a, b) for a, b in zip(target.parameters(), ppo.policy.features_extractor.parameters(), strict=True)
    )


def test_a_frozen_encoder_stays_as_it_is_and_is_saved(tmp_path):
    first = make(cartpole(), action_coef=0.0).learn(demonstrations(), n_updates=2)
    model = make(cartpole(), prediction_coef=0.0)
    load_encoder(model, first, freeze=True)
    model.learn(demonstrations(), n_updates=2)
    encoders = [one.policy.features_extractor.parameters() for one in (first, model)]
    assert all(th.equal(a, b) for a, b in zip(*encoders, strict=True))
    model.save(tmp_path / "model")
    loaded = ACTJEPA.load(tmp_path / "model", env=cartpole(), device="cpu")
    assert loaded.policy.features_extractor.is_frozen
    loaded.learn(demonstrations(), n_updates=1)


def test_demonstrations_fill_a_replay_buffer():
    data = demonstrations(3)
    model = stable_baselines3.DQN("MlpPolicy", cartpole(), buffer_size=500, learning_starts=0, train_freq=1)
    n = add_to_replay_buffer(model, data)
    buffer = model.replay_buffer
    assert n == data.has_action.sum() == buffer.size()
    # Cut off by the time limit, so that none is terminal
    assert buffer.timeouts[:n].sum() == 3
    assert (buffer.rewards[:n] == 1).all()
    model.learn(10)
    two = stable_baselines3.DQN("MlpPolicy", cartpole(2), buffer_size=500)
    add_to_replay_buffer(two, data)
    assert two.replay_buffer.size() == -(-n // 2)
    with pytest.raises(ValueError, match="must fit into the replay buffer"):
        add_to_replay_buffer(stable_baselines3.DQN("MlpPolicy", cartpole(), buffer_size=5), data)


def test_failures_teach_the_jepa_and_not_the_actions():
    failures = record_episodes("CartPole-v1", RandomPolicy(spaces.Discrete(2)), 6)
    model = make(cartpole(), n_action_steps=1)
    model.learn(demonstrations(), n_updates=3, other_episodes=failures)
    assert model.fit is not None
    with pytest.raises(ValueError, match="`other_episodes` must be None without a JEPA"):
        make(cartpole(), prediction_coef=0.0).learn(demonstrations(), n_updates=1, other_episodes=failures)


def test_the_jepa_alone_leaves_the_action_decoder_as_it_is():
    model = make(cartpole(), action_coef=0.0)
    before = [parameter.clone() for parameter in model.policy.action_decoder.parameters()]
    model.learn(demonstrations(), n_updates=3)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.action_decoder.parameters(), strict=True))


def test_a_folder_is_read_and_logged(tmp_path):
    save_recordings(demonstrations(), tmp_path / "demonstrations")
    model = make(cartpole(), tensorboard_log=str(tmp_path / "runs"))
    model.learn(str(tmp_path / "demonstrations"), n_updates=4, log_interval=2, validation_interval=2)
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))
    values = model.logger.name_to_value
    assert not values, "all is written"


def test_images_need_the_observation_as_target_and_other_extractors_too():
    env = make_vec_env(dict_env, 1)
    with pytest.raises(ValueError, match=r'`latent_target="state"` needs a JepaExtractor'):
        make(env, policy_kwargs=dict(features_extractor_class=CombinedExtractor))
    model = make(env, latent_target="observation", policy_kwargs=dict(features_extractor_class=CombinedExtractor))
    recordings = record_episodes(env, RandomPolicy(env.action_space), 4)
    model.learn(recordings, n_updates=2)
    image_only = spaces.Box(0, 255, (3, 32, 32), np.uint8)
    with pytest.raises(ValueError, match=r'`latent_target` must be "observation"'):
        ACTJEPAPolicy(image_only, spaces.Discrete(2), lambda _: 1e-3, latent_target="state")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(demonstrations="no such file"), "`source` must be"),
        (dict(n_updates=0), "`n_updates` must be"),
        (dict(validation_fraction=1.0), "`validation_fraction` must be"),
        (dict(log_interval=0), "`log_interval` must be"),
        (dict(validation_interval=0.5), "`validation_interval` must be"),
    ],
)
def test_bad_arguments_of_learn_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(cartpole()).learn(**{**dict(demonstrations=demonstrations(2), n_updates=1), **arguments})


def test_demonstrations_that_do_not_fit_are_named():
    data = demonstrations(3)
    with pytest.raises(ValueError, match="`horizon` must be smaller than the longest episode of `demonstrations`"):
        make(cartpole(), horizon=200).learn(data, n_updates=1)
    with pytest.raises(ValueError, match="must have the observation space of the environment"):
        make(make_vec_env("Pendulum-v1")).learn(data, n_updates=1)
    with pytest.raises(ValueError, match="`validation_demonstrations` must hold other episodes"):
        make(cartpole()).learn(data, n_updates=1, validation_demonstrations=data)
    make(cartpole()).learn(data, n_updates=1, validation_demonstrations=demonstrations(2, seed=5))
    outside = Recordings(
        data.observation_space,
        data.observations,
        data.episodes,
        spaces.Discrete(4),
        data.actions + 2,
        has_action=data.has_action,
    )
    with pytest.raises(ValueError, match="must have the action space"):
        make(cartpole()).learn(outside, n_updates=1)
    nan = Recordings(
        data.observation_space,
        np.where(np.arange(len(data))[:, None] == 7, np.nan, data.observations).astype(np.float32),
        data.episodes,
        data.action_space,
        data.actions,
        has_action=data.has_action,
    )
    with pytest.raises(ValueError, match="`demonstrations` must be finite, and row 7"):
        make(cartpole()).learn(nan, n_updates=1)


def test_short_episodes_are_padded():
    data = demonstrations(3)
    short = np.isin(np.arange(len(data)), np.flatnonzero(data.episodes == 0)[:3])
    kept = short | (data.episodes > 0)
    some = Recordings(
        data.observation_space,
        data.observations[kept],
        data.episodes[kept],
        data.action_space,
        data.actions[kept],
        has_action=data.has_action[kept],
    )
    assert make(cartpole(), horizon=10).learn(some, n_updates=2).num_timesteps == 2


def test_the_report_shows_chunks_and_the_verdict(tmp_path):
    from sb3_jepa.report import write_report

    model = make(cartpole()).learn(demonstrations(), n_updates=3)
    write_report(model, cartpole(), tmp_path / "report.html", n_steps=40)
    page = (tmp_path / "report.html").read_text()
    assert 'id="chunks"' in page
    assert model.fit.label in page


def test_what_is_at_the_top_is_the_algorithm():
    assert sb3_jepa.ACTJEPA is ACTJEPA
