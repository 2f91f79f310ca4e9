"""A context encoder for vectors that costs hardly more than the networks behind it."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.observations import by_key
from sb3_jepa.common.spaces import ARRAY_SPACES, spaces_by_key
from sb3_jepa.parts.mlp import embedding_layers


class MlpExtractor(BaseFeaturesExtractor):
    """
    Multi-layer perceptron over all numbers of an observation, whose output is the features (the embedding):
    Linear, LayerNorm, Tanh; for each further hidden layer Linear, ReLU; Linear, LayerNorm. (The encoder of *TD-JEPA*,
    Bagatella et al. 2025, arXiv 2510.00739, for states; the last norm is a LayerNorm as in
    :class:`~sb3_jepa.JepaExtractor`.)

    On vectors it takes a fraction of the time of a :class:`~sb3_jepa.JepaExtractor`, so ``sb3_jepa.DQN``, ``SAC`` and
    the other off-policy algorithms take it there by default. Inputs are not standardised, as in Stable-Baselines3's
    ``MlpPolicy``: use ``VecNormalize`` where their scales differ much.

    :param observation_space: Vectors, ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, or a ``Dict`` of these
    :param embed_dim: Width of the embedding
    :param hidden_dim: Width of the hidden layers
    :param hidden_layers: Their number, at least 1
    :raises ValueError: If a size is not positive, or a box has several dimensions, as images and grids have
    """

    def __init__(
        self, observation_space: spaces.Space, embed_dim: int = 64, *, hidden_dim: int = 256, hidden_layers: int = 1
    ):
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        hidden_dim = checks.whole_number("hidden_dim", hidden_dim)
        hidden_layers = checks.whole_number("hidden_layers", hidden_layers)
        if not has_only_vectors(observation_space):
            checks.refuse(
                "observation_space",
                "vectors, categories or a Dict of these; sb3_jepa.JepaExtractor takes images and grids too",
                observation_space,
            )
        super().__init__(observation_space, embed_dim)
        layers = embedding_layers(get_flattened_obs_dim(observation_space), embed_dim, hidden_dim, hidden_layers)
        self.layers = nn.Sequential(*layers, nn.LayerNorm(embed_dim))

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Preprocessed, ``(batch, ...)`` or a dictionary of such
        :return: ``(batch, embed_dim)``
        """
        numbers = [tensor.flatten(1) for tensor in by_key(observations).values()]
        return self.layers(numbers[0] if len(numbers) == 1 else th.cat(numbers, dim=1))


def has_only_vectors(observation_space: spaces.Space) -> bool:
    """
    :param observation_space: Of a policy
    :return: Whether it has neither images nor grids
    """
    return all(
        isinstance(space, ARRAY_SPACES) and not (isinstance(space, spaces.Box) and len(space.shape) != 1)
        for space in spaces_by_key(observation_space).values()
    )
