"""``copy.deepcopy(model.policy)``, as for self-play, snapshots, and averages of weights."""

import copy
import pickle

import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_jepa import A2C, PPO, JepaCallback, JepaExtractor, MaskablePPO, RecurrentPPO
from tests.algorithms.test_matrix import distance, parameters
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO, FakeEnv

ON_POLICY = dict(n_steps=16, seed=0, device="cpu")
OFF_POLICY = dict(learning_starts=20, train_freq=4, buffer_size=200, batch_size=16, seed=0, device="cpu")
SDE = dict(use_sde=True, sde_sample_freq=4)
# Class, arguments, whether actions are continuous, and whether it learns jointly
MODELS = {
    "PPO": (PPO, SMALL_PPO, False, True),
    "PPO with gSDE": (PPO, dict(SMALL_PPO, **SDE), True, True),
    "A2C": (A2C, ON_POLICY, True, True),
    "MaskablePPO": (MaskablePPO, SMALL_PPO, False, True),
    "RecurrentPPO": (RecurrentPPO, SMALL_PPO, False, True),
    "PPO in turn": (stable_baselines3.PPO, SMALL_PPO, False, False),
    "PPO with gSDE in turn": (stable_baselines3.PPO, dict(SMALL_PPO, **SDE), True, False),
    "DQN in turn": (stable_baselines3.DQN, OFF_POLICY, False, False),
    "SAC in turn": (stable_baselines3.SAC, OFF_POLICY, True, False),
    "SAC with gSDE in turn": (stable_baselines3.SAC, dict(OFF_POLICY, **SDE), True, False),
}


def make_model(name: str):
    """A model, and the callback that it needs."""
    algorithm, kwargs, is_continuous, is_joint = MODELS[name]
    action_space = spaces.Box(-1.0, 1.0, (2,)) if is_continuous else spaces.Discrete(3)
    env = make_vec_env(lambda: FakeEnv(spaces.Box(-1.0, 1.0, (3,)), action_space), n_envs=2, seed=0)
    policy_kwargs = copy.deepcopy(SMALL_POLICY)
    if name == "PPO with gSDE in turn":
        # In rollouts that measure the inputs, its noise is not detached yet
        policy_kwargs["features_extractor_kwargs"]["standardize_frames"] = 0
    if not is_joint:
        policy_kwargs["features_extractor_class"] = JepaExtractor
    model = algorithm("JepaPolicy" if is_joint else "MlpPolicy", env, policy_kwargs=policy_kwargs, **kwargs)
    return model, [] if is_joint else [JepaCallback()]


def act(policy, deterministic: bool = True):
    observations = th.linspace(-1.0, 1.0, 12).reshape(4, 3).numpy()
    th.manual_seed(0)
    return policy.predict(observations, deterministic=deterministic)[0].tolist()


class Copy(BaseCallback):
    """A snapshot at every fourth step, and when rollouts start and end."""

    def __init__(self):
        super().__init__()
        self.n_copies = 0

    def _copy(self) -> None:
        random_numbers = th.get_rng_state()
        copied = copy.deepcopy(self.model.policy)
        assert act(copied) == act(self.model.policy)
        th.set_rng_state(random_numbers)
        self.n_copies += 1

    def _on_rollout_start(self) -> None:
        self._copy()

    def _on_step(self) -> bool:
        if self.n_calls % 4 == 0:
            self._copy()
        return True

    def _on_rollout_end(self) -> None:
        self._copy()


@pytest.mark.parametrize("name", MODELS)
def test_a_trained_policy_can_be_copied(name):
    model, callbacks = make_model(name)
    model.learn(32 + 64, callback=callbacks)
    original, copied = model.policy, copy.deepcopy(model.policy)
    for deterministic in (True, False):
        assert act(copied, deterministic) == act(original, deterministic)
    before = parameters(original)
    if isinstance(model, OnPolicyAlgorithm):
        # The copy learns by itself: its optimiser moves its own target encoder
        targets = [parameters(objective.target_encoder) for objective in getattr(copied, "objectives", {}).values()]
        model.policy = copied
        model.learn(32, callback=callbacks, reset_num_timesteps=False)
        assert distance(before, parameters(copied)) > 0
        for target in targets:
            assert distance(target, parameters(copied.objective.target_encoder)) > 0
        assert distance(before, parameters(original)) == 0
        model.policy = original
    before_of_copy = parameters(copied)
    model.learn(32, callback=callbacks, reset_num_timesteps=False)
    assert distance(before, parameters(original)) > 0
    assert distance(before_of_copy, parameters(copied)) == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_policy_can_be_copied_in_the_middle_of_its_training(name):
    learned = []
    for copies in ([], [Copy()]):
        model, callbacks = make_model(name)
        model.learn(32 + 32, callback=[*callbacks, *copies])
        learned.append(parameters(model.policy))
    assert copies[0].n_copies > 8
    # What is copied goes on as if nothing had happened
    assert distance(*learned) == 0


def test_a_copy_does_not_carry_recent_embeddings():
    model, _ = make_model("PPO")
    model.learn(32 + 64)
    model.train()
    gauge = model.policy.gauges["shared"]
    copied = copy.deepcopy(model.policy).gauges["shared"]
    assert gauge.n_samples > 0
    assert (copied.n_samples, copied.means(), copied.scalars()) == (0, {}, {})
    assert copied.first_embedding_variance == gauge.first_embedding_variance > 0
    assert len(pickle.dumps(gauge)) < 10_000 < SMALL_EXTRACTOR["embed_dim"] * gauge.n_samples * 4 * 3
    assert gauge.scalars()
