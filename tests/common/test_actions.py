import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import make_proba_distribution

from sb3_jepa.common.actions import encode_actions, without_graph


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


def test_a_distribution_lets_go_of_its_graph_and_keeps_its_numbers():
    logits = th.randn(2, 5, requires_grad=True) * 2.0
    original = make_proba_distribution(spaces.MultiDiscrete([3, 2])).proba_distribution(logits)
    detached = without_graph(original)
    actions = th.tensor([[2, 0], [1, 1]])
    assert th.equal(detached.log_prob(actions), original.log_prob(actions))
    # A loss of the original can still be computed
    assert (detached.log_prob(actions).requires_grad, original.log_prob(actions).requires_grad) == (False, True)
