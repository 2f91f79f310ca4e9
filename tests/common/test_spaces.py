import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa.common.spaces import space_from_json, space_to_json


@pytest.mark.parametrize(
    "space",
    [
        gym.make("CartPole-v1").observation_space,
        spaces.Box(0, 255, (3, 8, 8), np.uint8),
        spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        spaces.Discrete(3, start=-1),
        spaces.Dict(
            mode=spaces.Discrete(3),
            image=spaces.Box(0, 255, (16, 20, 3), np.uint8),
            vector=spaces.Box(np.array([-np.inf, -4.8], np.float32), np.array([np.inf, 4.8], np.float32)),
            modes=spaces.MultiDiscrete([3, 2]),
            flags=spaces.MultiBinary(4),
        ),
    ],
)
def test_a_space_is_the_same_after_it_was_in_a_file(space):
    loaded = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert loaded == space
    if isinstance(space, spaces.Dict):
        # The features of keys are in this order
        assert list(loaded) == list(space)
