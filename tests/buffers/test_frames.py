"""Buffers that store stacked frames once, held to those of Stable-Baselines3 that store them again and again."""

import pickle
import sys
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer, DictRolloutBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from sb3_jepa import (
    PPO,
    FrameDictReplayBuffer,
    FrameReplayBuffer,
    JepaCallback,
    JepaDictRolloutBuffer,
    JepaExtractor,
    JepaRolloutBuffer,
    MaskablePPO,
    RecurrentPPO,
    noise_diagnostic,
)
from sb3_jepa.buffers.frames import FrameStacks, has_frames
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.inspection.noise_diagnostic import replay_pairs
from tests.conftest import SMALL_POLICY, SMALL_PPO, FakeEnv

N_ENVS = 3
# Of one step, shorter than a stack, and longer
LENGTHS = (1, 2, 9, 3, 12)


class ImageEnv(FakeEnv):
    """Random pictures, no two of them alike, in episodes that end in turn by termination and truncation."""

    def __init__(self, space: spaces.Space, lengths: tuple[int, ...] = LENGTHS):
        super().__init__(space)
        self.lengths, self.episode = lengths, 0

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        over = self.time == self.lengths[self.episode % len(self.lengths)]
        truncates = self.episode % 2 == 1
        return observation, reward, over and not truncates, over and truncates, info


class Shuffled(gym.ObservationWrapper):
    """Channels in another order at every step."""

    def observation(self, observation):
        return observation[self.np_random.permutation(len(observation))]


class Still(gym.ObservationWrapper):
    """The same picture all the time."""

    def observation(self, observation):
        return np.full_like(observation, 7)


class Blinking(gym.ObservationWrapper):
    """Pictures that differ in a single pixel, the last."""

    def observation(self, observation):
        blinking = np.full_like(observation, 7)
        blinking[..., -1, -1] = observation[..., -1, -1]
        return blinking


def picture(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def make_images(space: spaces.Space, wrap=lambda env: env, lengths=LENGTHS):
    return make_vec_env(lambda: wrap(ImageEnv(space, lengths)), n_envs=N_ENVS, seed=0)


def make_stacks(space: spaces.Space, n_stack: int, **kwargs):
    return VecFrameStack(make_images(space, **kwargs), n_stack, channels_order="first")


DICT_SPACE = spaces.Dict(
    image=picture(3, 32, 40), small=picture(3, 8, 8), vector=spaces.Box(-1, 1, (2,)), mode=spaces.Discrete(3)
)
ENVS = {
    "VecFrameStack": lambda: make_stacks(picture(1, 32, 40), 4),
    "RGB": lambda: make_stacks(picture(3, 32, 40), 3),
    "two channels": lambda: make_stacks(picture(2, 32, 40), 3),
    "channels last": lambda: VecTransposeImage(VecFrameStack(make_images(picture(32, 40, 1)), 4)),
    "still": lambda: make_stacks(picture(1, 32, 40), 3, wrap=Still),
    "blinking": lambda: make_stacks(picture(1, 32, 40), 3, wrap=Blinking),
    "shuffled": lambda: make_images(picture(4, 32, 40), Shuffled),
    "single": lambda: make_images(picture(3, 32, 40)),
    "floats": lambda: make_stacks(spaces.Box(-np.inf, np.inf, (1, 32, 40)), 3),
    "VecNormalize": lambda: VecNormalize(make_stacks(picture(1, 32, 40), 3)),
    "Dict": lambda: make_images(DICT_SPACE),
}
# Its oldest version has none
if stack_frames := getattr(gym.wrappers, "FrameStackObservation", None):
    ENVS |= {
        "Gymnasium": lambda: make_images(picture(32, 40, 3), lambda env: stack_frames(env, 3)),
        "Gymnasium, zeros": lambda: make_images(picture(32, 40), lambda env: stack_frames(env, 4, padding_type="zero")),
    }


@pytest.fixture
def plain_arrays(monkeypatch):
    """Within this context the buffers store observations as those of Stable-Baselines3 do."""

    @contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr("sb3_jepa.buffers.frames.MIN_FRAME_BYTES", 10**9)
            yield

    return context


def play(env, n_steps: int):
    """Random actions: observations, actions, rewards, starts, new observations, dones and infos of each step."""
    rng = np.random.default_rng(0)
    observations, starts = env.reset(), np.ones(env.num_envs)
    for _ in range(n_steps):
        actions = rng.integers(0, 2, env.num_envs)
        new_observations, rewards, dones, infos = env.step(actions)
        yield observations, actions, rewards, starts, new_observations, dones, infos
        observations, starts = new_observations, dones.astype(np.float32)


def add_to_rollout(buffer, step) -> None:
    observations, actions, rewards, starts, new_observations, dones, infos = step
    if hasattr(buffer, "record_step"):
        buffer.record_step(new_observations, dones, infos)
    zeros = th.zeros(buffer.n_envs)
    buffer.add(observations, actions, rewards, starts, zeros, zeros)


def add_to_replay(buffer, step) -> None:
    """As ``OffPolicyAlgorithm`` does."""
    observations, actions, rewards, _, new_observations, dones, infos = step
    next_observations = {key: np.array(array) for key, array in by_key(new_observations).items()}
    for env in np.flatnonzero(dones):
        for key, array in by_key(infos[env]["terminal_observation"]).items():
            next_observations[key][env] = array
    buffer.add(observations, as_observations(next_observations), actions, rewards, dones, infos)


def assert_same(one, other) -> None:
    """Of the same shape and dtype, and with the same bits."""
    assert by_key(one).keys() == by_key(other).keys()
    for key, array in by_key(one).items():
        array, expected = np.asarray(array), np.asarray(by_key(other)[key])
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        assert array.tobytes() == expected.tobytes()


def held_bytes(held, seen: set[int] | None = None) -> int:
    """Memory of all the arrays and frames that an object holds, each counted once."""
    seen = set() if seen is None else seen
    if id(held) in seen:
        return 0
    seen.add(id(held))
    if isinstance(held, bytes):
        return sys.getsizeof(held)
    if isinstance(held, np.ndarray):
        if isinstance(held.base, np.ndarray):
            return held_bytes(held.base, seen)
        return held.nbytes + (sum(held_bytes(one, seen) for one in held.flat) if held.dtype == object else 0)
    if isinstance(held, (list, tuple)):
        return sys.getsizeof(held) + sum(held_bytes(one, seen) for one in held)
    if isinstance(held, dict):
        return sum(held_bytes(one, seen) for one in held.values())
    return held_bytes(vars(held), seen) if type(held).__module__.startswith("sb3_jepa") else 0


def is_dict(env) -> bool:
    return isinstance(env.observation_space, spaces.Dict)


@pytest.mark.parametrize("name", ENVS)
def test_rollouts_come_back_bit_by_bit(name, plain_arrays):
    env, n_steps = ENVS[name](), 16
    size = n_steps, env.observation_space, env.action_space, "cpu"
    stock = (DictRolloutBuffer if is_dict(env) else RolloutBuffer)(*size, n_envs=N_ENVS)
    jepa_class = JepaDictRolloutBuffer if is_dict(env) else JepaRolloutBuffer
    shared = jepa_class(*size, n_envs=N_ENVS)
    with plain_arrays():
        plain = jepa_class(*size, n_envs=N_ENVS)
    stored = [type(array) for array in by_key(shared.observations).values()]
    assert stored.count(FrameStacks) == 1
    steps = play(env, 3 * n_steps)
    for rollout in range(3):
        for step, _ in zip(steps, range(n_steps), strict=False):
            for buffer in (stock, shared, plain):
                add_to_rollout(buffer, step)
            if shared.full:
                break
        assert_same(shared.observations, stock.observations)
        for batches in (7, None):
            all_samples = []
            for buffer in (stock, shared, plain):
                np.random.seed(rollout)
                all_samples.append(list(buffer.get(batches)))
            for expected, samples, with_next in zip(*all_samples, strict=True):
                assert_same(samples.observations.observations, expected.observations)
                assert_same(samples.observations.next_observations, with_next.observations.next_observations)
                assert samples.observations.valid.all()
                assert th.equal(samples.actions, expected.actions)
        stock.reset(), shared.reset()
        with plain_arrays():
            plain.reset()
        assert_same(shared.observations, stock.observations)


@pytest.mark.parametrize("name", ENVS)
def test_replay_buffers_give_the_same_samples(name):
    env = ENVS[name]()
    # Ten rows, overwritten more than three times
    size = 10 * N_ENVS, env.observation_space, env.action_space, "cpu"
    stock = (DictReplayBuffer if is_dict(env) else ReplayBuffer)(*size, n_envs=N_ENVS)
    shared = (FrameDictReplayBuffer if is_dict(env) else FrameReplayBuffer)(*size, n_envs=N_ENVS)
    assert shared.observation_space == env.observation_space
    assert shared.obs_shape == stock.obs_shape
    for number, step in enumerate(play(env, 35)):
        add_to_replay(stock, step)
        add_to_replay(shared, step)
        assert (shared.pos, shared.full) == (stock.pos, stock.full)
        if number % 7 == 6:
            samples = []
            for buffer in (stock, shared):
                np.random.seed(number)
                samples.append(buffer.sample(50))
            for one, expected in zip(samples[1][:5], samples[0][:5], strict=True):
                assert_same(one, expected)
            assert_same(shared.observations, stock.observations)
            assert_same(shared.next_observations, stock.next_observations)
    assert stock.timeouts.any()
    assert np.array_equal(shared.timeouts, stock.timeouts)
    for horizon in (1, 3):
        for one, expected in zip(replay_pairs(shared, horizon), replay_pairs(stock, horizon), strict=True):
            assert_same(one, expected)
    if name == "VecFrameStack":
        assert np.array_equal(noise_diagnostic(shared).rho, noise_diagnostic(stock).rho)


def test_samples_are_normalized_as_by_stable_baselines():
    env = VecNormalize(make_stacks(picture(1, 32, 40), 3))
    size = 60, env.venv.observation_space, env.action_space, "cpu"
    stock, shared = ReplayBuffer(*size, n_envs=N_ENVS), FrameReplayBuffer(*size, n_envs=N_ENVS)
    env.reset()
    observations = env.get_original_obs()
    for _, actions, rewards, _, _, dones, infos in play(env, 20):
        for buffer in (stock, shared):
            buffer.add(observations, env.get_original_obs(), actions, rewards, dones, infos)
        observations = env.get_original_obs()
    samples = []
    for buffer in (stock, shared):
        np.random.seed(0)
        samples.append(buffer.sample(30, env=env))
    assert samples[0].observations.dtype == th.float32
    for one, expected in zip(samples[1][:5], samples[0][:5], strict=True):
        assert_same(one, expected)


def test_bits_that_compare_equal_or_never_equal_are_kept():
    stacks = FrameStacks(3, 1, (2, 32, 32), np.float32)
    observations = np.zeros((3, 1, 2, 32, 32), dtype=np.float32)
    observations[1], observations[2] = -0.0, np.nan
    for row, observation in enumerate(observations):
        stacks[row] = observation
    assert_same(stacks, observations)


def test_indices_are_those_of_an_array():
    array = np.random.default_rng(0).integers(0, 255, (6, 4, 3, 32, 32), dtype=np.uint8)
    stacks = FrameStacks(6, 4, (3, 32, 32), np.uint8)
    for row in range(6):
        stacks[row] = array[row]
    rows, envs = np.array([0, 5, 2]), np.array([3, 0, 0])
    is_picked = array[:, :, 0, 0, 0] > 127
    of_rows = (2, -1, rows, slice(1, 4), [], is_picked)
    for key in (*of_rows, (rows, envs), (rows, envs, slice(None)), (slice(None), 1), (3, 2)):
        assert_same(stacks[key], array[key])
    assert_same(stacks.swap_and_flatten(), RolloutBuffer.swap_and_flatten(array))
    assert (len(stacks), stacks.shape) == (6, array.shape)
    # Never a frame for a row
    for key in ((0, 0, 0), (slice(None), slice(None), 0), (is_picked, 0), (..., 0), (None, 0)):
        with pytest.raises(IndexError):
            stacks[key]
    # What comes back may be written to
    stacks[0][:] = 0
    assert_same(stacks, array)


def test_what_is_worth_sharing():
    assert all(map(has_frames, (picture(4, 84, 84), picture(3, 32, 32), picture(8, 84, 84, 3))))
    # Channels last, small, no image
    for space in (picture(84, 84, 4), picture(3, 16, 16), spaces.Box(-1, 1, (4, 5000)), spaces.Discrete(3)):
        assert not has_frames(space)


def test_a_pickled_replay_buffer_goes_on():
    env = make_stacks(picture(1, 32, 32), 4)
    shared = FrameReplayBuffer(20 * N_ENVS, env.observation_space, env.action_space, "cpu", n_envs=N_ENVS)
    steps = list(play(env, 60))
    for step in steps[:50]:
        add_to_replay(shared, step)
    pickled = pickle.dumps(shared)
    assert len(pickled) - len(pickle.dumps(env.observation_space)) <= 1.05 * held_bytes(vars(shared))
    loaded = pickle.loads(pickled)
    assert held_bytes(vars(loaded)) <= 1.01 * held_bytes(vars(shared))
    for step in steps[50:]:
        add_to_replay(shared, step)
        add_to_replay(loaded, step)
    assert_same(loaded.observations, shared.observations)
    assert_same(loaded.next_observations, shared.next_observations)
    assert held_bytes(vars(loaded)) <= 1.01 * held_bytes(vars(shared))


def train(algorithm, env) -> dict[str, th.Tensor]:
    kwargs = dict(use_masking=False) if algorithm is MaskablePPO else {}
    policy_kwargs = dict(SMALL_POLICY, **(dict(lstm_hidden_size=16) if algorithm is RecurrentPPO else {}))
    model = algorithm("JepaPolicy", env, policy_kwargs=policy_kwargs, **SMALL_PPO)
    return model.learn(128, **kwargs).policy.state_dict()


@pytest.mark.parametrize("algorithm", [PPO, MaskablePPO, RecurrentPPO])
def test_on_policy_algorithms_learn_the_same(algorithm, plain_arrays):
    def make_env():
        return make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32)

    assert has_frames(make_env().observation_space)
    shared = train(algorithm, make_env())
    with plain_arrays():
        plain = train(algorithm, make_env())
    assert all(th.equal(plain[name], parameter) for name, parameter in shared.items())


def make_dqn(env, **kwargs) -> DQN:
    policy_kwargs = dict(SMALL_POLICY, features_extractor_class=JepaExtractor)
    kwargs = dict(buffer_size=60, learning_starts=40, batch_size=16, seed=0, device="cpu", **kwargs)
    return DQN("CnnPolicy", env, policy_kwargs=policy_kwargs, **kwargs)


def test_dqn_learns_the_same(tmp_path):
    """With a callback that reads the buffer too, and from a buffer that is overwritten."""
    trained = []
    for replay_buffer_class in (None, FrameReplayBuffer):
        env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32)
        model = make_dqn(env, replay_buffer_class=replay_buffer_class).learn(120, callback=JepaCallback())
        model.save_replay_buffer(tmp_path / "buffer")
        model.load_replay_buffer(tmp_path / "buffer")
        trained.append(model.learn(40, callback=JepaCallback(), reset_num_timesteps=False))
    assert isinstance(trained[1].replay_buffer.observations, FrameStacks)
    parameters = trained[0].policy.state_dict()
    assert all(th.equal(parameters[name], one) for name, one in trained[1].policy.state_dict().items())


def test_errors():
    space = spaces.Dict(image=picture(3, 32, 32))
    with pytest.raises(ValueError, match=r"single array, got Dict.*use FrameDictReplayBuffer"):
        FrameReplayBuffer(4, space, spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"FrameReplayBuffer .* `optimize_memory_usage` must be False, got True"):
        DQN(
            "CnnPolicy",
            make_stacks(picture(1, 40, 40), 4),
            replay_buffer_class=FrameReplayBuffer,
            optimize_memory_usage=True,
        )
    with pytest.raises(ValueError, match=r"FrameDictReplayBuffer takes Dict observations, got Box.*FrameReplayBuffer"):
        FrameDictReplayBuffer(4, picture(3, 32, 32), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"FrameDictReplayBuffer .* must be False"):
        FrameDictReplayBuffer(4, space, spaces.Discrete(2), optimize_memory_usage=True)
