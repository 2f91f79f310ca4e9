"""Images with one row or column of patches: what is hidden in them, and what tells the place."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_jepa import DmtJepa, JepaExtractor, MaskedPrediction
from sb3_jepa.parts import position_code
from sb3_jepa.parts.neighbors import neighbor_places
from tests.objectives.test_masked import PATCHES


@pytest.mark.parametrize(
    ("height", "width", "n_places"), [(4, 32, 8), (32, 4, 8), (16, 16, 16)], ids=["row", "column", "image"]
)
def test_what_is_hidden_in_one_frame_is_hidden_in_all_frames(height, width, n_places):
    space = spaces.Box(0, 255, (3, height, width), np.uint8)
    encoder = JepaExtractor(space, **{**PATCHES, "frames_as": "tokens", "frames": 3})
    objective = MaskedPrediction(encoder, 8, mask_kwargs=dict(context_scale=None))
    for _ in range(10):
        (family,) = objective.masks
        masks = family.sample(16)
        for seen, hidden in zip(masks.context % n_places, masks.targets.flatten(1) % n_places, strict=True):
            assert not set(seen.tolist()) & set(hidden.tolist())


def test_where_a_frame_is_one_patch_frames_are_hidden():
    encoder = JepaExtractor(spaces.Box(0, 255, (3, 4, 4), np.uint8), **{**PATCHES, "frames_as": "tokens", "frames": 3})
    objective = MaskedPrediction(encoder, 8, mask_kwargs=dict(n_masks=1))
    masks = objective.masks[0].sample(8)
    assert masks.targets.shape[1:] == (1, 1)
    assert sorted(masks.targets.unique().tolist()) == [0, 1, 2]


@pytest.mark.parametrize("shape", [(1, 4, 32), (3, 4, 32), (3, 32, 4)], ids=str)
def test_a_side_of_one_patch_says_nothing_of_the_place(shape):
    encoder = JepaExtractor(spaces.Box(0, 255, shape, np.uint8), **{**PATCHES, "frames_as": "tokens"})
    objective = DmtJepa(encoder, 8, target_transform_kwargs=dict(k=2))
    grid = [side for side in encoder.encoder.token_shape if side > 1]
    # What was saved was learned with these codes and neighbours
    assert th.equal(objective.predictor.place_code, position_code(grid, 32))
    assert th.equal(objective.target_transform.places, neighbor_places(grid, 3)[0])
