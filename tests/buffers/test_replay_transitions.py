"""Windows of a replay buffer, against the steps that an environment really took."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import DQN, SAC, FrameDictReplayBuffer, FrameReplayBuffer, JepaCallback
from sb3_jepa.buffers.replay_transitions import end_cut_episodes, sample_transitions

PICTURE = spaces.Box(0, 255, (1, 36, 40), np.uint8)
LENGTHS = (4, 7, 5)


class TellingEnv(gym.Env):
    """Each observation says in which episode and at which time it was made; episodes end and are truncated in turn."""

    def __init__(self, number: int, kind: str):
        spaces_of = dict(
            vector=spaces.Box(0, 1e4, (3,)),
            picture=PICTURE,
            Dict=spaces.Dict(where=spaces.Box(0, 1e4, (3,)), camera=PICTURE),
            goals=spaces.Dict(
                {key: spaces.Box(0, 1e4, (3,)) for key in ("observation", "achieved_goal", "desired_goal")}
            ),
        )
        self.kind, self.number = kind, number
        self.observation_space, self.action_space = spaces_of[kind], spaces.Discrete(3)
        self.episode, self.time = -1, 0

    def _observation(self):
        told = np.array([self.number, self.episode, self.time], dtype=np.float32)
        picture = np.zeros(PICTURE.shape, np.uint8)
        picture[0, 0, :3] = told
        if self.kind == "goals":
            return dict(observation=told, achieved_goal=told, desired_goal=np.full(3, self.episode, np.float32))
        return dict(vector=told, picture=picture, Dict=dict(where=told, camera=picture))[self.kind]

    def compute_reward(self, achieved, desired, info):
        return np.zeros(len(achieved), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        over = self.time == LENGTHS[self.episode % len(LENGTHS)]
        truncates = self.episode % 2 == 1
        # Without a loss of precision, a reward that tells the step
        return self._observation(), 10.0 * self.episode + self.time, over and not truncates, over and truncates, {}


def told_by(observations) -> np.ndarray:
    """Environment, episode and time of each observation, ``(batch, 3)``."""
    if isinstance(observations, dict):
        observations = observations.get("where", observations.get("observation"))
    if observations.ndim == 4:
        observations = observations[:, 0, 0, :3]
    return observations.numpy().astype(int)


BUFFERS = {
    "plain": ("vector", ReplayBuffer, {}),
    "memory": ("vector", ReplayBuffer, dict(optimize_memory_usage=True, handle_timeout_termination=False)),
    "Dict": ("Dict", DictReplayBuffer, {}),
    "n-step": ("vector", NStepReplayBuffer, dict(n_steps=3, gamma=0.9)),
    "frames": ("picture", FrameReplayBuffer, {}),
    "frames of a Dict": ("Dict", FrameDictReplayBuffer, {}),
    "goals": ("goals", HerReplayBuffer, {}),
}


def filled(name: str, n_steps: int, buffer_size: int = 60):
    """A buffer with random actions; and the actions, by environment, episode and time."""
    kind, cls, kwargs = BUFFERS[name]
    numbers = iter(range(2))
    env = make_vec_env(lambda: TellingEnv(next(numbers), kind), n_envs=2)
    kwargs = dict(kwargs, env=env) if cls is HerReplayBuffer else kwargs
    buffer = cls(buffer_size, env.observation_space, env.action_space, device="cpu", n_envs=2, **kwargs)
    actions: dict[tuple[int, ...], int] = {}
    generator = np.random.default_rng(0)
    observations = env.reset()
    for _ in range(n_steps):
        chosen = generator.integers(0, 3, 2)
        told = told_by(
            {k: th.as_tensor(v) for k, v in observations.items()}
            if isinstance(observations, dict)
            else th.as_tensor(observations)
        )
        actions.update({tuple(one): int(action) for one, action in zip(told.tolist(), chosen, strict=True)})
        new, rewards, dones, infos = env.step(chosen)
        led_to = {k: v.copy() for k, v in new.items()} if isinstance(new, dict) else new.copy()
        for index in np.flatnonzero(dones):
            last = infos[index]["terminal_observation"]
            for key, array in led_to.items() if isinstance(led_to, dict) else [(None, led_to)]:
                array[index] = last if key is None else last[key]
        buffer.add(observations, led_to, chosen, rewards, dones, infos)
        observations = new
    return buffer, actions


@pytest.mark.parametrize("horizon", [1, 3, 6])
@pytest.mark.parametrize("n_steps", [25, 50])
@pytest.mark.parametrize("name", BUFFERS)
def test_windows_are_what_the_environment_did(name, n_steps, horizon):
    # 25 steps of two environments do not fill the buffer, 50 go round it
    buffer, taken = filled(name, n_steps)
    assert buffer.full == (n_steps == 50)
    np.random.seed(0)
    samples, transitions = sample_transitions(buffer, 400, None, horizon, name != "goals")
    assert transitions.observations is samples.observations
    first = told_by(transitions.observations)
    shape = (400, horizon)
    actions, valid = transitions.actions.reshape(shape), transitions.valid.reshape(shape)
    led_to = told_by(transitions.next_observations).reshape(*shape, 3)
    assert th.equal(actions[:, 0], samples.actions.flatten())
    newest = {env: max(key[1:] for key in taken if key[0] == env) for env in range(2)}
    n_valid = 0
    for row, (env, episode, time) in enumerate(first.tolist()):
        length = LENGTHS[episode % len(LENGTHS)]
        for k in range(horizon):
            step = time + k
            belongs = step < length and (episode, step) <= newest[env]
            # It gives the first observation of the next episode in the place of the last one
            is_forgotten = name == "memory" and step == length - 1
            assert bool(valid[row, k]) == (belongs and not is_forgotten), (row, k)
            if valid[row, k]:
                n_valid += 1
                assert led_to[row, k].tolist() == [env, episode, step + 1]
                assert int(actions[row, k]) == taken[env, episode, step]
            if name != "goals" and belongs:
                rewards, ends = (one.reshape(shape)[row, k] for one in (transitions.rewards, transitions.ends))
                terminates = step == length - 1 and episode % 2 == 0
                assert float(rewards) == 10 * episode + step + 1
                # Without timeouts, a truncation counts as an end
                assert bool(ends) == (terminates or is_forgotten)
    assert n_valid > 300


def test_windows_take_no_random_numbers_of_their_own():
    for name in BUFFERS:
        buffer, _ = filled(name, 50)
        drawn = []
        for horizon in (1, 3):
            np.random.seed(3)
            samples, _ = sample_transitions(buffer, 32, None, horizon)
            drawn.append((samples.actions, np.random.random()))
        np.random.seed(3)
        assert th.equal(buffer.sample(32).actions, drawn[0][0]), name
        assert th.equal(drawn[0][0], drawn[1][0]), name
        assert drawn[0][1] == drawn[1][1] == np.random.random(), name


def test_a_window_keeps_the_goal_of_its_sample():
    buffer, _ = filled("goals", 50)
    samples, transitions = sample_transitions(buffer, 100, None, 3)
    goals = samples.observations["desired_goal"]
    assert (goals[:, 0] != samples.observations["observation"][:, 1]).any()
    windows = transitions.next_observations["desired_goal"].unflatten(0, (100, 3))
    assert (windows == goals[:, None]).all()


def test_windows_are_normalised_as_samples_are():
    buffer, _ = filled("plain", 50)
    env = VecNormalize(make_vec_env(lambda: TellingEnv(0, "vector"), n_envs=2))
    env.obs_rms.mean, env.ret_rms.var = np.full(3, 2.0), np.array(4.0)
    np.random.seed(0)
    samples, one = sample_transitions(buffer, 50, env, 1, True)
    np.random.seed(0)
    _, several = sample_transitions(buffer, 50, env, 3, True)
    assert th.equal(several.next_observations.unflatten(0, (50, 3))[:, 0], one.next_observations)
    assert th.allclose(several.rewards[:, 0], samples.rewards.flatten())
    assert th.equal(one.rewards, samples.rewards.flatten())


def test_windows_end_where_an_episode_was_cut():
    buffer, _ = filled("plain", 14)
    at = (buffer.pos - 1) % buffer.buffer_size
    assert not buffer.dones[at].any()
    bootstrapped = (buffer.dones * (1 - buffer.timeouts)).copy()
    going_on = buffer.next_observations[at].copy()
    end_cut_episodes(buffer, going_on)
    assert not buffer.dones[at].any()
    end_cut_episodes(buffer, np.full((2, 3), 99.0))
    assert buffer.dones[at].all()
    assert np.array_equal(bootstrapped, buffer.dones * (1 - buffer.timeouts))
    # Another training begins with another episode
    for _ in range(5):
        buffer.add(np.full((2, 3), 99.0), np.full((2, 3), 99.0), np.zeros(2), np.zeros(2), np.zeros(2, bool), [{}, {}])
    _, transitions = sample_transitions(buffer, 500, None, 4)
    first = told_by(transitions.observations)
    led_to = told_by(transitions.next_observations).reshape(500, 4, 3)
    for row in np.flatnonzero(first[:, 0] != 99):
        assert not (led_to[row, :, 0][transitions.valid[row].numpy() > 0] == 99).any()


def test_a_second_training_does_not_go_on_with_the_episode_of_the_first():
    model = DQN(
        "JepaPolicy",
        TellingEnv(0, "vector"),
        learning_starts=4,
        batch_size=4,
        policy_kwargs=dict(objective_kwargs=dict(steps_ahead=3)),
    ).learn(10)
    before = model.replay_buffer.pos - 1
    assert model.replay_buffer.dones[before] == 0
    model.learn(10)
    assert model.replay_buffer.dones[before] == model.replay_buffer.timeouts[before] == 1


def test_a_training_that_goes_on_keeps_its_episode_whole():
    kwargs = dict(learning_starts=4, batch_size=4, policy_kwargs=dict(objective_kwargs=dict(steps_ahead=3)))
    model = DQN("JepaPolicy", VecNormalize(make_vec_env(lambda: TellingEnv(0, "vector"))), **kwargs).learn(10)
    before = model.replay_buffer.pos - 1
    model.learn(10, reset_num_timesteps=False)
    assert model.replay_buffer.dones[before] == 0


class OtherEnvironments(ReplayBuffer):
    """It draws a number before the environments are drawn."""

    def _get_samples(self, batch_inds, env=None):
        np.random.random()
        return super()._get_samples(batch_inds, env)


def test_windows_of_other_environments_are_refused():
    plain, _ = filled("plain", 50)
    buffer = OtherEnvironments(60, plain.observation_space, plain.action_space, device="cpu", n_envs=2)
    state = {name: value for name, value in vars(plain).items() if name not in ("observation_space", "action_space")}
    vars(buffer).update(state)
    with pytest.raises(ValueError, match="does not tell the rows"):
        sample_transitions(buffer, 200, None, 3)


class OwnSamples(ReplayBuffer):
    """One that takes its samples in a way of its own."""

    def sample(self, batch_size, env=None):
        rows = np.arange(batch_size) % self.size()
        return ReplayBuffer._get_samples(self, rows, env)


def test_a_buffer_that_does_not_tell_its_rows_is_good_for_single_steps():
    kwargs = dict(replay_buffer_class=OwnSamples, learning_starts=4, batch_size=4)
    DQN("JepaPolicy", TellingEnv(0, "vector"), **kwargs).learn(10)
    model = DQN(
        "JepaPolicy", TellingEnv(0, "vector"), policy_kwargs=dict(objective_kwargs=dict(steps_ahead=2)), **kwargs
    )
    with pytest.raises(ValueError, match="does not tell the rows"):
        model.learn(10)


def test_rewards_of_several_steps_are_unknown_for_goals_in_hindsight():
    buffer, _ = filled("goals", 50)
    with pytest.raises(ValueError, match="HerReplayBuffer"):
        sample_transitions(buffer, 4, None, 2, True)


@pytest.mark.parametrize("kwargs", [dict(), dict(n_steps=3), dict(replay_buffer_class=FrameReplayBuffer)])
def test_several_steps_ahead_jointly_and_in_turn(kwargs):
    kind = "picture" if "replay_buffer_class" in kwargs else "vector"
    objective_kwargs = dict(steps_ahead=3, reward_coef=1.0, end_coef=1.0, inverse_coef=1.0)
    common = dict(learning_starts=20, batch_size=8, seed=0, **kwargs)
    joint = DQN("JepaPolicy", TellingEnv(0, kind), policy_kwargs=dict(objective_kwargs=objective_kwargs), **common)
    in_turn = DQN(
        "CnnPolicy" if kind == "picture" else "MlpPolicy",
        TellingEnv(0, kind),
        policy_kwargs=dict(features_extractor_class=type(joint.q_net.features_extractor)),
        **common,
    )
    callbacks = [JepaCallback(), JepaCallback(objective_kwargs=objective_kwargs)]
    for model, callback in zip((joint, in_turn), callbacks, strict=True):
        model.learn(60, callback=callback)
        terms = callback.gauges["q_net"].means() or model.logger.name_to_value
        assert any("prediction_loss_step_3" in name for name in terms)
        assert any("end_loss" in name for name in terms)


def test_windows_with_a_random_shift():
    model = SAC(
        "JepaPolicy",
        ShiftEnv(),
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs=dict(random_shift=4),
        learning_starts=20,
        batch_size=8,
        policy_kwargs=dict(objective_kwargs=dict(steps_ahead=2)),
    ).learn(30)
    _, transitions = sample_transitions(model.replay_buffer, 16, None, 2)
    # Moved pictures: the pixels that tell are elsewhere in most of them
    assert len({tuple(one.flatten().tolist()) for one in transitions.next_observations[:, 0]}) > 20


class ShiftEnv(gym.Env):
    """One picture, always the same."""

    observation_space, action_space = PICTURE, spaces.Box(-1, 1, (1,))

    def _observation(self):
        return np.arange(PICTURE.shape[1] * PICTURE.shape[2]).reshape(PICTURE.shape).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        return self._observation(), 0.0, False, False, {}
