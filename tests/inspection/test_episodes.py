import itertools
import weakref

import numpy as np
import pytest
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_jepa
from sb3_jepa import PPO, RecurrentPPO
from sb3_jepa.common.observations import concatenate
from sb3_jepa.inspection.episodes import Episode, EpisodeRecorder, executed_actions, frames_of, image_key, play_episodes
from tests.algorithms.test_matrix import OBSERVATIONS
from tests.conftest import EPISODE_LENGTHS, SMALL_POLICY, SMALL_PPO, FakeEnv, make_counting_env

IMAGE = spaces.Box(0, 255, (3, 16, 24), np.uint8)


def record(recorder: EpisodeRecorder, env, n_steps: int) -> None:
    """Random steps of the environments; the actions say which step it was."""
    env.action_space.seed(0)
    observations = env.reset()
    for step in range(n_steps):
        actions = np.full((env.num_envs,), step % 2)
        new_observations, rewards, dones, infos = env.step(actions)
        recorder.record_step(observations, actions, rewards, new_observations, dones, infos)
        observations = new_observations


def check_is_one_episode(episode: Episode, first_time: int = 0) -> tuple[int, int]:
    """The number of the environment and that of the episode."""
    numbers, episodes, times = episode.observations[:, :, 0, 0].T
    assert len(set(numbers)) == len(set(episodes)) == 1
    assert times.tolist() == list(range(first_time, first_time + len(times)))
    assert len(episode.actions) == len(episode.rewards) == len(times) - 1
    return int(numbers[0]), int(episodes[0])


def test_episodes_are_whole_and_never_mixed():
    recorder = EpisodeRecorder(n_envs=3, max_steps=500, max_total_steps=500)
    record(recorder, make_counting_env(), 40)
    episodes = recorder.latest()
    found = {check_is_one_episode(episode): len(episode.actions) for episode in episodes}
    # The last observation is the terminal one, whether by termination or truncation; the third one has not ended
    assert len(found) == len(episodes)
    assert {env for env, _ in found} == {0, 1}
    for (env, episode), length in found.items():
        assert length == EPISODE_LENGTHS[env][episode % 3]
    # 40 steps of 3 + 5 + 4, and of 7 + 2 + 6
    assert [episode for env, episode in found if env == 0] == list(range(10))
    assert [episode for env, episode in found if env == 1] == list(range(8))


def test_actions_and_rewards_belong_to_their_step():
    recorder = EpisodeRecorder(n_envs=1)
    env = make_counting_env(((3, 4),))
    record(recorder, env, 7)
    assert [episode.actions.tolist() for episode in recorder.latest()] == [[0, 1, 0], [1, 0, 1, 0]]
    assert [episode.rewards.tolist() for episode in recorder.latest()] == [[1.0] * 3, [1.0] * 4]


@pytest.mark.parametrize(
    ("lengths", "n_steps", "limits", "expected"),
    [
        # Only the first environment is recorded
        (EPISODE_LENGTHS, 20, {}, [(0, 0, 3), (1, 0, 5), (2, 0, 4), (3, 0, 3), (4, 0, 5)]),
        # A long episode is cut in pieces: one begins where the other ends
        (((20, 5),), 25, dict(max_steps=8), [(0, 0, 8), (0, 8, 8), (0, 16, 4), (1, 0, 5)]),
        # A piece that ends with its episode is not followed by an empty one
        (((5, 5),), 10, dict(max_steps=5), [(0, 0, 5), (1, 0, 5)]),
        # The oldest are dropped when the others are enough: two would be 8 steps, four are more than it takes
        (((4,),), 24, dict(max_total_steps=10), [(3, 0, 4), (4, 0, 4), (5, 0, 4)]),
    ],
)
def test_limits_of_what_is_kept(lengths, n_steps, limits, expected):
    """Episodes by their number, first time and number of steps."""
    recorder = EpisodeRecorder(n_envs=1, **limits)
    record(recorder, make_counting_env(lengths), n_steps)
    episodes = recorder.latest()
    assert [len(episode.actions) for episode in episodes] == [n_steps for _, _, n_steps in expected]
    for episode, (number, first_time, _) in zip(episodes, expected, strict=True):
        assert check_is_one_episode(episode, first_time) == (0, number)


def test_what_is_under_way_is_given_while_nothing_has_ended():
    recorder = EpisodeRecorder(n_envs=1)
    assert recorder.latest() == []
    record(recorder, make_counting_env(((9, 4),)), 6)
    (unfinished,) = recorder.latest()
    assert len(unfinished.actions) == 6
    assert check_is_one_episode(unfinished) == (0, 0)
    # It goes on from there
    recorder = EpisodeRecorder(n_envs=1)
    record(recorder, make_counting_env(((9, 4),)), 11)
    (ended,) = recorder.latest()
    assert len(ended.actions) == 9
    # ... and beside those that have ended if asked for
    assert [len(episode.actions) for episode in recorder.latest(with_unfinished=True)] == [9, 2]


def test_observations_of_other_environments_are_not_kept():
    recorder = EpisodeRecorder(n_envs=1)
    references = []
    observations = np.zeros((4, 3), np.float32)
    for _ in range(3):
        references.append(weakref.ref(observations))
        new_observations = np.zeros((4, 3), np.float32)
        recorder.record_step(
            observations, np.zeros(4), np.zeros(4), new_observations, np.zeros(4, dtype=bool), [{}] * 4
        )
        observations = new_observations
    assert [reference() is None for reference in references] == [True, True, True]


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_observation_space_is_recorded(observation):
    space = OBSERVATIONS[observation]
    recorder = EpisodeRecorder(n_envs=2)
    record(recorder, make_vec_env(lambda: FakeEnv(space), n_envs=2, seed=0), 12)
    episodes = recorder.latest()
    assert [len(episode.actions) for episode in episodes] == [5] * 4
    batch = concatenate([episode.observations for episode in episodes])
    if not isinstance(space, spaces.Dict):
        batch, space = {"": batch}, {"": space}
    assert set(batch) == set(space)
    for key, array in batch.items():
        assert array.shape == (4 * 6, *space[key].shape)
        assert array.dtype == space[key].dtype
        # They differ: no observation was taken twice
        assert len(np.unique(array.reshape(len(array), -1), axis=0)) > 2


class TellsItsAction(FakeEnv):
    def step(self, action):
        *result, _ = super().step(action)
        return *result, dict(action=action)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "RecurrentPPO", "MaskablePPO", "SAC", "DQN"])
def test_executed_actions_are_what_the_environment_got(algorithm):
    action_space = spaces.Box(-0.1, 0.1, (2,)) if algorithm not in ("DQN", "MaskablePPO") else spaces.Discrete(3)
    env = make_vec_env(lambda: TellsItsAction(OBSERVATIONS["vector"], action_space), n_envs=2, seed=0)
    if algorithm in ("SAC", "DQN"):
        model = getattr(stable_baselines3, algorithm)("MlpPolicy", env, learning_starts=5, buffer_size=100)
    else:
        kwargs = {} if algorithm == "A2C" else dict(batch_size=16)
        model = getattr(sb3_jepa, algorithm)(
            "JepaPolicy", env, n_steps=16, policy_kwargs=dict(SMALL_POLICY), seed=0, **kwargs
        )
    found, executed = [], []

    def keep(step_locals, _):
        found.append(executed_actions(step_locals))
        executed.append([info["action"] for info in step_locals["infos"]])
        return True

    model.learn(48, callback=keep)
    assert len(found) >= 24
    assert np.array_equal(found, executed)


def test_a_model_plays():
    model = PPO("JepaPolicy", make_counting_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    episodes = play_episodes(model, make_counting_env(), 40)
    # 14 steps in each of the three
    assert sum(len(episode.actions) for episode in episodes) == 42
    starts = {check_is_one_episode(episode) for episode in episodes}
    assert len(starts) == len(episodes) == 4 + 3 + 1
    # A single environment plays on for as long
    env = make_counting_env(((3, 4),))
    episodes = play_episodes(model, env, 12)
    assert [len(episode.actions) for episode in episodes] == [3, 4, 3, 2]


def test_a_recurrent_model_plays_with_its_memory():
    model = RecurrentPPO("JepaPolicy", make_counting_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    states = []
    predict = model.predict

    def spy(observations, state, starts):
        actions, new_state = predict(observations, state, starts)
        states.append((state, starts.copy(), new_state))
        return actions, new_state

    model.predict = spy
    play_episodes(model, make_counting_env(), 30)
    assert states[0][0] is None
    assert states[0][1].all()
    for (_, _, after), (before, starts, _) in itertools.pairwise(states):
        assert before is after
        assert not starts.all()
    # The first environment's first episode has three steps
    assert states[3][1].tolist() == [True, False, False]


def test_normalised_observations_are_recorded_as_the_policy_gets_them():
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0), clip_obs=0.5)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    episodes = play_episodes(model, env, 100)
    observations = concatenate([episode.observations for episode in episodes])
    # The last ones of episodes too
    assert np.abs(observations).max() == 0.5


@pytest.mark.parametrize(
    ("space", "key"),
    [
        (IMAGE, ""),
        # With channels last, as a stack of Gymnasium's
        (spaces.Box(0, 255, (2, 16, 24, 3), np.uint8), ""),
        (spaces.Box(0.0, 1.0, (3, 16, 24)), ""),
        (spaces.Box(-1, 1, (3,)), None),
        (spaces.Box(-1, 1, (2, 3)), None),
        # Of four dimensions, and no picture
        (spaces.Box(0, 1, (2, 3, 4, 1), np.uint8), None),
        (spaces.Box(-1, 1, (2, 3, 4, 1)), None),
        # Grey, and a grid
        (spaces.Box(0, 255, (40, 40), np.uint8), ""),
        (spaces.Box(-1, 1, (5, 11, 11)), None),
        (spaces.Discrete(3), None),
        (spaces.MultiBinary(3), None),
        (spaces.Dict(a=spaces.Box(-1, 1, (3,)), b=IMAGE, c=IMAGE), "b"),
        (spaces.Dict(a=spaces.Box(-1, 1, (3,)), b=spaces.Discrete(2)), None),
        (spaces.Dict(camera=spaces.Box(0, 255, (2, 3, 64, 64), np.uint8), state=spaces.Box(-1, 1, (3,))), "camera"),
    ],
    ids=str,
)
def test_image_key(space, key):
    assert image_key(space) == key


@pytest.mark.parametrize(
    ("n_frames", "n_channels", "given", "shown"),
    [
        (4, 1, None, (4,)),
        (1, 1, None, (1,)),
        (3, 1, None, (3,)),
        (2, 3, None, (2, 3)),
        (3, 3, None, (3, 3)),
        # A single picture in colour has to be told from three in grey
        (1, 3, 1, (1, 3)),
        (6, 1, 6, (6,)),
        # Two channels are no colours
        (2, 2, 2, (2,)),
    ],
)
def test_frames_of_a_stack_in_the_channels(n_frames, n_channels, given, shown):
    images = np.random.default_rng(0).integers(0, 256, (2, n_frames * n_channels, 16, 24), dtype=np.uint8)
    frames = frames_of(images, given)
    assert frames.shape == (2, shown[0], 16, 24, *shown[1:])
    assert frames.dtype == np.uint8
    for frame, channels in enumerate(np.split(images, n_frames, axis=1)):
        expected = np.moveaxis(channels, 1, -1) if n_channels == 3 else channels[:, 0]
        assert np.array_equal(frames[:, frame], expected)


def test_frames_of_a_grey_picture_without_channels():
    assert frames_of(np.zeros((2, 16, 24), dtype=np.uint8)).shape == (2, 1, 16, 24)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_frames_of_a_stack_of_gymnasium(n_channels):
    # As Gymnasium's FrameStackObservation has it, which its oldest version lacks
    space = spaces.Box(0, 255, (4, 16, 24, n_channels), np.uint8)
    observation = space.sample()
    assert image_key(space) == ""
    frames = frames_of(observation[None])
    assert frames.shape == (1, 4, 16, 24, 3)[: 4 + (n_channels == 3)]
    assert np.array_equal(frames[0, -1], observation[-1] if n_channels == 3 else observation[-1, ..., 0])
