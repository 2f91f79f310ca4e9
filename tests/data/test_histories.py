"""Recordings as histories: the same as the environment's wrapper shows, and pretrained from."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_jepa import PPO, Recordings, SequenceExtractor, SequencePrediction, load_encoder, pretrain, read_encoder
from sb3_jepa.data import HistoryRecordings, record_env, transformed_views
from sb3_jepa.envs import VecHistory
from tests.conftest import SMALL_PPO
from tests.envs.test_history import ACTION_SPACES, Counting

SMALL = dict(embed_dim=16, action_embed_dim=8, num_heads=2)
SPACE = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def recordings(action_space=ACTION_SPACES[0], n_episodes=6, n_steps=5):
    """Views are 10 for each episode and 1 for each step."""
    n_rows = n_episodes * (n_steps + 1)
    episodes, steps = np.divmod(np.arange(n_rows), n_steps + 1)
    action_space.seed(0)
    return Recordings(
        SPACE,
        np.repeat((10.0 * episodes + steps)[:, None], 2, axis=1).astype(np.float32),
        episodes,
        action_space,
        np.stack([action_space.sample() for _ in range(n_rows)]),
        has_action=steps < n_steps,
    )


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=lambda space: type(space).__name__)
def test_histories_are_those_that_the_wrapper_shows(action_space):
    plain = recordings(action_space)

    class Replayed(Counting):
        """Shows an episode of the recordings, whatever is done."""

        def __init__(self):
            super().__init__(action_space)

        def _observation(self):
            return plain.observations[(6 * (self.episode - 1) + self.count) % len(plain)]

    env = VecHistory(DummyVecEnv([Replayed]), length=3)
    histories, shown = HistoryRecordings(plain, length=3), env.reset()
    assert histories.observation_space == env.observation_space
    for row in range(len(plain)):
        taken = histories.take(np.array([row]))
        if row % 6 < 5:
            assert all(np.allclose(taken[key], shown[key], atol=1e-6) for key in shown), row
            shown, _, _, infos = env.step(plain.actions[row : row + 1])
        else:
            # The last observation of an episode
            last = infos[0]["terminal_observation"]
            assert all(np.allclose(taken[key][0], last[key], atol=1e-6) for key in last), row


def test_the_next_row_is_of_the_same_episode_and_was_acted_for():
    rows, follows = recordings().next_rows(np.array([0, 4, 5, 6, 35]))
    np.testing.assert_array_equal(rows, [1, 5, 5, 7, 35])
    np.testing.assert_array_equal(follows, [1, 1, 0, 1, 0])


def test_recordings_without_actions_or_too_short_are_refused():
    with pytest.raises(ValueError, match="`recordings` must have actions"):
        HistoryRecordings(Recordings(SPACE, np.zeros((4, 2), np.float32), np.zeros(4, int)))
    with pytest.raises(ValueError, match="`length` must be at most 6"):
        HistoryRecordings(recordings(), length=7)


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 24, 24), dtype=np.uint8)


def test_a_turned_image_is_turned_by_its_angle():
    picture = np.zeros((1, 33, 33), np.uint8)
    # A dot on the right of the centre
    picture[0, 16, 26] = 255
    made, of_sequence, angles = transformed_views(picture, "rotation", n_views=3, n_sequences=40, largest=90)
    assert len(made) == 120
    assert len(of_sequence) == 40
    for view, angle in zip(made.observations, angles[:, 0], strict=True):
        place = np.array(np.unravel_index(view[0].argmax(), view[0].shape)) - 16.0
        # As far as a pixel tells, the other way round: the sampling grid is turned
        turned = np.arctan2(-place[0], place[1])
        assert np.abs(turned - angle) < 0.15
    difference = angles[1, 0] - angles[0, 0]
    np.testing.assert_allclose(made.actions[0], [np.sin(difference), np.cos(difference)], atol=1e-5)


def test_a_window_shows_its_place():
    made, of_sequence, places = transformed_views(IMAGES, "position", n_views=3, n_sequences=10, window=8)
    for row, place in enumerate(places):
        top, left = np.round(place * 16).astype(int)
        np.testing.assert_array_equal(
            made.observations[row, 0], IMAGES[of_sequence[row // 3], top : top + 8, left : left + 8]
        )
    np.testing.assert_allclose(made.actions[0], places[1] - places[0], atol=1e-6)
    np.testing.assert_array_equal(made.has_action[:3], [True, True, False])


def test_brightness_is_a_factor():
    made, of_sequence, factors = transformed_views(IMAGES, "brightness", n_views=2, n_sequences=4)
    expected = (IMAGES[of_sequence[0]] * factors[0, 0]).clip(0, 255)
    np.testing.assert_allclose(made.observations[0, 0], expected, atol=1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(images=IMAGES.astype(float)), "images"),
        (dict(images=IMAGES[:, 0]), "images"),
        (dict(transformation="shear"), "transformation"),
        (dict(transformation="position", window=24), "window"),
        (dict(n_views=1), "n_views"),
    ],
)
def test_what_cannot_be_transformed_is_named(change, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        transformed_views(**{"images": IMAGES, **change})


def test_an_encoder_of_histories_is_pretrained_and_loaded(tmp_path):
    env = DummyVecEnv([lambda: Counting(episode_steps=8)])
    source = HistoryRecordings(record_env(env, 300), length=3)
    path = pretrain(
        source, tmp_path, SequencePrediction, features_extractor_kwargs=SMALL, n_updates=20, eval_freq=10, batch_size=32
    )
    encoder = read_encoder(path)
    assert isinstance(encoder, SequenceExtractor)
    policy_kwargs = dict(
        features_extractor_class=SequenceExtractor, features_extractor_kwargs=SMALL, objective_class=SequencePrediction
    )
    model = PPO("JepaPolicy", VecHistory(env, 3), policy_kwargs=policy_kwargs, **SMALL_PPO)
    load_encoder(model, path)
    for name, value in model.policy.features_extractor.state_dict().items():
        th.testing.assert_close(value, encoder.state_dict()[name])
    target = model.policy.objective.target_encoder.encoder.state_dict()
    for name, value in encoder.view_encoder.state_dict().items():
        th.testing.assert_close(value, target[name])
    model.learn(64)


def test_images_of_histories_are_measured_before_they_are_learned_from(tmp_path):
    made, _, _ = transformed_views(IMAGES, n_views=3, n_sequences=40)
    path = pretrain(
        HistoryRecordings(made, 2),
        tmp_path,
        SequencePrediction,
        features_extractor_kwargs=dict(SMALL, view_extractor_kwargs=dict(num_heads=2)),
        n_updates=4,
        eval_freq=2,
        batch_size=16,
    )
    encoder = read_encoder(path)
    assert encoder.n_inputs_to_measure == 0
    assert all(one.varies for one in encoder.view_encoder.extractor.standardizations)
