"""Where the transitions come from that encoders learn from between rollouts."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import JepaCallback
from tests.algorithms.test_matrix import EXTRACTOR, distance, parameters
from tests.alternating.test_alternating import make_model, spy_on_batches
from tests.buffers.test_rollout import ONE_STEP, is_end, origin
from tests.conftest import EPISODE_LENGTHS, CountingImageEnv, make_counting_env


def test_every_row_of_a_rollout_is_learned_from_once_with_its_true_next_observation():
    callback = JepaCallback(batch_size=7)
    seen = spy_on_batches(callback)
    extractor = dict(embed_dim=16, num_heads=2, standardize_frames=10)
    make_model("A2C", env=make_counting_env(), policy_kwargs=dict(features_extractor_kwargs=extractor)).learn(
        48, callback=callback
    )
    # The last minibatch goes a little into the next pass over the rollout
    here, there = (
        origin(th.cat([getattr(batch, name) for batch in seen])) for name in ("observations", "next_observations")
    )
    valid = th.cat([batch.valid for batch in seen])
    assert (valid == 1).all()
    assert (there - here == ONE_STEP).all()
    assert len(np.unique(here, axis=0)) == 48
    assert is_end(here).any()


@pytest.mark.parametrize("optimize_memory_usage", [False, True])
def test_a_replay_buffer_gives_no_pair_that_crosses_an_episode(optimize_memory_usage):
    callback = JepaCallback(batch_size=64)
    seen = spy_on_batches(callback)
    make_model(
        "DQN",
        env=make_vec_env(lambda: CountingImageEnv(0, EPISODE_LENGTHS[0]), n_envs=1),
        optimize_memory_usage=optimize_memory_usage,
        replay_buffer_kwargs=dict(handle_timeout_termination=not optimize_memory_usage),
        policy_kwargs=dict(features_extractor_kwargs=dict(EXTRACTOR, embed_dim=8)),
    ).learn(100, callback=callback)
    here, there = (
        origin(th.cat([getattr(batch, name) for batch in seen])) for name in ("observations", "next_observations")
    )
    valid = th.cat([batch.valid for batch in seen]).bool().numpy()
    assert (there - here == ONE_STEP).all(axis=1)[valid].all()
    assert valid.all() == (not optimize_memory_usage)


def test_hindsight_experience_replay():
    model = make_model(
        "DQN",
        env=make_vec_env(lambda: BitFlippingEnv(n_bits=4), n_envs=1),
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=dict(n_sampled_goal=2),
    )
    before = parameters(model.policy.q_net.features_extractor)
    callback = JepaCallback()
    model.learn(60, callback=callback)
    assert distance(before, parameters(callback.objectives["q_net"].target_encoder.encoder)) > 0


def test_n_step_returns_do_not_change_what_comes_next():
    callback = JepaCallback(batch_size=64)
    seen = spy_on_batches(callback)
    make_model(
        "DQN",
        env=make_vec_env(lambda: CountingImageEnv(0, (9,)), n_envs=1),
        n_steps=3,
        policy_kwargs=dict(features_extractor_kwargs=dict(EXTRACTOR, embed_dim=8)),
    ).learn(100, callback=callback)
    here, there = (
        origin(th.cat([getattr(batch, name) for batch in seen])) for name in ("observations", "next_observations")
    )
    assert (there - here == ONE_STEP).all()


def test_normalised_observations():
    callback = JepaCallback()
    seen = spy_on_batches(callback)
    # Raw observations of CartPole are small: what is learned from has a variance of one
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    make_model("DQN", env=env).learn(300, callback=callback)
    latest = th.cat([batch.observations for batch in seen[-50:]])
    assert ((latest.std(dim=0) > 0.5) & (latest.std(dim=0) < 2.0)).all()


def test_all_rows_as_a_minibatch():
    # None, for MaskablePPO
    model = make_model("MaskablePPO", batch_size=None)
    model.learn(64, callback=JepaCallback())
