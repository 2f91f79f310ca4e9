import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_jepa import PPO, JepaCallback, JepaPolicy, JepaRolloutBuffer, Transitions
from sb3_jepa.envs.pixels import make_pixel_vec_env
from tests.conftest import EPISODE_LENGTHS, SMALL_POLICY, SMALL_PPO, CountingImageEnv, FakeEnv, make_counting_env

ONE_STEP = np.array([0, 0, 1])


def train_on_one_rollout(model, callback=None, **kwargs) -> Transitions:
    """Train on one rollout, and return all the transitions that the algorithm saw of it."""
    batches: list[Transitions] = []
    get = model.rollout_buffer.get

    def spy(batch_size=None):
        for samples in get(batch_size):
            batches.append(samples.observations)
            yield samples

    model.rollout_buffer.get = spy
    model.n_epochs = 1
    model.learn(1, callback=callback, **kwargs)
    return Transitions(*(concatenate(parts) for parts in zip(*batches, strict=True)))


def concatenate(parts):
    if parts[0] is None:
        return None
    if isinstance(parts[0], dict):
        return {key: th.cat([part[key] for part in parts]) for key in parts[0]}
    return th.cat(parts)


def as_bytes(observation) -> bytes:
    """Of a single observation, whatever its space and type of array."""
    arrays = observation.values() if isinstance(observation, dict) else [observation]
    return b"".join(np.asarray(array).astype(np.float32).tobytes() for array in arrays)


def take(observations, index: int):
    """One of a batch of observations."""
    if isinstance(observations, dict):
        return {key: array[index] for key, array in observations.items()}
    return observations[index]


def origin(observations: th.Tensor) -> np.ndarray:
    """Environment, episode and time of :class:`CountingImageEnv` observations: ``(batch, 3)``."""
    assert (observations == observations[:, :, :1, :1]).all()
    return observations[:, :, 0, 0].numpy().astype(int)


class ChannelsLast(gym.ObservationWrapper):
    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def observation(self, observation):
        return observation.transpose(1, 2, 0)


class RecordSteps(BaseCallback):
    """Pairs of an observation and the one that followed it, as bytes."""

    def __init__(self):
        super().__init__()
        self.pairs, self.n_ends = set(), 0

    def _on_step(self) -> bool:
        for env in range(self.training_env.num_envs):
            over = self.locals["dones"][env]
            self.n_ends += int(over)
            after = self.locals["infos"][env]["terminal_observation"] if over else take(self.locals["new_obs"], env)
            self.pairs.add((as_bytes(take(self.model._last_obs, env)), as_bytes(after)))
        return True


def is_end(origins: np.ndarray) -> np.ndarray:
    """Whether the step from here ends the episode: ``(batch,)``."""
    lengths = [EPISODE_LENGTHS[env][episode % len(EPISODE_LENGTHS[env])] for env, episode, _ in origins]
    return origins[:, 2] == np.array(lengths) - 1


@pytest.mark.parametrize("n_steps", [5, 16, 23])
@pytest.mark.parametrize("batch_size", [7, 1000])
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_every_row_has_the_true_next_observation(n_steps, batch_size):
    kwargs = {**SMALL_PPO, "n_steps": n_steps, "batch_size": batch_size}
    transitions = train_on_one_rollout(PPO(JepaPolicy, make_counting_env(), policy_kwargs=SMALL_POLICY, **kwargs))
    assert (transitions.valid == 1).all()
    here, there = origin(transitions.observations), origin(transitions.next_observations)
    # Same environment, same episode, one step later: no pair crosses an episode, and the last row has its pair too
    assert np.array_equal(there - here, np.broadcast_to(ONE_STEP, here.shape))
    # Every row once
    assert len(np.unique(here, axis=0)) == len(here) == 3 * n_steps
    # There were terminated and truncated ends (even and odd episodes), and one episode that went on
    if n_steps > 5:
        assert set(here[is_end(here), 1] % 2) == {0, 1}
    assert not is_end(here)[here[:, 0] == 2].any()


def test_without_the_callback_unknown_pairs_are_not_valid():
    model = stable_baselines3.PPO(
        JepaPolicy, make_counting_env(), rollout_buffer_class=JepaRolloutBuffer, policy_kwargs=SMALL_POLICY, **SMALL_PPO
    )
    with pytest.warns(UserWarning, match="not standardised"):
        transitions = train_on_one_rollout(model)
    here, there = origin(transitions.observations), origin(transitions.next_observations)
    valid = transitions.valid.numpy().astype(bool)
    assert (there - here == ONE_STEP).all(axis=1)[valid].all()
    is_last_row = np.zeros(len(here), dtype=bool)
    for env in range(3):
        of_env = np.flatnonzero(here[:, 0] == env)
        is_last_row[max(of_env, key=lambda row: tuple(here[row]))] = True
    assert np.array_equal(~valid, is_end(here) | is_last_row)


def test_a_custom_vec_env_without_terminal_observations_masks_the_ends():
    env = make_counting_env()
    buffer = JepaRolloutBuffer(2, env.observation_space, env.action_space, n_envs=1)
    observations = [np.full((1, 3, 16, 16), value, dtype=np.uint8) for value in range(3)]
    for step in range(2):
        buffer.record_step(observations[step + 1], np.array([step == 0]), [{}])
        buffer.add(observations[step], np.zeros((1, 1)), np.zeros(1), np.array([step == 1]), th.zeros(1), th.zeros(1))
    (samples,) = buffer.get()
    transitions = samples.observations
    rows = transitions.observations[:, 0, 0, 0].tolist()
    assert dict(zip(rows, transitions.valid.tolist(), strict=True)) == {0: 0.0, 1: 1.0}


def test_dict_observations_have_a_buffer_of_their_own():
    space = spaces.Dict(image=spaces.Box(0, 255, (3, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"single array, got Dict.*JepaDictRolloutBuffer"):
        JepaRolloutBuffer(4, space, spaces.Discrete(2))


DICT_SPACE = spaces.Dict(
    image=spaces.Box(0, 255, (3, 16, 16), np.uint8), vector=spaces.Box(-1, 1, (2,)), mode=spaces.Discrete(3)
)


@pytest.mark.parametrize(
    "wrap",
    ["VecNormalize", "VecFrameStack", "channels last", "SubprocVecEnv", "Dict", "Dict and VecNormalize", "vector"],
)
def test_next_observations_behind_wrappers(wrap):
    """Against a recording of what the policy was shown: the next time it is shown something, that is what came next."""
    policy_kwargs = dict(SMALL_POLICY, features_extractor_kwargs=dict(embed_dim=16, num_heads=2, standardize_frames=0))
    if wrap == "VecNormalize":
        policy_kwargs["normalize_images"] = False
        env = VecNormalize(make_counting_env())
    elif wrap == "VecFrameStack":
        policy_kwargs["features_extractor_kwargs"]["frames"] = 6
        env = VecFrameStack(make_counting_env(), 2, channels_order="first")
    elif wrap == "channels last":
        env = make_vec_env(lambda: ChannelsLast(CountingImageEnv(0, (4, 3))), n_envs=3, seed=0)
    elif wrap == "vector":
        env = make_vec_env("CartPole-v1", n_envs=3, seed=0)
    elif wrap.startswith("Dict"):
        env = make_vec_env(lambda: FakeEnv(DICT_SPACE), n_envs=3, seed=0)
        if wrap != "Dict":
            env = VecNormalize(env, norm_obs_keys=["vector"])
    else:
        env = make_pixel_vec_env("CartPole-v1", n_envs=3, seed=0, frame_size=16, vec_env_cls=SubprocVecEnv)
    model = PPO(JepaPolicy, env, policy_kwargs=policy_kwargs, **SMALL_PPO)
    recorder = RecordSteps()
    transitions = train_on_one_rollout(model, callback=recorder)
    assert (transitions.valid == 1).all()
    found = {
        (as_bytes(take(transitions.observations, row)), as_bytes(take(transitions.next_observations, row)))
        for row in range(len(transitions.valid))
    }
    assert found == recorder.pairs
    assert recorder.n_ends > 0
    env.close()


def test_the_callback_serves_stock_ppo():
    model = stable_baselines3.PPO(
        JepaPolicy, make_counting_env(), rollout_buffer_class=JepaRolloutBuffer, policy_kwargs=SMALL_POLICY, **SMALL_PPO
    )
    transitions = train_on_one_rollout(model, callback=JepaCallback())
    assert (transitions.valid == 1).all()
    difference = origin(transitions.next_observations) - origin(transitions.observations)
    assert (difference == ONE_STEP).all()
