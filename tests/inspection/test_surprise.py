"""How far transitions are from what a model predicts, by formula and on what cannot happen."""

import numpy as np
import pytest
import stable_baselines3
import torch as th

from sb3_jepa import JepaCallback, JepaExtractor, surprise
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.diagnostics import area_under_curve
from sb3_jepa.envs import PixelObservation, make_pixel_vec_env
from tests.algorithms.test_matrix import ACTIONS, OBSERVATIONS
from tests.envs.test_vec_surprise import make_env, make_model, sample_transitions


@pytest.mark.parametrize("action", ACTIONS)
def test_formula(action):
    model, _ = make_model("joint", make_env(action=action))
    model.learn(32)
    observations, actions, next_observations = sample_transitions(model)
    encoded = {
        "Discrete": lambda: np.eye(3)[actions],
        "Box": lambda: actions / 2,
        "MultiDiscrete": lambda: np.concatenate((np.eye(3)[actions[:, 0]], np.eye(2)[actions[:, 1]]), axis=1),
        "MultiBinary": lambda: actions,
    }[action]()
    encoder, objective = model.policy.features_extractor, model.policy.objective
    with th.no_grad():
        expected = objective.predictor(encoder(th.as_tensor(observations)), th.as_tensor(encoded, dtype=th.float32))
        expected -= objective.target_encoder.encoder(th.as_tensor(next_observations))
    told = surprise(model, observations, actions, next_observations)
    assert told.shape == (6,)
    assert told == pytest.approx((expected**2).sum(dim=1).numpy(), rel=1e-5)
    assert told.min() > 0


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_single_transition_needs_no_batch(observation):
    env = make_env(observation)
    model, _ = make_model("joint", env)
    model.learn(16)
    observations, actions, next_observations = sample_transitions(model, n=3)
    together = surprise(model, observations, actions, next_observations)
    for row in range(3):
        before, after = (
            as_observations({key: array[row] for key, array in by_key(batch).items()})
            for batch in (observations, next_observations)
        )
        alone = surprise(model, before, actions[row], after)
        assert alone.shape == (1,)
        assert alone == pytest.approx(together[[row]], rel=1e-4)
    if observation == "channels-last image":
        last = [np.moveaxis(images, 1, -1) for images in (observations, next_observations)]
        assert last[0].shape[1:] == env.observation_space.shape
        assert np.array_equal(surprise(model, last[0], actions, last[1]), together)


def test_transitions_that_do_not_fit_are_refused():
    model, _ = make_model("joint", make_env())
    observations, actions, next_observations = sample_transitions(model)
    with pytest.raises(ValueError, match=r"got 6 `observations`, 6 `actions`, 1 `next_observations`"):
        surprise(model, observations, actions, next_observations[0])
    with pytest.raises(ValueError, match=r"got 5 `observations`, 6 `actions`, 6 `next_observations`"):
        surprise(model, observations[:5], actions, next_observations)
    with pytest.raises(ValueError, match=r"`actions` must be of shape \(batch, 2\), got \(6, 3\)"):
        surprise(model, observations, np.zeros((6, 3)), next_observations)
    with pytest.raises(ValueError, match=r"'shared'.*'critic'"):
        surprise(model, observations, actions, next_observations, encoder="critic")
    stock, _ = make_model("alternating", make_env())
    with pytest.raises(ValueError, match=r"no JEPA objective.*JepaCallback"):
        surprise(stock, observations, actions, next_observations)


def far_away(pixels: PixelObservation, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What would be seen next if the cart had jumped by at least 1 of the 4.8 that the picture is wide."""
    cartpole = pixels.unwrapped
    state = cartpole.state
    choices = rng.uniform(-2, 2, size=100)
    position = choices[np.abs(choices - state[0]) > 1][0]
    cartpole.state = np.array([position, 0, rng.uniform(-0.2, 0.2), 0])
    frame = pixels._draw()
    cartpole.state = state
    return np.concatenate((observation[len(frame) :], frame))


def areas_under_curves(model, frame_size: int, n: int = 500) -> tuple[float, float]:
    """
    How well surprise tells what happened from what did not, in episodes of a random policy that no training has seen:
    swapped next observations, and jumps.
    """
    rng = np.random.default_rng(0)
    env = make_pixel_vec_env("CartPole-v1", seed=1000, frame_size=frame_size)
    (pixels,) = env.envs
    while not isinstance(pixels, PixelObservation):
        pixels = pixels.env
    before, actions, after, jumped = [], rng.integers(2, size=n), [], []
    observations = env.reset()
    for action in actions:
        before.append(observations[0])
        observations, _, dones, infos = env.step(np.array([action]))
        after.append(infos[0]["terminal_observation"] if dones[0] else observations[0])
        jumped.append(far_away(pixels, before[-1], rng))
    before, after, jumped = np.stack(before), np.stack(after), np.stack(jumped)
    # Each transition gets the next observation of another one
    swapped = after[(np.arange(n) + rng.integers(1, n, size=n)) % n]
    happened = surprise(model, before, actions, after)
    return tuple(area_under_curve(happened, surprise(model, before, actions, other)) for other in (swapped, jumped))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.expensive) for seed in (1, 2))])
def test_what_cannot_happen_is_surprising(seed):
    env = make_pixel_vec_env("CartPole-v1", n_envs=8, seed=seed, frame_size=32)
    policy_kwargs = dict(
        features_extractor_class=JepaExtractor,
        features_extractor_kwargs=dict(depth=1, patch_size=16, standardize_frames=512),
    )
    model = stable_baselines3.PPO(
        "MlpPolicy", env, n_steps=128, batch_size=64, n_epochs=1, policy_kwargs=policy_kwargs, seed=seed, device="cpu"
    )
    model.learn(3072, callback=JepaCallback(n_updates=200, learning_rate=2e-3))
    swapped, jumped = areas_under_curves(model, frame_size=32)
    assert swapped > 0.95
    assert jumped > 0.99
