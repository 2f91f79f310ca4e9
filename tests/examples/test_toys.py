"""The experiments on made-up observations: SALT and DMT-JEPA."""

import numpy as np
import pytest
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first


def test_a_glyph_keeps_its_shape_and_goes_its_way(load_script):
    toys = load_script("toys")
    clips = toys.moving_glyphs(200, seed=0, background=30.0, noise=0.0)
    assert is_image_space(toys.as_recordings(clips.observations).observation_space)
    assert is_image_space_channels_first(toys.as_recordings(clips.observations).observation_space)
    for frames, shape, direction in zip(*clips, strict=True):
        glyph = toys.GLYPHS[shape]
        corners = []
        for frame in frames:
            rows, columns = np.nonzero(frame == 255)
            corners.append((rows.min(), columns.min()))
            top, left = corners[-1]
            np.testing.assert_array_equal(frame[top : top + 3, left : left + 3] == 255, glyph)
            assert len(rows) == glyph.sum()
        np.testing.assert_array_equal(np.subtract(corners[-1], corners[0]), toys.TRAVEL * toys.DIRECTIONS[direction])
        # Behind the glyph nothing moves
        still = (frames != 255).all(axis=0)
        assert (frames[:, still] == frames[0, still]).all()


def test_where_a_glyph_has_been_does_not_tell_its_direction(load_script):
    toys = load_script("toys")
    clips = toys.moving_glyphs(4_000, seed=0, background=0.0, noise=0.0)
    traces = (clips.observations == 255).mean(axis=1)
    of_directions = np.stack([traces[clips.directions == number].mean(axis=0) for number in range(8)])
    # The opposite direction leaves the same trace
    np.testing.assert_allclose(of_directions[:4], of_directions[4:], atol=0.05)
    first = np.stack([clips.observations[clips.directions == number, 0].mean(axis=0) for number in range(8)])
    assert np.abs(first[:4] - first[4:]).max() > 25.0


def test_regions_differ_in_their_texture_and_not_in_their_brightness(load_script):
    toys = load_script("toys")
    images = toys.textured_images(200, seed=0)
    assert all(1 <= len(np.unique(textures)) <= 4 for textures in images.textures)
    assert len(np.unique(images.textures)) == len(toys.TEXTURES)
    brightness = [images.observations[:, 0][images.textures == number].mean() for number in range(len(toys.TEXTURES))]
    np.testing.assert_allclose(brightness, 127.0, atol=3.0)
    recordings = toys.as_recordings(images.observations)
    assert len(np.unique(recordings.episodes)) == len(recordings) == 200


def test_the_texture_of_a_patch_is_that_of_most_of_its_pixels(load_script):
    toys = load_script("toys")
    textures = np.zeros((1, 6, 6), dtype=int)
    textures[0, 1:, 2:] = 3
    images = toys.TexturedImages(np.zeros((1, 1, 6, 6), np.uint8), textures)
    of_patch, is_border = images.patch_textures()
    # 7 of 9 pixels, then 3, 6, and none are of the first texture
    np.testing.assert_array_equal(of_patch, [[0, 3, 0, 3]])
    np.testing.assert_array_equal(is_border, [[True, True, True, False]])


def test_flat_regions_have_one_colour_each(load_script):
    toys = load_script("toys")
    images = toys.flat_images(200, seed=0)
    assert images.observations.shape == (200, 3, toys.IMAGE_SIZE, toys.IMAGE_SIZE)
    for number, color in enumerate(toys.COLORS):
        of_region = np.moveaxis(images.observations, 1, 3)[images.textures == number]
        np.testing.assert_allclose(of_region.mean(axis=0), 127 + 60 * color, atol=2.0)
        np.testing.assert_allclose(of_region.std(axis=0), 30.0, atol=2.0)
    recordings = toys.as_recordings(images.observations)
    assert is_image_space_channels_first(recordings.observation_space)


def test_similar_neighbors_tell_regions_apart_where_tokens_know_them(load_script):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    textures = load_script("textures")
    gaps = textures.gaps_of_known_regions(noise=1.0)
    assert gaps == textures.gaps_of_known_regions(noise=1.0)
    # Far better than random ones, and better than the noisy tokens themselves
    assert gaps["similar neighbours"] > gaps["tokens"] + 0.2 > gaps["random neighbours"] + 0.4
    # Where a token says nothing of its region, they do not help
    of_noise = textures.gaps_of_known_regions(noise=100.0)
    assert abs(of_noise["similar neighbours"] - of_noise["random neighbours"]) < 0.05


@pytest.mark.parametrize("generate", ["moving_glyphs", "textured_images", "flat_images"])
def test_a_seed_is_always_the_same_observations(load_script, generate):
    generate = getattr(load_script("toys"), generate)
    np.testing.assert_array_equal(generate(5, seed=1).observations, generate(5, seed=1).observations)
    assert (generate(5, seed=1).observations != generate(5, seed=2).observations).any()


@pytest.mark.expensive
def test_salt_is_compared_and_what_is_finished_is_not_run_again(run_script):
    arguments = ("--glyph-updates", "4", "--cartpole-updates", "4", "--clips", "160", "--frames", "100", "--seeds", "0")
    arguments = (*arguments, "--students", "lr 1e-2")
    of_salt = ["SALT 1/2, its teacher", "SALT 1/2"]
    rows = run_script("salt", *arguments, "--tasks", "glyphs", "--arms", "random init", "momentum", "SALT 1/2")
    assert [row["arm"] for row in rows] == ["random init", "momentum, context encoder", "momentum", *of_salt]
    assert all(0.0 <= float(row["shape"]) <= 1.0 and 0.0 <= float(row["direction"]) <= 1.0 for row in rows)
    again = run_script("salt", *arguments, "--arms", "SALT 1/2")
    assert [{name: row[name] for name in rows[0]} for row in again[: len(rows)]] == rows
    new = again[len(rows) :]
    assert [(row["task"], row["arm"]) for row in new] == [("cartpole", arm) for arm in of_salt]
    assert all(float(row["theta"]) <= 1.0 for row in new)
    assert [len(row["teacher"]) for row in again if row["arm"] in of_salt] == [0, 8, 0, 8]


def test_states_are_those_of_the_observations(load_script, tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    salt = load_script("salt")
    task = salt.cartpole(60, tmp_path / "cartpole.npz")
    again = salt.cartpole(60, tmp_path / "cartpole.npz")
    np.testing.assert_array_equal(task.observations, again.observations)
    # Where the newest frame has the cart says where it is: the darkest column of its lower part
    newest = task.observations[:, -1].astype(float)
    lower = newest[:, newest.shape[1] // 2 :]
    darkness = 255.0 - lower
    center = (darkness.sum(axis=1) * np.arange(newest.shape[2])).sum(axis=1) / darkness.sum(axis=(1, 2))
    assert np.corrcoef(center, task.labels["x"])[0, 1] > 0.9


@pytest.mark.expensive
@pytest.mark.parametrize("regions", ["textures", "flat"])
def test_dmt_is_compared(run_script, regions):
    arguments = ("--updates", "4", "--images", "320", "--seeds", "0", "--arms", "I-JEPA", "DMT, mean")
    rows = run_script("textures", *arguments, "--regions", regions, results=regions)
    assert [(row["arm"], row["updates"]) for row in rows] == [
        ("pixels", "0"),
        ("I-JEPA", "0"),
        ("I-JEPA", "4"),
        ("DMT, mean", "0"),
        ("DMT, mean", "4"),
    ]
    untrained = [row for row in rows[1:] if row["updates"] == "0"]
    # One encoder, whose tokens are the targets of the one, and a mean of neighbours those of the other
    assert untrained[0]["token_gap"] == untrained[1]["token_gap"] == untrained[0]["target_gap"]
    assert float(untrained[1]["target_gap"]) != float(untrained[0]["target_gap"])
