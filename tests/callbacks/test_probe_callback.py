import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_jepa import (
    A2C,
    PPO,
    JepaCallback,
    ProbeCallback,
    RecurrentPPO,
)
from tests.algorithms.test_matrix import OBSERVATIONS
from tests.callbacks.test_picture_callback import make_off_policy, read_events
from tests.conftest import (
    EPISODE_LENGTHS,
    SMALL_EXTRACTOR,
    SMALL_POLICY,
    SMALL_PPO,
    CountingImageEnv,
    FakeEnv,
    make_counting_env,
)


class TellsOrigin(gym.Wrapper):
    """The infos of a counting environment say what its observation shows."""

    def step(self, action):
        *result, info = self.env.step(action)
        env = self.env
        return *result, dict(info, origin=(env.number, env.episode, env.time))


class InDict(gym.ObservationWrapper):
    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Dict(camera=env.observation_space, speed=spaces.Box(-1, 1, (2,)))

    def observation(self, observation):
        return dict(camera=observation, speed=np.zeros(2, np.float32))


def make_telling_env(is_dict: bool = False, vec_env_cls=DummyVecEnv):
    numbers = iter(range(3))

    def make():
        number = next(numbers)
        env = TellsOrigin(CountingImageEnv(number, EPISODE_LENGTHS[number]))
        return InDict(env) if is_dict else env

    return make_vec_env(make, n_envs=3, seed=0, vec_env_cls=vec_env_cls)


def read_origin(env) -> np.ndarray:
    return np.stack([env.get_attr(name) for name in ("number", "episode", "time")], axis=1)


def shown_by(samples) -> np.ndarray:
    """What the observations of a probe's samples show: ``(samples, 3)``."""
    images = [observation.get("camera", observation.get("")) for observation, *_ in samples]
    return np.stack(images)[:, :, 0, 0].astype(int)


@pytest.mark.parametrize("is_dict", [True, False])
@pytest.mark.parametrize(
    "source", [dict(function=read_origin), dict(info_key="origin")], ids=lambda one: next(iter(one))
)
def test_what_is_read_belongs_to_what_is_seen(source, is_dict):
    model = PPO("JepaPolicy", make_telling_env(is_dict), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(every_n_steps=1, **source)
    model.learn(2 * 48, callback=probe)
    samples = list(probe._samples)
    assert len(samples) == 2 * 48
    shown = shown_by(samples)
    values = np.stack([value for _, value, _ in samples])
    assert np.array_equal(values, shown)
    # Infos tell of the end of an episode, and all else of the beginning of the next one
    last = {
        (number, episode): max(shown[(shown[:, :2] == (number, episode)).all(axis=1), 2])
        for number, episode, _ in shown
    }
    is_whole = [last[0, episode] == EPISODE_LENGTHS[0][episode % 3] for episode in range(5)]
    assert is_whole == [next(iter(source)) == "info_key"] * 5
    assert (shown[:, 2].min() == 0) == (next(iter(source)) == "function")
    # A number for each episode
    numbers = [episode for *_, episode in samples]
    pairs = {(number, *origin) for number, origin in zip(numbers, map(tuple, shown[:, :2]), strict=True)}
    assert len(pairs) == len(set(numbers)) == len({pair[1:] for pair in pairs})


def test_attributes_are_read_in_the_same_way():
    model = PPO("JepaPolicy", make_telling_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(attribute="time", every_n_steps=3)
    model.learn(48, callback=probe)
    # Of 16 steps, every third one
    assert len(probe._samples) == 5 * 3
    values = np.stack([value for _, value, _ in probe._samples])
    assert np.array_equal(values, shown_by(probe._samples)[:, 2:])


def test_only_the_latest_samples_are_kept():
    model = PPO("JepaPolicy", make_telling_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(attribute="time", every_n_steps=1, n_samples=30)
    model.learn(48, callback=probe)
    assert len(probe._samples) == 30
    # Of the episode that began with the training
    assert [value[0] for _, value, _ in probe._samples][2::3] == list(range(7, 17))


def test_an_episode_goes_on_in_a_training_that_goes_on():
    model = PPO("JepaPolicy", make_telling_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(function=read_origin, every_n_steps=1)
    model.learn(48, callback=probe)
    model.learn(48, callback=probe, reset_num_timesteps=False)

    def episodes() -> dict[tuple[int, int], set[int]]:
        found: dict[tuple[int, int], set[int]] = {}
        for _, (number, episode, _), own_number in probe._samples:
            found.setdefault((number, episode), set()).add(own_number)
        return found

    assert all(len(numbers) == 1 for numbers in episodes().values())
    # One that begins anew resets the environments
    model.learn(48, callback=probe)
    assert all(len(numbers) == 1 for numbers in episodes().values())
    assert len(set.union(*episodes().values())) == len(episodes())


def test_no_episode_is_on_both_sides(monkeypatch):
    calls = []

    def spy(inputs, targets, is_held_out, *args):
        calls.append((targets, is_held_out))
        return np.zeros(targets.shape[1])

    monkeypatch.setattr("sb3_jepa.diagnostics.probes.probe_r2", spy)
    model = PPO("JepaPolicy", make_telling_env(), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(function=read_origin, every_n_steps=1, every_n_rollouts=3, held_out=0.5)
    model.learn(3 * 48, callback=probe)
    assert len(calls) >= 1
    for targets, is_held_out in calls:
        held_out, fitted = ({tuple(row) for row in targets[side, :2]} for side in (is_held_out, ~is_held_out))
        assert not held_out & fitted
        assert len(held_out) == pytest.approx(len(fitted), abs=1)


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_what_the_observation_shows_plainly_can_be_read(vec_env_cls, tmp_path, request):
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0, vec_env_cls=vec_env_cls)
    # Also if a check fails: processes that are left over would keep this one from ending
    request.addfinalizer(env.close)
    names = ["x", "x_dot", "theta", "theta_dot"]
    extractor_kwargs = dict(SMALL_EXTRACTOR, embed_dim=32, standardize_frames=128)
    model = PPO(
        "JepaPolicy",
        env,
        policy_kwargs=dict(SMALL_POLICY, features_extractor_kwargs=extractor_kwargs),
        tensorboard_log=str(tmp_path),
        **{**SMALL_PPO, "n_steps": 64},
    )
    # The names are Gymnasium's
    probe = ProbeCallback(attribute="state", every_n_rollouts=3, every_n_steps=1)
    model.learn(3 * 256, callback=probe)
    r2 = probe.measure()
    assert list(r2) == names
    assert min(r2.values()) > 0.7
    events = read_events(tmp_path / "PPO_1")
    for name in names:
        values = events.Scalars(f"jepa_probe/{name}")
        assert values[-1].step == 3 * 256
        assert values[-1].value > 0.7


def test_noise_cannot_be_read_and_constants_are_left_out():
    rng = np.random.default_rng(0)
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)

    def read(env) -> np.ndarray:
        return np.stack((rng.normal(size=4), np.full(4, 1 / 3), [state[2] for state in env.get_attr("state")]), axis=1)

    probe = ProbeCallback(function=read, every_n_steps=1)
    model.learn(640, callback=probe)
    r2 = probe.measure()
    assert list(r2) == ["0", "2"]
    assert r2["0"] < 0.1 < r2["2"]


def test_names_of_what_is_left_out_do_not_move():
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(
        function=lambda env: [[0.0, state[2]] for state in env.get_attr("state")], names=["zero", "theta"]
    )
    model.learn(640, callback=probe)
    assert list(probe.measure()) == ["theta"]


def test_a_few_episodes_say_nothing():
    env = make_counting_env(((60,), (60,), (60,)))
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(attribute="time", every_n_rollouts=1)
    assert probe.measure() == {}
    model.learn(48, callback=probe)
    assert len(probe._samples) > 10
    assert probe.measure() == {}


@pytest.mark.parametrize("held_out", [0.01, 0.99])
def test_there_are_always_episodes_on_both_sides(held_out):
    model = PPO("JepaPolicy", make_counting_env(((4,), (4,))), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(attribute="time", held_out=held_out, every_n_steps=1)
    model.learn(32, callback=probe)
    assert list(probe.measure()) == ["0"]


@pytest.mark.parametrize("algorithm", ["A2C", "RecurrentPPO", "DQN"])
def test_probes_of_other_algorithms(algorithm):
    if algorithm == "DQN":
        model = make_off_policy(n_envs=2)
        callback = [JepaCallback()]
    else:
        env = make_vec_env(lambda: FakeEnv(OBSERVATIONS["vector"]), n_envs=2, seed=0)
        kwargs = dict(batch_size=16) if algorithm == "RecurrentPPO" else {}
        algorithm_class = dict(A2C=A2C, RecurrentPPO=RecurrentPPO)[algorithm]
        model = algorithm_class("JepaPolicy", env, n_steps=16, policy_kwargs=dict(SMALL_POLICY), **kwargs)
        callback = []
    probe = ProbeCallback(attribute="time", names=["time"], every_n_steps=1)
    model.learn(120, callback=[*callback, probe])
    # The observations are random, and know of no time
    assert probe.measure()["time"] < 0.3


def test_normalised_observations_are_probed_as_the_policy_gets_them():
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0), clip_obs=0.5)
    model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    probe = ProbeCallback(attribute="state", every_n_steps=1)
    model.learn(64, callback=probe)
    assert max(np.abs(observation[""]).max() for observation, *_ in probe._samples) == 0.5


@pytest.mark.parametrize("given", [{}, dict(attribute="state", info_key="state"), dict(attribute="a", function=len)])
def test_exactly_one_source(given):
    names = r"\[" + ", ".join(f"'{name}'" for name in given) + r"\]" if given else "none"
    with pytest.raises(ValueError, match=f"Exactly one of .* got {names}"):
        ProbeCallback(**given)


@pytest.mark.parametrize(
    "kwargs", [dict(every_n_steps=0), dict(n_samples=-1), dict(held_out=0.0), dict(held_out=1.0), dict(held_out=2.0)]
)
def test_arguments_of_probes(kwargs):
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}` must"):
        ProbeCallback("state", **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(info_key="speed"), r"`info_key='speed'` is not among the infos: \[.*'TimeLimit.truncated'"),
        (dict(attribute="speed"), r"`attribute='speed'`"),
        (dict(attribute="state", names=["x", "y"]), r"`attribute='state'` must give .*\['x', 'y'\].*got 4 numbers"),
        (dict(attribute="spec"), r"`attribute='spec'` must give numbers, for each of 2 environments, got \[EnvSpec"),
        (dict(function=lambda env: np.zeros((3, 4))), r"`function` must give .*2 environments, got the shape \(3, 4\)"),
        (dict(function=lambda env: None), r"`function` must give numbers.*got"),
    ],
)
def test_what_is_not_there_is_told(kwargs, message):
    model = PPO("JepaPolicy", make_vec_env("CartPole-v1", n_envs=2), policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    with pytest.raises(ValueError, match=message):
        model.learn(64, callback=ProbeCallback(**kwargs))


def test_an_attribute_that_is_not_there_is_told_by_other_processes_too():
    env = make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    try:
        model = PPO("JepaPolicy", env, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
        with pytest.raises(ValueError, match="`attribute='speed'`"):
            model.learn(64, callback=ProbeCallback(attribute="speed"))
        # They are still there
        assert env.reset().shape == (2, 4)
    finally:
        env.close()
