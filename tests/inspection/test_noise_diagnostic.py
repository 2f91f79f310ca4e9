"""The noise diagnostic, by hand and of buffers that algorithms have filled."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa.diagnostics.feature_noise import feature_noise, jepa_learning_times, principal_components
from sb3_jepa.inspection.noise_diagnostic import noise_diagnostic, replay_pairs
from tests.conftest import FakeEnv, make_counting_env


class SourcesEnv(gym.Env):
    """A clean, slow source and a noisy, fast one with more covariance (rho 0.92 and 0.43)."""

    GAMMA, DEVIATION, NOISE = np.array([0.96, 0.5]), np.array([1.0, 2.0]), np.array([0.2, 0.8])

    def __init__(self, as_dict: bool = False):
        space = spaces.Box(-np.inf, np.inf, (1,))
        self.as_dict = as_dict
        self.observation_space = spaces.Dict(clean=space, noisy=space) if as_dict else spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def observe(self):
        x = (self.sources + self.NOISE * self.np_random.standard_normal(2)).astype(np.float32)
        return dict(clean=x[:1], noisy=x[1:]) if self.as_dict else x

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sources, self.time = self.DEVIATION * self.np_random.standard_normal(2), 0
        return self.observe(), {}

    def step(self, action):
        shocks = np.sqrt(1.0 - self.GAMMA**2) * self.DEVIATION * self.np_random.standard_normal(2)
        self.sources, self.time = self.GAMMA * self.sources + shocks, self.time + 1
        return self.observe(), 0.0, False, self.time == 50, {}


def test_by_hand():
    # Two orthogonal features of deviation 1 and 2 around their means, of which a half and a quarter remain
    x = np.array([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
    y = x * [0.5, 0.25]
    noise = feature_noise(x + 7.0, y - 3.0, names=["first", "second"])
    np.testing.assert_allclose(noise.sigma2, [1.0, 4.0])
    np.testing.assert_allclose(noise.lambda_, [0.5, 1.0])
    np.testing.assert_allclose(noise.rho, [0.5, 0.25])
    assert noise.reconstruction_order.tolist() == [1, 0]
    assert noise.jepa_order.tolist() == [0, 1]
    assert noise.noise_scores.tolist() == [0.0, 1.0]
    assert noise.distractors == ("second",)
    assert noise.off_diagonal == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(noise.eigenvalues, [0.5, 0.25])
    # No noise was added
    np.testing.assert_allclose(noise.canonical_correlations, [1.0, 1.0])
    assert noise.n_samples == 4
    # A deep JEPA minds how predictable a feature is, and a shallow one does not
    assert feature_noise(x, y, depth=1).distractors == ()


def test_learning_times_by_hand():
    times = jepa_learning_times([2.0, 1.0, -1.0, 0.0], [1.0, 0.5, -0.5, 0.0], depth=1, scale=0.1)
    np.testing.assert_allclose(times, [5.0, 10.0, np.inf, np.inf])
    # For two layers: 1 / (rho^2 e^(1/2)) + 1 / (2 rho e) + 1 / (3 e^(3/2))
    expected = 4.0 / 0.1 + 1.0 / 0.01 + 1.0 / (3.0 * 0.001)
    assert jepa_learning_times([1.0], [0.5], depth=2, scale=0.01) == pytest.approx(expected)


def test_units_matter_to_reconstruction_but_not_to_predictability():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 2))
    y = 0.9 * x
    metres, millimetres = feature_noise(x, y), feature_noise(x * [1.0, 1000.0], y * [1.0, 1000.0])
    np.testing.assert_allclose(metres.rho, millimetres.rho)
    assert millimetres.reconstruction_order[0] == 1
    # Reconstruction learns it first, but it is no harder to predict
    assert millimetres.distractors == ()


def test_dependent_features():
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((20_000, 2))
    later = sources * [0.9, 0.3] + rng.standard_normal(sources.shape) * np.sqrt(1.0 - np.array([0.9, 0.3]) ** 2)
    mixing = np.array([[1.0, 1.0], [1.0, -0.5]])
    noise = feature_noise(sources @ mixing, later @ mixing)
    assert noise.off_diagonal > 0.1
    # Mixed or not, two numbers say how predictable these sources are
    np.testing.assert_allclose(noise.eigenvalues, [0.9, 0.3], atol=0.02)
    np.testing.assert_allclose(noise.canonical_correlations, [0.9, 0.3], atol=0.02)
    assert "depend on each other" in str(noise)
    # A quarter turn is predictable to the last, but not feature by feature
    turned = feature_noise(sources, np.stack([-sources[:, 1], sources[:, 0]], axis=1))
    np.testing.assert_allclose(turned.eigenvalues, [0.0, 0.0], atol=0.02)
    np.testing.assert_allclose(turned.canonical_correlations, [1.0, 1.0])


def test_constant_and_repeated_features():
    rng = np.random.default_rng(0)
    source = rng.standard_normal(100)
    x = np.stack([np.full(100, 0.1), source, source], axis=1)
    noise = feature_noise(x, 0.5 * x)
    np.testing.assert_allclose(noise.rho, [0.0, 0.5, 0.5])
    assert noise.sigma2[0] == 0.0
    assert noise.jepa_order[-1] == 0
    assert noise.distractors == ()
    # Two features, but one direction
    np.testing.assert_allclose(noise.eigenvalues, [0.5])
    constant = feature_noise(np.ones((5, 2)), np.ones((5, 2)))
    assert constant.rho.tolist() == [0.0, 0.0]
    assert constant.distractors == ()
    assert "nothing" in str(constant)


def test_table_has_a_line_for_each_feature():
    rng = np.random.default_rng(0)
    x = th.as_tensor(rng.standard_normal((50, 3)), dtype=th.float32).requires_grad_()
    lines = str(feature_noise(x, x, names=["speed", "angle", "a rather long name"])).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["speed", "angle", "a rather long name"]
    assert len({len(line) for line in lines[:4]}) == 1


def test_images_are_seen_through_principal_components():
    rng = np.random.default_rng(0)
    patterns = np.linalg.qr(rng.standard_normal((100, 2)))[0].T
    strengths = rng.standard_normal((500, 2)) * [5.0, 2.0]
    images = (strengths @ patterns).reshape(500, 10, 10)
    later = (strengths * [0.2, 0.9] @ patterns).reshape(500, 10, 10)
    random_state = th.random.get_rng_state()
    noise = feature_noise(images, later)
    assert th.equal(th.random.get_rng_state(), random_state)
    # There are no more than two directions
    assert noise.names == ("x.component[0]", "x.component[1]")
    np.testing.assert_allclose(noise.rho, [0.2, 0.9], atol=0.02)
    np.testing.assert_allclose(noise.sigma2, [25.0, 4.0], rtol=0.2)
    assert noise.distractors == ("x.component[0]",)
    assert len(feature_noise(images, later, components=1).names) == 1
    assert len(feature_noise(images, later, components=None).names) == 100
    assert len(feature_noise(images, later, names=[str(i) for i in range(100)]).names) == 100
    # As many whole-numbered ones that never change have none
    assert feature_noise(np.full((5, 100), 3), np.full((5, 100), 3)).sigma2.tolist() == [0.0]


def test_principal_components_are_exact():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 80)) * np.linspace(3.0, 0.1, 80)
    scores, same_scores = principal_components(x, x, 5)
    np.testing.assert_allclose(scores, same_scores)
    expected = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1][:5]
    np.testing.assert_allclose(scores.var(axis=0), expected, rtol=0.01)


X = np.random.default_rng(0).standard_normal((10, 3))


@pytest.mark.parametrize(
    ("arguments", "kwargs", "message"),
    [
        ((X, X[1:]), {}, r"one shape \(samples, features\), got \(10, 3\) and \(9, 3\)"),
        ((X[:1], X[:1]), {}, r"observations .* at least 2 samples, got \(1, 3\)"),
        ((X, X), dict(names=["a", "b"]), r"`names` must be a list of 3 names.* got \['a', 'b'\]"),
        ((X, np.where(X > 1.0, np.nan, X)), {}, "next_observations must be finite, got NaN"),
        ((X, X), dict(depth=1001), "`depth` must be a whole number from 1 to 1000, got 1001"),
    ],
)
def test_features_that_do_not_fit_are_refused(arguments, kwargs, message):
    with pytest.raises(ValueError, match=message):
        feature_noise(*arguments, **kwargs)


def test_the_scale_of_learning_times_is_below_one():
    with pytest.raises(ValueError, match="`scale` must be a finite number above 0 and below 1, got 1"):
        jepa_learning_times(X[0], X[0], scale=1.0)


def filled_dqn(
    optimize_memory_usage: bool, n_steps: int = 120, buffer_size: int = 300, lengths=((3, 5, 4), (7, 2, 60))
):
    """A real DQN that has seen observations which say where they come from, without learning from them."""
    kwargs = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    return DQN(
        "MlpPolicy",
        make_counting_env(lengths),
        buffer_size=buffer_size,
        learning_starts=10_000,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[4]),
        **(kwargs if optimize_memory_usage else {}),
    ).learn(n_steps)


@pytest.mark.parametrize("horizon", [1, 2, 4])
@pytest.mark.parametrize("buffer_size", [300, 60])
@pytest.mark.parametrize("optimize_memory_usage", [False, True])
def test_pairs_are_of_one_episode(optimize_memory_usage, buffer_size, horizon):
    model = filled_dqn(optimize_memory_usage, buffer_size=buffer_size)
    assert model.replay_buffer.full == (buffer_size == 60)
    x, y = (view[:, :, 0, 0].astype(int) for view in replay_pairs(model.replay_buffer, horizon))
    # Environment, episode, time
    assert (y - x == [0, 0, horizon]).all()
    assert set(x[:, 0]) == {0, 1}
    # None is left out, but for those whose end the buffer forgot
    n_steps = min(60, buffer_size // 2)
    if not optimize_memory_usage and horizon == 1:
        assert len(x) == 2 * n_steps
    assert len(np.unique(x, axis=0)) == len(x) > n_steps / 3
    some, _ = replay_pairs(model.replay_buffer, horizon, max_samples=7)
    assert len(some) == 7


@pytest.mark.filterwarnings("ignore:The last trajectory in the replay buffer will be truncated")
@pytest.mark.parametrize("optimize_memory_usage", [False, True])
def test_pairs_do_not_cross_calls_of_learn(optimize_memory_usage):
    model = filled_dqn(optimize_memory_usage, n_steps=24, lengths=((50,), (50,)))
    model.learn(24)
    x, y = (view[:, :, 0, 0].astype(int) for view in replay_pairs(model.replay_buffer, 3))
    assert (y - x == [0, 0, 3]).all()
    # Of twelve steps in each environment and call ten; but of the first call the last observation is forgotten
    assert len(x) == (2 * (9 + 10) if optimize_memory_usage else 2 * 2 * 10)


def test_sac_sees_the_noisy_source():
    env = make_vec_env(SourcesEnv, n_envs=4, seed=0)
    model = SAC("MlpPolicy", env, learning_starts=10_000, buffer_size=8000, seed=0, device="cpu").learn(8000)
    noise = noise_diagnostic(model.replay_buffer, names=["clean", "noisy"])
    assert noise.distractors == ("noisy",)
    np.testing.assert_allclose(noise.rho, [0.96 / 1.04, 0.5 * 4.0 / 4.64], atol=0.04)
    assert noise.n_samples == 8000
    assert noise_diagnostic(model.replay_buffer, horizon=3, max_samples=500).n_samples == 500
    # In the long run the noisy one is not even covariant
    later = noise_diagnostic(model.replay_buffer, names=["clean", "noisy"], horizon=5)
    assert later.names[later.reconstruction_order[0]] == "clean"
    assert later.distractors == ()


def test_dict_observations_and_normalization():
    env = VecNormalize(make_vec_env(lambda: SourcesEnv(as_dict=True), n_envs=2, seed=0))
    model = SAC("MultiInputPolicy", env, learning_starts=10_000, buffer_size=3000, seed=0, device="cpu").learn(3000)
    noise = noise_diagnostic(model.replay_buffer)
    assert noise.names == ("clean[0]", "noisy[0]")
    assert noise.distractors == ("noisy[0]",)
    named = noise_diagnostic(model.replay_buffer, names=dict(noisy=["wind"]))
    assert named.names == ("clean[0]", "wind")
    # On one scale, reconstruction finds the clean one as soon
    normalized = noise_diagnostic(model.replay_buffer, env=model.get_vec_normalize_env())
    np.testing.assert_allclose(normalized.sigma2, [1.0, 1.0], rtol=0.2)
    assert normalized.distractors == ()
    with pytest.raises(ValueError, match=r"names must be lists by the keys \['clean', 'noisy'\], got \['a', 'b'\]"):
        noise_diagnostic(model.replay_buffer, names=["a", "b"])
    with pytest.raises(ValueError, match=r"`names` must be a list of 1 names, one for each feature of clean"):
        noise_diagnostic(model.replay_buffer, names=dict(clean=["a", "b"]))


def test_observations_are_preprocessed():
    space = spaces.Dict(
        image=spaces.Box(0, 255, (3, 40, 40), np.uint8), gear=spaces.Discrete(3), speed=spaces.Box(-1, 1, (2, 2))
    )
    env = make_vec_env(lambda: FakeEnv(space), seed=0)
    model = DQN("MultiInputPolicy", env, learning_starts=10_000, buffer_size=200, seed=0, device="cpu").learn(150)
    noise = noise_diagnostic(model.replay_buffer, components=3)
    assert noise.names[:3] == ("image.component[0]", "image.component[1]", "image.component[2]")
    assert noise.names[3:6] == ("gear[0]", "gear[1]", "gear[2]")
    assert noise.names[6:] == ("speed[0]", "speed[1]", "speed[2]", "speed[3]")
    # Of one in three, and of pixels from 0 to 1
    np.testing.assert_allclose(noise.sigma2[3:6], 2 / 9, atol=0.06)
    assert (noise.sigma2[:3] < 10.0).all()


def test_goals_in_hindsight():
    env = BitFlippingEnv(n_bits=4, continuous=True)
    model = SAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=10_000, device="cpu")
    noise = noise_diagnostic(model.learn(50).replay_buffer)
    assert len(noise.names) == 12
    # The goal does not change
    assert noise.sigma2[noise.names.index("desired_goal[0]")] == 0.0


def test_data_sets(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 2)) * [1.0, 3.0]
    data = dict(observations=x, next_observations=x * [0.9, 0.3], rewards=np.zeros(100))
    np.savez(tmp_path / "data.npz", **data)
    for given in (data, tmp_path / "data.npz", str(tmp_path / "data.npz")):
        noise = noise_diagnostic(given)
        np.testing.assert_allclose(noise.rho[0], 0.9)
        assert noise.names == ("observation[0]", "observation[1]")
        assert noise.distractors == ("observation[1]",)
    assert noise_diagnostic(data, max_samples=10).n_samples == 10
    keyed = dict(observations=dict(a=x, b=x), next_observations=dict(a=x, b=x))
    assert noise_diagnostic(keyed).names == ("a[0]", "a[1]", "b[0]", "b[1]")
    del keyed["next_observations"]["b"]
    with pytest.raises(ValueError, match=r"next_observations must have the keys .* \['a', 'b'\], got \['a'\]"):
        noise_diagnostic(keyed)


@pytest.mark.parametrize(
    ("data", "kwargs", "message"),
    [
        ([1, 2], {}, r"`buffer` must be a ReplayBuffer, .* got \["),
        (dict(observations=X), {}, r"buffer must have .* got \['observations'\]"),
        (dict(observations=X, next_observations=X), dict(horizon=2), "horizon and env are for replay buffers"),
        (dict(observations=X, next_observations=X), dict(names=dict(clean=["a"])), "names must be a list, got"),
        (
            dict(observations=X, next_observations=X),
            dict(max_samples=1),
            "a whole number of at least 2, or None, got 1",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        noise_diagnostic(data, **kwargs)


def test_an_empty_buffer_is_refused():
    with pytest.raises(ValueError, match=r"buffer must hold at least 2 pairs .* got 0 among its 0"):
        noise_diagnostic(filled_dqn(False, n_steps=0).replay_buffer)
