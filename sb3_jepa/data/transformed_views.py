"""Views that are made of images by transformations, which are the actions between them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.data.recordings import Recordings

# Images that are turned at once
BATCH_SIZE = 1024


def transformed_views(
    images: np.ndarray,
    transformation: str = "rotation",
    n_views: int = 4,
    n_sequences: int = 10_000,
    largest: float = 90.0,
    window: int = 16,
    seed: int = 0,
) -> tuple[Recordings, np.ndarray, np.ndarray]:
    r"""
    Sequences of views of one image each, as episodes whose actions are the transformations between two views: the
    setting of *seq-JEPA* (arXiv 2505.03176, section 4), for :class:`~sb3_jepa.data.HistoryRecordings`.

    - ``"rotation"``: views are turned by angles :math:`\theta` up to ``largest`` degrees; actions are
      :math:`(\sin\Delta\theta, \cos\Delta\theta)`. What lies outside of an image is zero.
    - ``"position"``: views are windows of an image, as the eye's saccades show it; actions are the shifts, as parts of
      the largest ones.
    - ``"brightness"``: views are the image, multiplied by a factor from 0.5 to 1.5; actions are the differences.

    :param images: ``(images, height, width)`` or ``(images, channels, height, width)``, uint8
    :param transformation: One of these
    :param n_views: Views of each sequence; that is one more than a history has, since the last one is predicted
    :param n_sequences: How many sequences; each is of an image at random
    :param largest: The largest angle, in degrees
    :param window: Side of the windows in pixels
    :param seed: Seed
    :return: The recordings, of each sequence the number of its image ``(sequences,)``, and of each row what the
        transformation was ``(rows, parameters)``
    :raises ValueError: If the images are none, or too small for the window
    """
    images = np.asarray(images)
    if images.ndim not in (3, 4) or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(
            "`images` must be uint8, (images, height, width) or (images, channels, height, width), got an array of "
            f"shape {images.shape} and type {images.dtype}"
        )
    transformation = checks.choice("transformation", transformation, tuple(_TRANSFORMATIONS))
    n_views, n_sequences = checks.whole_number("n_views", n_views, 2), checks.whole_number("n_sequences", n_sequences)
    largest, window = checks.number("largest", largest, above=0, most=180), checks.whole_number("window", window)
    images = images[:, None] if images.ndim == 3 else images
    if transformation == "position" and window >= min(images.shape[2:]):
        raise ValueError(f"`window` must be smaller than the images, {images.shape[2:]}, got {window}")
    rng = np.random.default_rng(checks.seed("seed", seed))
    of_sequence = rng.integers(len(images), size=n_sequences)
    rows = np.repeat(of_sequence, n_views)
    views, parameters, differences = _TRANSFORMATIONS[transformation](images, rows, rng, n_views, largest, window)
    # At the last view of a sequence nothing is done
    actions = np.zeros_like(differences)
    actions[:-1] = differences[1:]
    recordings = Recordings(
        spaces.Box(0, 255, views.shape[1:], np.uint8),
        views,
        np.repeat(np.arange(n_sequences), n_views),
        spaces.Box(-1.0, 1.0, actions.shape[1:], np.float32),
        actions,
        has_action=np.tile(np.arange(n_views) < n_views - 1, n_sequences),
    )
    return recordings, of_sequence, parameters


def _rotate(images: np.ndarray, rows: np.ndarray, rng: Any, n_views: int, largest: float, window: int) -> Any:
    angles = np.deg2rad(rng.uniform(-largest, largest, len(rows))).astype(np.float32)
    views = np.empty((len(rows), *images.shape[1:]), np.uint8)
    for start in range(0, len(rows), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        cos, sin = th.as_tensor(np.cos(angles[part])), th.as_tensor(np.sin(angles[part]))
        matrices = th.stack([cos, -sin, th.zeros_like(cos), sin, cos, th.zeros_like(cos)], dim=1).view(-1, 2, 3)
        taken = th.as_tensor(images[rows[part]]).float()
        grid = F.affine_grid(matrices, list(taken.shape), align_corners=False)
        views[part] = F.grid_sample(taken, grid, align_corners=False).round().to(th.uint8).numpy()
    turned = angles - np.roll(angles, 1)
    return views, angles[:, None], np.stack([np.sin(turned), np.cos(turned)], axis=1)


def _look(images: np.ndarray, rows: np.ndarray, rng: Any, n_views: int, largest: float, window: int) -> Any:
    reach = np.array(images.shape[2:]) - window
    corners = rng.integers(0, reach + 1, (len(rows), 2))
    views = np.stack(
        [
            images[row, :, top : top + window, left : left + window]
            for row, (top, left) in zip(rows, corners, strict=True)
        ]
    )
    places = (corners / reach).astype(np.float32)
    return views, places, places - np.roll(places, 1, axis=0)


def _light(images: np.ndarray, rows: np.ndarray, rng: Any, n_views: int, largest: float, window: int) -> Any:
    factors = rng.uniform(0.5, 1.5, (len(rows), 1)).astype(np.float32)
    views = (images[rows] * factors[:, :, None, None]).clip(0, 255).round().astype(np.uint8)
    return views, factors, factors - np.roll(factors, 1, axis=0)


_TRANSFORMATIONS: dict[str, Callable[..., Any]] = dict(rotation=_rotate, position=_look, brightness=_light)
