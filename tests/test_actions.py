import numpy as np
import torch as th
from gymnasium import spaces

from sb3_jepa.actions import encode_actions


def encode(space: spaces.Space, actions: list[list[float]], is_scaled: bool = False) -> list[list[float]]:
    return encode_actions(th.tensor(actions, dtype=th.float), space, is_scaled).tolist()


def test_discrete_actions_are_one_hot():
    assert encode(spaces.Discrete(3), [[2], [0]]) == [[0, 0, 1], [1, 0, 0]]
    assert encode(spaces.MultiDiscrete([2, 3]), [[1, 0]]) == [[0, 1, 1, 0, 0]]
    assert encode(spaces.MultiBinary(3), [[1, 0, 1]]) == [[1, 0, 1]]


def test_continuous_actions_are_scaled():
    box = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    # Beyond the bounds the environment executes the bound
    assert encode(box, [[1.0, 0.5], [-7.0, 9.0]]) == [[0.5, 0.0], [-1.0, 1.0]]
    # What is squashed is scaled already
    assert encode(box, [[1.0, 0.5]], is_scaled=True) == [[1.0, 0.5]]
    # Bounds that coincide leave nothing to scale
    fixed = spaces.Box(np.array([0.0, -1.0], np.float32), np.array([0.0, 1.0], np.float32))
    assert encode(fixed, [[3.0, 0.5]]) == [[-1.0, 0.5]]
