"""``learn(N)`` and then ``learn(N, reset_num_timesteps=False)`` is ``learn(2 * N)``."""

import copy

import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, JepaCallback, JepaExtractor, TJepa
from tests.conftest import SMALL_POLICY, SMALL_PPO, FakeEnv

# Its exploration follows the progress of the training, which is another one
DQN_SETTINGS = dict(exploration_initial_eps=0.2, exploration_final_eps=0.2, target_update_interval=20)
OFF_POLICY = dict(learning_starts=20, train_freq=4, gradient_steps=2, batch_size=16, seed=0, device="cpu")
N_STEPS = 32 + 64


def make_model(algorithm: str):
    action_space = spaces.Box(-1.0, 1.0, (2,)) if algorithm == "SAC" else spaces.Discrete(3)
    env = make_vec_env(lambda: FakeEnv(spaces.Box(-1.0, 1.0, (4,)), action_space), n_envs=2, seed=0)
    if algorithm == "joint PPO":
        settings = dict(SMALL_PPO, learning_rate=1e-3)
        return PPO("JepaPolicy", env, policy_kwargs=copy.deepcopy(SMALL_POLICY), **settings)
    settings = dict(PPO=SMALL_PPO, DQN=dict(OFF_POLICY, **DQN_SETTINGS), SAC=OFF_POLICY)[algorithm]
    policy_kwargs = dict(SMALL_POLICY, features_extractor_class=JepaExtractor)
    return getattr(stable_baselines3, algorithm)("MlpPolicy", env, policy_kwargs=policy_kwargs, **settings)


def states(model, callback: JepaCallback) -> dict[str, th.Tensor]:
    """All that is learned."""
    modules = dict(policy=model.policy, **callback.objectives)
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("callbacks", ["the same callback", "a new callback"])
@pytest.mark.parametrize("algorithm", ["joint PPO", "PPO", "DQN", "SAC"])
def test_a_training_that_goes_on_is_one_that_was_never_interrupted(algorithm, callbacks):
    whole, callback = make_model(algorithm), JepaCallback()
    whole.learn(2 * N_STEPS, callback=callback)
    expected = states(whole, callback)

    resumed, callback = make_model(algorithm), JepaCallback()
    before = {name: value.clone() for name, value in resumed.policy.state_dict().items()}
    resumed.learn(N_STEPS, callback=callback)
    if callbacks == "a new callback":
        callback = JepaCallback()
    resumed.learn(N_STEPS, callback=callback, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps == 2 * N_STEPS
    found = states(resumed, callback)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert th.equal(value, found[name]), name
    assert not all(th.equal(value, before[name]) for name, value in resumed.policy.state_dict().items())


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_masks_are_drawn_as_in_a_training_that_was_never_interrupted(algorithm):
    learned = []
    for trainings in ([2 * N_STEPS], [N_STEPS, N_STEPS]):
        model = make_model(algorithm)
        for n_steps in trainings:
            # A momentum that follows the progress would know how long the training is
            callback = JepaCallback(objective_class=TJepa, objective_kwargs=dict(momentum=0.99))
            model.learn(n_steps, callback=callback, reset_num_timesteps=False)
        learned.append(states(model, callback))
    for name, value in learned[0].items():
        assert th.equal(value, learned[1][name]), name


def test_a_training_of_no_steps_changes_nothing():
    model = make_model("DQN").learn(N_STEPS, callback=JepaCallback())
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for _ in range(2):
        model.learn(0, callback=JepaCallback(), reset_num_timesteps=False)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name]), name
