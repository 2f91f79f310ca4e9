"""What keeps a policy near the actions of its data, where these are those of experts."""

from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_jepa.parts.mlp import embedding_layers


class BehaviorFlow(nn.Module):
    r"""
    The distribution of a data set's actions at a state, as a flow from noise to actions: a velocity field
    :math:`v(x, a_t, t)` that is learned by flow matching (Lipman et al. 2022, arXiv 2210.02747), as *TD-JEPA* (arXiv
    2510.00739, section D) uses it for OGBench.

    :param features_dim: Width of the features of a state
    :param action_dim: Width of an action
    :param widths: Of the hidden layers
    :param n_steps: Steps of Euler's method from noise to an action
    """

    def __init__(self, features_dim: int, action_dim: int, widths: Sequence[int], n_steps: int = 10):
        super().__init__()
        self.action_dim, self.n_steps = action_dim, n_steps
        self.field = nn.Sequential(*embedding_layers(features_dim + action_dim + 1, action_dim, widths[0], len(widths)))

    def velocity(self, features: th.Tensor, points: th.Tensor, times: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param points: On the way from noise to actions, ``(batch, action_dim)``
        :param times: From 0 to 1, ``(batch, 1)``
        :return: Where the way leads, ``(batch, action_dim)``
        """
        return self.field(th.cat((features, points, times), dim=1))

    def loss(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        r"""
        :math:`\lVert v(x, (1-t) a_0 + t a, t) - (a - a_0) \rVert^2` with noise :math:`a_0` and an even :math:`t`.

        :param features: ``(batch, features_dim)``
        :param actions: Of the data, scaled to [-1, 1], ``(batch, action_dim)``
        :return: Scalar
        """
        noise = th.randn_like(actions)
        times = th.rand(len(actions), 1, device=actions.device)
        points = th.lerp(noise, actions, times)
        return (self.velocity(features, points, times) - (actions - noise)).square().sum(dim=1).mean()

    @th.no_grad()
    def sample(self, features: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :param noise: ``(batch, action_dim)``
        :return: The actions that this noise flows to, in [-1, 1], ``(batch, action_dim)``
        """
        points = noise
        for step in range(self.n_steps):
            times = th.full((len(noise), 1), step / self.n_steps, device=noise.device)
            points = points + self.velocity(features, points, times) / self.n_steps
        return points.clamp(-1.0, 1.0)
