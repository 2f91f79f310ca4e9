"""The inputs are measured from the first rollout, and what the algorithm learns from it is of the measured policy."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa import A2C, PPO, JepaCallback, JepaExtractor, MaskablePPO, RecurrentPPO
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.extractors.measuring import n_inputs_to_measure
from tests.conftest import FakeEnv, make_counting_env

EXTRACTOR = dict(embed_dim=16, num_heads=2, depth=1, patch_size=8, standardize_frames=32)
# Far from standardised: before and after it was measured, the policy is another function
VECTOR = spaces.Box(-50, 150, (3,))
IMAGE = spaces.Box(0, 255, (3, 16, 16), np.uint8)
ALGORITHMS = dict(PPO=PPO, A2C=A2C, MaskablePPO=MaskablePPO, RecurrentPPO=RecurrentPPO)
N_STEPS = 16


def make_env(observation: spaces.Space = VECTOR, action: spaces.Space | None = None):
    """The episodes of the first environment end by a time limit, those of the second by themselves."""
    limits = iter((3, 7))
    return make_vec_env(lambda: gym.wrappers.TimeLimit(FakeEnv(observation, action), next(limits)), n_envs=2, seed=0)


def make_model(algorithm: str = "PPO", env=None, n_steps: int = N_STEPS, alternating: bool = False, **settings):
    """A model, and the callback that trains its encoder."""
    env = make_env() if env is None else env
    kwargs = dict(n_steps=n_steps, seed=0, device="cpu", **settings)
    if algorithm != "A2C":
        # An update is one step with all rows
        kwargs = {**dict(n_epochs=1, batch_size=n_steps * env.num_envs), **kwargs}
    policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16], **kwargs.pop("policy_kwargs", {}))
    if alternating:
        policy_kwargs.update(features_extractor_class=JepaExtractor)
        return getattr(stable_baselines3, algorithm)("MlpPolicy", env, policy_kwargs=policy_kwargs, **kwargs)
    return ALGORITHMS[algorithm]("JepaPolicy", env, policy_kwargs=policy_kwargs, **kwargs)


def make_stock_ppo(n_steps: int = N_STEPS):
    return stable_baselines3.PPO("MlpPolicy", make_env(), n_steps=n_steps, batch_size=32, n_epochs=1, device="cpu")


class Record(BaseCallback):
    """The steps of the latest rollout as the environment gave them, and all calls in their order."""

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.calls, self.stop_after = [], stop_after

    def _on_training_start(self) -> None:
        self.calls.append("training starts")

    def _on_rollout_start(self) -> None:
        self.calls.append("rollout starts")
        self.rewards, self.dones, self.infos, self.masks = [], [], [], []

    def _on_step(self) -> bool:
        self.calls.append("step")
        self.rewards.append(self.locals["rewards"].copy())
        self.dones.append(self.locals["dones"].copy())
        self.infos.append(self.locals["infos"])
        self.masks.append(self.locals.get("action_masks"))
        return self.n_calls != self.stop_after

    def _on_rollout_end(self) -> None:
        self.calls.append("rollout ends")
        assert self.model.rollout_buffer.full
        # No samples were drawn, which would put the rows in another order
        assert not self.model.rollout_buffer.generator_ready

    def _on_training_end(self) -> None:
        self.calls.append("training ends")


def begin(model, *callbacks: BaseCallback) -> BaseCallback:
    """What ``learn()`` does before the first rollout."""
    total_timesteps, callback = model._setup_learn(10_000, CallbackList([JepaCallback(), *callbacks]))
    callback.on_training_start(dict(total_timesteps=total_timesteps, log_interval=None), {})
    return callback


def collect(model, callback: BaseCallback) -> None:
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


class ByHand:
    """Steps the policy through the observations of a rollout, with states if it has some."""

    def __init__(self, model, states):
        self.policy, self.states = model.policy, states

    def value(self, observations, starts, states=None) -> np.ndarray:
        if self.states is None:
            return self.policy.predict_values(observations).flatten().numpy()
        starts = th.as_tensor(starts, dtype=th.float32)
        return self.policy.predict_values(observations, states or self.states.vf, starts).flatten().numpy()

    def log_prob(self, observations, actions, starts, masks) -> np.ndarray:
        if self.states is not None:
            starts = th.as_tensor(starts, dtype=th.float32)
            distribution, _ = self.policy.get_distribution(observations, self.states.pi, starts)
        elif masks is not None:
            distribution = self.policy.get_distribution(observations, action_masks=masks)
        else:
            distribution = self.policy.get_distribution(observations)
        return distribution.log_prob(actions).numpy()

    def go_on(self, observations, starts) -> None:
        if self.states is not None:
            starts = th.as_tensor(starts, dtype=th.float32)
            *_, self.states = self.policy(observations, self.states, starts, deterministic=True)


@th.no_grad()
def check_rollout(model, record: Record, states=None):
    """All that the algorithm learns from, against what the policy says now; returns the last states."""
    buffer, policy = model.rollout_buffer, model.policy
    by_hand = ByHand(model, states)
    rewards, values = np.stack(record.rewards), np.zeros((model.n_steps, buffer.n_envs))
    for row in range(model.n_steps):
        observations = obs_as_tensor(
            as_observations({key: array[row] for key, array in by_key(buffer.observations).items()}), "cpu"
        )
        actions, starts = th.as_tensor(buffer.actions[row]), buffer.episode_starts[row]
        if isinstance(model.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        if states is not None:
            for name, (hidden, cell) in dict(pi=by_hand.states.pi, vf=by_hand.states.vf).items():
                assert np.allclose(getattr(buffer, f"hidden_states_{name}")[row], hidden, atol=1e-5)
                assert np.allclose(getattr(buffer, f"cell_states_{name}")[row], cell, atol=1e-5)
        values[row] = by_hand.value(observations, starts)
        log_probs = by_hand.log_prob(observations, actions, starts, record.masks[row])
        assert buffer.log_probs[row] == pytest.approx(log_probs, abs=1e-4)
        by_hand.go_on(observations, starts)
        for env, info in enumerate(record.infos[row]):
            if info.get("TimeLimit.truncated"):
                terminal, _ = policy.obs_to_tensor(info["terminal_observation"])
                own = None if states is None else tuple(x[:, [env]].contiguous() for x in by_hand.states.vf)
                rewards[row, env] += model.gamma * by_hand.value(terminal, [False], own)[0]
    assert buffer.values == pytest.approx(values, abs=1e-4)
    assert buffer.rewards == pytest.approx(rewards, abs=1e-4)
    # Advantages by their definition: discounted sums of the errors of the value function, until the episode ends
    last_values = by_hand.value(obs_as_tensor(model._last_obs, "cpu"), record.dones[-1])
    next_values, goes_on = np.vstack((values[1:], last_values)), 1.0 - np.stack(record.dones)
    errors = rewards + model.gamma * goes_on * next_values - values
    advantages, advantage = np.zeros_like(values), np.zeros(buffer.n_envs)
    for row in reversed(range(model.n_steps)):
        advantage = errors[row] + model.gamma * model.gae_lambda * goes_on[row] * advantage
        advantages[row] = advantage
    assert buffer.advantages == pytest.approx(advantages, abs=1e-3)
    assert buffer.returns == pytest.approx(advantages + values, abs=1e-3)
    return by_hand.states


DISCRETE, BOX = spaces.Discrete(3), spaces.Box(-1, 1, (2,))
DICT = spaces.Dict(camera=IMAGE, speed=VECTOR, mode=spaces.Discrete(3))
CASES = {
    "PPO": dict(),
    "images and both ends of episodes": dict(env=make_counting_env),
    "Box actions": dict(env=lambda: make_env(VECTOR, BOX)),
    "MultiDiscrete actions": dict(env=lambda: make_env(VECTOR, spaces.MultiDiscrete([3, 2]))),
    "Dict observations": dict(env=lambda: make_env(DICT, DISCRETE)),
    "gSDE": dict(env=lambda: make_env(VECTOR, BOX), use_sde=True, sde_sample_freq=4),
    "more rows than are evaluated at once": dict(n_steps=300),
    "MaskablePPO": dict(algorithm="MaskablePPO", env=lambda: make_env(VECTOR, DISCRETE)),
    "alternating": dict(alternating=True),
    "alternating A2C": dict(algorithm="A2C", alternating=True),
}


def make_case(env=make_env, **kwargs):
    return make_model(env=env(), **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_what_is_learned_from_the_first_rollout_is_of_the_measured_policy(case):
    model, record = make_case(**CASES[case]), Record()
    callback = begin(model, record)
    assert n_inputs_to_measure(model.policy) > 0
    collect(model, callback)
    assert n_inputs_to_measure(model.policy) == 0
    assert any(info.get("TimeLimit.truncated") for infos in record.infos for info in infos)
    check_rollout(model, record)
    # The second one is as it was collected
    model.train()
    collect(model, callback)
    check_rollout(model, record)


def test_short_rollouts_are_all_evaluated_anew_until_enough_was_seen():
    model, record = make_model("A2C", n_steps=5), Record()
    callback = begin(model, record)
    lacking = []
    for _ in range(5):
        collect(model, callback)
        lacking.append(n_inputs_to_measure(model.policy))
        check_rollout(model, record)
        model.train()
    assert lacking == [22, 12, 2, 0, 0]
    (standardization,) = model.policy.features_extractor.standardizations
    assert standardization.n_seen == 40


def test_a_long_rollout_is_measured_whole_but_not_at_once():
    model = make_model(env=make_env(DICT, DISCRETE), n_steps=1100)
    sizes = []
    model.policy.features_extractor.encoder.tokenizer.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]["speed"]))
    )
    collect(model, begin(model))
    assert max(sizes) <= 1024
    seen = model.rollout_buffer.observations
    for one in model.policy.features_extractor.standardizations:
        assert one.n_seen == 2 * 1100
    speed = model.policy.features_extractor.standardizations[-1]
    assert speed.mean.numpy() == pytest.approx(seen["speed"].mean(axis=(0, 1)), rel=1e-4)
    assert speed.variance.numpy() == pytest.approx(seen["speed"].var(axis=(0, 1)), rel=1e-4)


@pytest.mark.parametrize("action", [DISCRETE, BOX], ids=["Discrete", "Box"])
@pytest.mark.parametrize("lstm", [{}, dict(shared_lstm=True, enable_critic_lstm=False), dict(n_lstm_layers=2)])
def test_states_of_an_lstm_are_those_of_the_measured_policy(action, lstm):
    policy_kwargs = dict(lstm_hidden_size=8, **lstm)
    model = make_model("RecurrentPPO", env=make_env(VECTOR, action), policy_kwargs=policy_kwargs)
    record = Record()
    callback = begin(model, record)
    states = model._last_lstm_states
    for _ in range(2):
        collect(model, callback)
        states = check_rollout(model, record, states)
        for ours, by_hand in zip(model._last_lstm_states, states, strict=True):
            assert all(th.allclose(*pair, atol=1e-5) for pair in zip(ours, by_hand, strict=True))
    assert float(model._last_lstm_states.pi[0].abs().max()) > 0


@pytest.mark.parametrize("algorithm", ["PPO", "MaskablePPO", "RecurrentPPO", "alternating"])
def test_the_first_update_begins_with_ratios_of_one(algorithm):
    is_alternating = algorithm == "alternating"
    env = make_env(VECTOR, DISCRETE)
    model = make_model("PPO" if is_alternating else algorithm, env, alternating=is_alternating)
    # Not nearly the same for every action, as it begins
    model.policy.action_net.weight.data.mul_(100)
    callback = begin(model)
    for _ in range(2):
        collect(model, callback)
        model.train()
        # Of the only minibatch, before its step
        assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-5)
        assert model.logger.name_to_value["train/clip_fraction"] == 0


@pytest.mark.parametrize("case", [*CASES, "RecurrentPPO"])
def test_measuring_draws_no_random_numbers(case):
    class KeepGenerators(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            # The generator that Stable-Baselines3 seeds
            self.states = [*np.random.get_state()[1:3], th.get_rng_state(), n_inputs_to_measure(self.model.policy)]

    before, after = KeepGenerators(), KeepGenerators()
    model = make_case(**CASES.get(case, dict(algorithm="RecurrentPPO")))
    _, callback = model._setup_learn(1000, CallbackList([before, JepaCallback(), after]))
    callback.on_training_start({}, {})
    collect(model, callback)
    *generators_before, lacking_before = before.states
    *generators_after, lacking_after = after.states
    assert lacking_before > lacking_after
    assert all(np.array_equal(*pair) for pair in zip(generators_before, generators_after, strict=True))


@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize("stop_after", [None, 3, N_STEPS, N_STEPS + 1])
def test_other_callbacks_are_called_as_with_stock_ppo(alternating, stop_after):
    model, stock = make_model(alternating=alternating), make_stock_ppo()
    ours, theirs = Record(stop_after), Record(stop_after)
    # One step less than two rollouts
    model.learn(4 * N_STEPS - 1, callback=[JepaCallback(), ours])
    stock.learn(4 * N_STEPS - 1, callback=theirs)
    assert ours.calls == theirs.calls
    assert model.num_timesteps == stock.num_timesteps
    assert model._n_updates == stock._n_updates


def test_a_callback_that_stops_for_good_ends_the_first_rollout():
    model, stock = make_model(n_steps=64), make_stock_ppo(n_steps=64)
    for one in (model, stock):
        one.learn(10_000, callback=StopTrainingOnMaxEpisodes(2))
        assert one._n_updates == 0
    assert model.num_timesteps == stock.num_timesteps < 64


@pytest.mark.parametrize("n_timesteps", [20, 500, 1025])
def test_a_training_takes_as_many_steps_as_stock_ppo(n_timesteps):
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    settings = dict(n_steps=128, batch_size=512, n_epochs=1, device="cpu")
    # Measures its inputs from 1,024 observations
    policy_kwargs = dict(features_extractor_kwargs=dict(embed_dim=16, num_heads=2, depth=1), net_arch=[16])
    model = PPO("JepaPolicy", env, policy_kwargs=policy_kwargs, **settings).learn(n_timesteps)
    stock = stable_baselines3.PPO("MlpPolicy", env, **settings).learn(n_timesteps)
    assert model.num_timesteps == stock.num_timesteps
    assert model._n_updates == stock._n_updates > 0
    assert model.policy.features_extractor.n_inputs_to_measure == 0


@pytest.mark.parametrize("alternating", [False, True])
def test_rollouts_can_be_collected_without_learn(alternating):
    model, record = make_model(alternating=alternating), Record()
    _, callback = model._setup_learn(1000, CallbackList([JepaCallback(), record]))
    for _ in range(2):
        collect(model, callback)
        assert n_inputs_to_measure(model.policy) == 0
        check_rollout(model, record)
        model.train()
