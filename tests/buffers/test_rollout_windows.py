"""Windows of a rollout, against the steps that an environment really took."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

import sb3_jepa
from sb3_jepa import A2C, PPO, JepaCallback, RecurrentPPO
from tests.buffers.test_rollout import is_end, origin
from tests.conftest import EPISODE_LENGTHS, SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO, make_counting_env

HEADS = dict(reward_coef=1.0, end_coef=1.0, inverse_coef=1.0)


def make_model(algorithm=PPO, env=None, **objective_kwargs):
    kwargs = dict(SMALL_PPO) if algorithm is not A2C else dict(n_steps=16, seed=0, device="cpu")
    policy_kwargs = dict(SMALL_POLICY, objective_kwargs=objective_kwargs)
    return algorithm("JepaPolicy", env or make_counting_env(), policy_kwargs=policy_kwargs, **kwargs)


def transitions_of(model):
    (samples,) = model.rollout_buffer.get()
    return samples.observations


@pytest.mark.parametrize("steps_ahead", [2, 5, 20])
@pytest.mark.parametrize("algorithm", [PPO, A2C, RecurrentPPO])
def test_windows_are_what_the_environments_did(algorithm, steps_ahead):
    model = make_model(algorithm, steps_ahead=steps_ahead, **HEADS)
    model.learn(96)
    transitions = transitions_of(model)
    here = origin(transitions.observations)
    if transitions.mask is not None:
        here = here[transitions.mask.numpy()]
    led_to = origin(transitions.next_observations).reshape(len(here), steps_ahead, 3)
    last_of_rollout = {env: max(map(tuple, here[here[:, 0] == env])) for env in range(3)}
    actions = {
        tuple(one): float(action) for one, action in zip(here.tolist(), transitions.actions[:, 0, 0], strict=True)
    }
    n_ends = 0
    for row, (env, episode, time) in enumerate(here.tolist()):
        length = EPISODE_LENGTHS[env][episode % len(EPISODE_LENGTHS[env])]
        for k in range(steps_ahead):
            step = (env, episode, time + k)
            belongs = time + k < length and step <= last_of_rollout[env]
            assert bool(transitions.valid[row, k]) == belongs
            if belongs:
                assert led_to[row, k].tolist() == [env, episode, time + k + 1]
                assert float(transitions.actions[row, k, 0]) == actions[step]
                terminates = time + k == length - 1 and episode % 2 == 0
                assert bool(transitions.ends[row, k]) == terminates
                # What the environment gave, without the value that Stable-Baselines3 adds where it truncated
                assert float(transitions.rewards[row, k]) == 1.0
                n_ends += terminates
    assert n_ends > 0


@pytest.mark.parametrize("refresh", ["epoch", "rollout"])
def test_kept_targets_are_those_of_each_step(refresh):
    # Momentum 1: the target encoder stays as it is
    model = make_model(steps_ahead=3, target_refresh=refresh, momentum=1.0)
    callback = KeepTransitions()
    model.learn(48, callback=[JepaCallback(), callback])
    transitions, by_step = callback.kept
    (targets,) = transitions.targets.values()
    assert transitions.next_observations is None
    known = by_step.valid[..., None]
    embedded = model.policy.objective.target_encoder(model.policy._preprocess(by_step.next_observations))
    assert th.allclose(targets * known, embedded.view_as(targets) * known, atol=1e-5)


class KeepTransitions(BaseCallback):
    """Samples the rollout with the targets that its buffer keeps, and with observations."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        np.random.seed(0)
        with_targets = transitions_of(self.model)
        embed, buffer.embed_targets = buffer.embed_targets, None
        np.random.seed(0)
        self.kept = with_targets, transitions_of(self.model)
        buffer.embed_targets = embed


def test_heads_learn_from_normalised_rewards_as_ppo_does():
    model = make_model(env=VecNormalize(make_counting_env(), norm_obs=False), reward_coef=1.0)
    model.learn(48)
    rewards = transitions_of(model).rewards
    assert rewards.shape == (48,)
    assert rewards.std() > 0


@pytest.mark.parametrize("algorithm", [PPO, A2C, RecurrentPPO])
def test_several_steps_ahead_and_heads_are_learned_and_logged(algorithm):
    model = make_model(algorithm, steps_ahead=3, **HEADS)
    before = [p.detach().clone() for p in model.policy.objective.reward_head.parameters()]
    model.learn(96)
    names = {"jepa/prediction_loss_step_3", "jepa/reward_loss", "jepa/end_loss", "jepa/inverse_loss"}
    assert names <= set(model.logger.name_to_value)
    after = list(model.policy.objective.reward_head.parameters())
    assert not all(th.equal(one, other) for one, other in zip(before, after, strict=True))


def test_several_steps_ahead_in_turn():
    env = make_counting_env()
    kwargs = dict(features_extractor_class=sb3_jepa.JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR)
    model = PPO("CnnPolicy", env, policy_kwargs=kwargs, **SMALL_PPO)
    callback = JepaCallback(objective_kwargs=dict(steps_ahead=3, **HEADS))
    model.learn(96, callback=callback)
    assert {"jepa/prediction_loss_step_3", "jepa/end_loss"} <= set(model.logger.name_to_value)


def test_a_saved_model_keeps_its_horizon(tmp_path):
    model = make_model(steps_ahead=3, **HEADS)
    model.learn(48)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=make_counting_env())
    loaded.learn(48)
    assert loaded.policy.objective.horizon == 3
    assert transitions_of(loaded).valid.shape == (48, 3)


def test_a_random_shift_moves_what_the_objective_sees_and_not_what_ppo_does():
    plain, shifted = (make_model(random_shift=pad) for pad in (0, 3))
    for model in (plain, shifted):
        model.learn(48)
    seen = {}
    for name, model in (("plain", plain), ("shifted", shifted)):
        inputs = []
        hook = model.policy.features_extractor.register_forward_hook(
            lambda _, x, __, inputs=inputs: inputs.append(x[0])
        )
        np.random.seed(0)
        model.policy.extract_features(transitions_of(model))
        hook.remove()
        seen[name] = inputs
    # One pass for both losses, or one for each
    assert len(seen["plain"]) == 1
    assert len(seen["shifted"]) == 2
    ppo, objective = seen["shifted"]
    assert th.equal(ppo, seen["plain"][0])
    assert ppo.shape == objective.shape


def test_ends_are_those_of_the_environment():
    # The helper that tells where a row is counts in the same way
    model = make_model(end_coef=1.0)
    model.learn(48)
    transitions = transitions_of(model)
    here = origin(transitions.observations)
    assert np.array_equal(transitions.ends.numpy() > 0, is_end(here) & (here[:, 1] % 2 == 0))
