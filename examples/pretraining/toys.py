"""Small made-up observations of which everything is known: glyphs that move, regions of different textures or colours.

All are ``uint8`` images with their channels first, as Stable-Baselines3's policies see them, and need nothing but
NumPy. Each observation is an episode of its own.
"""

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_jepa.pretrain import Recordings

N_FRAMES, CLIP_SIZE = 8, 12
# Shapes of as many bright pixels
GLYPHS = np.array(
    [
        [[0, 1, 0], [1, 1, 1], [0, 1, 0]],
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
        [[1, 1, 1], [0, 1, 0], [0, 1, 0]],
    ],
    dtype=bool,
)
# Rows and columns per step
DIRECTIONS = np.array([(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)])
# How many pixels it is from the first frame to the last
TRAVEL = 4

IMAGE_SIZE, PATCH_SIZE = 24, 3
TEXTURES = ("horizontal stripes", "vertical stripes", "diagonal stripes", "checkers", "noise")
# As many as there are textures: red, green and blue, brighter or darker than the mean
COLORS = np.array([(1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, -1), (-1, 1, 1)])


class Clips(NamedTuple):
    """
    :param observations: The frames, oldest first, ``(clips, frames, height, width)``
    :param shapes: Number of the glyph, ``(clips,)``
    :param directions: Number of the direction in which it moves, ``(clips,)``
    """

    observations: np.ndarray
    shapes: np.ndarray
    directions: np.ndarray


def moving_glyphs(n_clips: int, seed: int, background: float = 30.0, noise: float = 5.0) -> Clips:
    """
    A glyph moves in one of eight directions, over a random background that stays as it is. Where it has been does not
    tell its direction: that takes the order of the frames.

    :param n_clips: Number of clips
    :param seed: Seed
    :param background: The brightest a pixel of the background is; those of the glyph have 255
    :param noise: Deviation of the noise in every pixel of every frame
    :return: Clips, and what is seen in them
    """
    rng = np.random.default_rng(seed)
    shapes, directions = rng.integers(len(GLYPHS), size=n_clips), rng.integers(len(DIRECTIONS), size=n_clips)
    steps = DIRECTIONS[directions]
    side = GLYPHS.shape[1]
    # The path takes up as much room whether it is gone along forwards or backwards
    corner = rng.integers(CLIP_SIZE - side - TRAVEL + 1, size=steps.shape)
    start = corner + np.where(steps > 0, 0, np.where(steps < 0, TRAVEL, rng.integers(TRAVEL + 1, size=steps.shape)))
    offsets = np.round(np.linspace(0, TRAVEL, N_FRAMES)).astype(int)
    tops, lefts = np.moveaxis(start[:, None] + offsets[:, None] * steps[:, None], 2, 0)  # (clips, frames) each
    pixels = np.repeat(rng.uniform(0.0, background, (n_clips, 1, CLIP_SIZE, CLIP_SIZE)), N_FRAMES, axis=1)
    clip, frame = np.arange(n_clips)[:, None], np.arange(N_FRAMES)
    for row, column in np.ndindex(side, side):
        is_bright = GLYPHS[shapes, row, column][:, None]
        place = (clip, frame, tops + row, lefts + column)
        pixels[place] = np.where(is_bright, 255.0, pixels[place])
    pixels += rng.normal(0.0, noise, pixels.shape)
    return Clips(np.clip(pixels, 0, 255).astype(np.uint8), shapes, directions)


class TexturedImages(NamedTuple):
    """
    :param observations: ``(images, channels, height, width)``
    :param textures: Number of the texture, or of the colour, of each pixel, ``(images, height, width)``
    """

    observations: np.ndarray
    textures: np.ndarray

    def patch_textures(self, patch_size: int = PATCH_SIZE) -> tuple[np.ndarray, np.ndarray]:
        """
        :param patch_size: Side of a patch in pixels
        :return: The texture that most pixels of each patch have, and whether there are others in it, both
            ``(images, patches)``
        """
        n_rows, n_columns = (size // patch_size for size in self.textures.shape[1:])
        patches = self.textures.reshape(-1, n_rows, patch_size, n_columns, patch_size).swapaxes(2, 3)
        patches = patches.reshape(-1, n_rows * n_columns, patch_size**2)
        counts = (patches[..., None] == np.arange(len(TEXTURES))).sum(axis=2)
        return counts.argmax(axis=2), counts.max(axis=2) < patch_size**2


def textured_images(n_images: int, seed: int, contrast: float = 60.0, noise: float = 30.0) -> TexturedImages:
    """
    Two to four regions, each of another texture. They have straight borders, and all are equally bright on average.

    :param n_images: Number of images
    :param seed: Seed
    :param contrast: How much brighter and darker than the mean the pixels of a texture are
    :param noise: Deviation of the noise in every pixel
    :return: Images, and what is seen in them
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    # Stripes are two pixels wide, and each image has them elsewhere
    phases = rng.integers(4, size=(n_images, 2, 1, 1))
    y, x = rows + phases[:, 0], columns + phases[:, 1]
    is_bright = np.stack(
        [
            y // 2 % 2,
            x // 2 % 2,
            (y + x) // 2 % 2,
            (y // 2 + x // 2) % 2,
            rng.integers(2, size=(n_images, IMAGE_SIZE, IMAGE_SIZE)),
        ],
        axis=1,
    )
    textures = _draw_regions(rng, n_images)
    is_bright = np.take_along_axis(is_bright, textures[:, None], axis=1)
    pixels = 127.0 + contrast * (2 * is_bright - 1) + rng.normal(0.0, noise, is_bright.shape)
    return TexturedImages(np.clip(pixels, 0, 255).astype(np.uint8), textures)


def flat_images(n_images: int, seed: int, contrast: float = 60.0, noise: float = 30.0) -> TexturedImages:
    """
    Regions as those of :func:`textured_images`, each of one colour: patches look alike if they are of one region.

    :param n_images: Number of images
    :param seed: Seed
    :param contrast: How far red, green and blue of a colour are from their mean
    :param noise: Deviation of the noise in every pixel
    :return: Images, and what is seen in them
    """
    rng = np.random.default_rng(seed)
    colors = _draw_regions(rng, n_images)
    pixels = 127.0 + contrast * np.moveaxis(COLORS[colors], 3, 1)
    pixels += rng.normal(0.0, noise, pixels.shape)
    return TexturedImages(np.clip(pixels, 0, 255).astype(np.uint8), colors)


def _draw_regions(rng: np.random.Generator, n_images: int) -> np.ndarray:
    """Which texture each pixel has, ``(images, height, width)``: two to four of them, with straight borders."""
    rows, columns = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    # The region of a pixel is that of the nearest centre; of four, only as many as the image has are near enough
    centers = rng.uniform(0, IMAGE_SIZE, size=(n_images, 4, 2, 1, 1))
    distances = np.square(np.stack((rows, columns)) - centers).sum(axis=2)
    n_regions = rng.integers(2, 5, size=(n_images, 1, 1, 1))
    distances = np.where(np.arange(4)[:, None, None] < n_regions, distances, np.inf)
    of_region = rng.permuted(np.tile(np.arange(len(TEXTURES)), (n_images, 1)), axis=1)
    textures = np.take_along_axis(of_region, distances.argmin(axis=1).reshape(n_images, -1), axis=1)
    return textures.reshape(n_images, IMAGE_SIZE, IMAGE_SIZE)


def as_recordings(observations: np.ndarray) -> Recordings:
    """
    :param observations: Images ``(images, channels, height, width)``
    :return: The same, each of them an episode
    """
    space = spaces.Box(0, 255, observations.shape[1:], np.uint8)
    return Recordings(space, observations, np.arange(len(observations)))
