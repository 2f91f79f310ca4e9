"""Multi-layer perceptrons."""

from torch import nn


def embedding_layers(input_dim: int, embed_dim: int, hidden_dim: int, hidden_layers: int) -> list[nn.Module]:
    """
    Linear, LayerNorm, Tanh; for each further hidden layer Linear, ReLU; Linear. Without hidden layers, one Linear. (The
    encoders of *TD-JEPA*, Bagatella et al. 2025, arXiv 2510.00739, for states; without the norm at their end.)

    :param input_dim: Width of the input
    :param embed_dim: Width of the output
    :param hidden_dim: Width of the hidden layers
    :param hidden_layers: Their number
    :return: The layers, from ``(batch, input_dim)`` to ``(batch, embed_dim)``
    """
    layers: list[nn.Module] = []
    for index in range(hidden_layers):
        norm = [nn.LayerNorm(hidden_dim), nn.Tanh()] if index == 0 else [nn.ReLU()]
        layers += [nn.Linear(input_dim, hidden_dim), *norm]
        input_dim = hidden_dim
    return [*layers, nn.Linear(input_dim, embed_dim)]
