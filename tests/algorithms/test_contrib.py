import subprocess
import sys

import numpy as np
import pytest
import sb3_contrib
from gymnasium import spaces
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, JepaPolicy, MaskableJepaPolicy, MaskablePPO, RecurrentJepaPolicy, RecurrentPPO
from sb3_jepa.buffers.contrib import JepaMaskableRolloutBuffer
from tests.buffers.test_rollout import ONE_STEP, origin, train_on_one_rollout
from tests.conftest import SMALL_POLICY, SMALL_PPO, FakeEnv, make_counting_env


@pytest.mark.parametrize("batch_size", [7, 16])
def test_recurrent_rows_have_their_true_next_observation_and_no_padding(batch_size):
    kwargs = {**SMALL_PPO, "batch_size": batch_size}
    model = RecurrentPPO("JepaPolicy", make_counting_env(), policy_kwargs=SMALL_POLICY, **kwargs)
    transitions = train_on_one_rollout(model)
    # Sequences are padded, and the padding is not learned from
    assert len(transitions.mask) > len(transitions.valid) == transitions.mask.sum() == 3 * model.n_steps
    assert len(transitions.actions) == len(transitions.next_observations) == len(transitions.valid)
    assert (transitions.valid == 1).all()
    difference = origin(transitions.next_observations) - origin(transitions.observations[transitions.mask])
    assert (difference == ONE_STEP).all()


def test_maskable_rows_have_their_true_next_observation_and_their_masks():
    # The counting environment has no masks
    model = MaskablePPO("JepaPolicy", make_counting_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    transitions = train_on_one_rollout(model, use_masking=False)
    assert (transitions.valid == 1).all()
    assert (origin(transitions.next_observations) - origin(transitions.observations) == ONE_STEP).all()


def test_forbidden_actions_are_not_taken():
    env = make_vec_env(lambda: FakeEnv(spaces.Box(-1, 1, (3,)), spaces.Discrete(3)), n_envs=2, seed=0)
    model = MaskablePPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(96)
    assert (model.rollout_buffer.actions != 0).all()
    actions, _ = model.predict(env.reset(), action_masks=np.array([[0, 1, 0], [0, 0, 1]]))
    assert actions.tolist() == [1, 2]


def test_stock_maskable_ppo_with_the_buffer():
    model = sb3_contrib.MaskablePPO(
        MaskableJepaPolicy,
        make_counting_env(),
        rollout_buffer_class=JepaMaskableRolloutBuffer,
        policy_kwargs=SMALL_POLICY,
        **SMALL_PPO,
    )
    assert set(model.policy.objectives) == {"shared"}


@pytest.mark.parametrize(
    ("algorithm", "policy", "message"),
    [
        (PPO, RecurrentJepaPolicy, "PPO takes the policy JepaPolicy, got RecurrentJepaPolicy"),
        (MaskablePPO, JepaPolicy, "MaskablePPO takes the policy MaskableJepaPolicy, got JepaPolicy"),
        (RecurrentPPO, JepaPolicy, "RecurrentPPO takes the policy RecurrentJepaPolicy, got JepaPolicy"),
    ],
)
def test_algorithms_and_policies_that_do_not_belong_together(algorithm, policy, message):
    with pytest.raises(ValueError, match=message):
        algorithm(policy, make_counting_env(), policy_kwargs=SMALL_POLICY)


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [
        (StockPPO, JepaPolicy),
        (sb3_contrib.RecurrentPPO, RecurrentJepaPolicy),
        (sb3_contrib.MaskablePPO, MaskableJepaPolicy),
        (sb3_contrib.TRPO, JepaPolicy),
    ],
)
def test_algorithms_without_transitions_are_refused_before_a_step_of_the_optimiser(algorithm, policy):
    model = algorithm(policy, make_counting_env(), n_steps=8, batch_size=8, policy_kwargs=SMALL_POLICY)
    with pytest.raises(ValueError, match=f"{policy.__name__} was about to be trained without its JEPA loss"):
        model.learn(16, **({"use_masking": False} if policy is MaskableJepaPolicy else {}))


@pytest.mark.parametrize(
    "critic", [dict(), dict(enable_critic_lstm=False), dict(shared_lstm=True, enable_critic_lstm=False)]
)
def test_a_recurrent_policy_is_saved_with_its_sizes(critic, tmp_path):
    policy_kwargs = dict(SMALL_POLICY, lstm_hidden_size=16, n_lstm_layers=2, **critic)
    policy = RecurrentPPO("JepaPolicy", make_counting_env(), policy_kwargs=policy_kwargs, **SMALL_PPO).policy
    policy.save(tmp_path / "policy")
    loaded = RecurrentJepaPolicy.load(tmp_path / "policy")
    observations = make_counting_env().reset()
    assert np.array_equal(policy.predict(observations)[1][0], loaded.predict(observations)[1][0])


def test_without_sb3_contrib_the_extra_is_named():
    script = """
import sys
sys.modules["sb3_contrib"] = None
import sb3_jepa
try:
    sb3_jepa.MaskablePPO
except ImportError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'pip install "sb3-jepa[contrib]"' in said
