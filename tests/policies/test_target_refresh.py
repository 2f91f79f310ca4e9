import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import A2C, PPO, JepaPolicy, MaskablePPO, NextLatentPrediction, RecurrentPPO
from tests.algorithms.test_joint_algorithms import assert_equal_states
from tests.conftest import SMALL_POLICY, SMALL_PPO, FakeEnv, make_counting_env


def make_model(target_refresh: str, **objective_kwargs) -> PPO:
    objective_kwargs = dict(target_refresh=target_refresh, **objective_kwargs)
    policy_kwargs = dict(SMALL_POLICY, objective_kwargs=objective_kwargs)
    return PPO(JepaPolicy, make_counting_env(), policy_kwargs=policy_kwargs, **{**SMALL_PPO, "target_kl": None})


def train(model: PPO) -> list[tuple[np.ndarray, th.Tensor | None, th.Tensor]]:
    """
    Train for two rollouts of two epochs each.

    :return: Of each epoch: the targets that its minibatches brought, in the order of the rows, and what the target
        encoder made of the next observations as the epoch began
    """
    epochs = []
    get, get_samples, buffer = model.rollout_buffer.get, model.rollout_buffer._get_samples, model.rollout_buffer
    rows: list[np.ndarray] = []

    def spy_on_samples(batch_inds, *args):
        rows.append(batch_inds)
        return get_samples(batch_inds, *args)

    def spy(batch_size=None):
        rows.clear()
        target_encoder = copy.deepcopy(model.policy.objective.target_encoder)
        targets = []
        for samples in get(batch_size):
            targets.append(samples.observations.targets)
            assert (samples.observations.next_observations is None) == (targets[-1] is not None)
            yield samples
        order = np.argsort(np.concatenate(rows))
        # The first one of a rollout puts its rows in order, which must have happened
        next_observations = model.policy._preprocess(buffer._take_next(np.arange(len(order))))
        by_row = None if targets[0] is None else th.cat([target["shared"] for target in targets])[order]
        epochs.append((by_row, target_encoder(next_observations)))

    buffer.get, buffer._get_samples = spy, spy_on_samples
    model.learn(2 * 16 * 3)
    assert len(epochs) == 4
    return epochs


def equal(one: th.Tensor, other: th.Tensor) -> bool:
    return th.allclose(one, other, atol=1e-5)


def test_targets_of_each_epoch():
    for targets, as_it_began in train(make_model("epoch", momentum=0.5)):
        assert equal(targets, as_it_began)


def test_targets_of_each_rollout():
    first, second, third, fourth = train(make_model("rollout", momentum=0.5))
    assert equal(first[0], first[1])
    # The target encoder has moved on, the targets have not
    assert not equal(second[0], second[1])
    assert th.equal(second[0], first[0])
    assert equal(third[0], third[1])
    assert not equal(third[0], first[0])
    assert th.equal(fourth[0], third[0])


def test_targets_of_each_step():
    assert all(targets is None for targets, _ in train(make_model("step")))
    # Nothing is predicted, so there is nothing to keep
    assert all(targets is None for targets, _ in train(make_model("rollout", prediction_coef=0.0)))


def test_a_target_that_stands_still_is_always_the_same():
    models = [make_model(refresh, momentum=1.0).learn(200) for refresh in ("step", "epoch", "rollout")]
    for model in models[1:]:
        for one, other in zip(models[0].policy.parameters(), model.policy.parameters(), strict=True):
            assert th.allclose(one, other, atol=1e-4)


def test_save_and_load(tmp_path):
    model = make_model("rollout").learn(96)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=make_counting_env(), device="cpu")
    assert loaded.policy.objective.target_refresh == "rollout"
    assert_equal_states(model.policy, loaded.policy)
    assert all(targets is not None for targets, _ in train(loaded))


def test_other_values_are_refused():
    with pytest.raises(ValueError, match=r'`target_refresh` must be "step", "epoch" or "rollout", got \'minibatch\''):
        make_model("minibatch")


def test_the_buffer_asks_the_policy_that_is_trained():
    model, other = make_model("rollout").learn(96), make_model("step")
    copy.deepcopy(model.rollout_buffer)
    model.policy = other.policy
    assert all(targets is None for targets, _ in train(model))


class OwnObjective(NextLatentPrediction):
    """One that knows nothing of targets that are kept."""

    def prediction_output(self, batch):
        assert batch.next_observations is not None
        return super().prediction_output(batch)


def test_an_objective_of_ones_own_need_not_take_targets():
    policy_kwargs = dict(SMALL_POLICY, objective_class=OwnObjective)
    PPO(JepaPolicy, make_counting_env(), policy_kwargs=policy_kwargs, **SMALL_PPO).learn(96)


@pytest.mark.parametrize("algorithm", [A2C, MaskablePPO, RecurrentPPO])
@pytest.mark.parametrize("share", [True, False])
def test_other_algorithms_and_separate_encoders(algorithm, share):
    """A target that stands still is the same, whenever it was embedded."""
    own = {**SMALL_PPO, "learning_rate": 1e-3}
    if algorithm is A2C:
        own = dict(n_steps=16, seed=0, device="cpu")
    parameters = []
    for target_refresh in ("step", "rollout"):
        objective_kwargs = dict(target_refresh=target_refresh, momentum=1.0)
        policy_kwargs = dict(SMALL_POLICY, share_features_extractor=share, objective_kwargs=objective_kwargs)
        env = make_vec_env(lambda: FakeEnv(spaces.Box(0, 255, (3, 32, 32), np.uint8)), n_envs=2, seed=0)
        model = algorithm("JepaPolicy", env, policy_kwargs=policy_kwargs, **own).learn(128)
        assert (model.rollout_buffer._targets is None) == (target_refresh == "step")
        parameters.append(list(model.policy.parameters()))
    for one, other in zip(*parameters, strict=True):
        assert th.allclose(one, other, atol=1e-4)
