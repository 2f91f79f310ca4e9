"""The networks of zero-shot learning: pure PyTorch."""

import math
from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.parts import InputStandardization
from sb3_jepa.parts.mlp import embedding_layers


def project(vectors: th.Tensor) -> th.Tensor:
    r"""
    Scale vectors to the norm :math:`\sqrt d`, which embeddings and task vectors have.

    :param vectors: ``(..., dim)``
    :return: The same directions
    """
    return math.sqrt(vectors.shape[-1]) * F.normalize(vectors, dim=-1)


class LatentEncoder(nn.Module):
    r"""
    Features, layers, and a projection to the norm :math:`\sqrt d` (section D of *TD-JEPA*, Bagatella et al. 2025, arXiv
    2510.00739). Vectors that no layer has changed yet are standardised, which the paper does not say.

    :param features_extractor: Gives ``(batch, features_dim)``
    :param features_dim: Width of the features
    :param embed_dim: Width of the embedding
    :param hidden_dim: Width of the hidden layers
    :param hidden_layers: Their number; with 0 the features are only mapped linearly
    """

    def __init__(
        self, features_extractor: nn.Module, features_dim: int, embed_dim: int, hidden_dim: int, hidden_layers: int
    ):
        super().__init__()
        self.features_extractor = features_extractor
        # Features that are learned have a scale already
        is_learned = next(features_extractor.parameters(), None) is not None
        self.standardization = nn.Identity() if is_learned else InputStandardization((features_dim,), per="input")
        self.layers = nn.Sequential(*embedding_layers(features_dim, embed_dim, hidden_dim, hidden_layers))

    def features(self, observations: Any) -> th.Tensor:
        """
        :param observations: Preprocessed, ``(batch, ...)`` or a dictionary of such
        :return: What comes before the layers, ``(batch, features_dim)``
        """
        return self.standardization(self.features_extractor(observations))

    def forward(self, observations: Any) -> th.Tensor:
        """
        :param observations: Preprocessed, ``(batch, ...)`` or a dictionary of such
        :return: ``(batch, embed_dim)``, of norm :math:`\\sqrt d`
        """
        return project(self.layers(self.features(observations)))


class JoiningMlp(nn.Module):
    """
    Two inputs, a branch for each (Linear, LayerNorm, Tanh, Linear, ReLU), and layers for both together: the predictors
    and actors of *TD-JEPA* (arXiv 2510.00739, section D).

    :param first_dim: Width of the first input
    :param second_dim: Width of the second input
    :param output_dim: Width of the output
    :param widths: That of the branches, which give half of it each, and those of the layers after them
    """

    def __init__(self, first_dim: int, second_dim: int, output_dim: int, widths: Sequence[int]):
        super().__init__()
        width, *others = widths
        self.first, self.second = (
            nn.Sequential(
                nn.Linear(input_dim, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, width // 2), nn.ReLU()
            )
            for input_dim in (first_dim, second_dim)
        )
        layers: list[nn.Module] = []
        last = 2 * (width // 2)
        for other in others:
            layers += [nn.Linear(last, other), nn.ReLU()]
            last = other
        self.joined = nn.Sequential(*layers, nn.Linear(last, output_dim))

    def forward(self, first: th.Tensor, second: th.Tensor) -> th.Tensor:
        """
        :param first: ``(batch, first_dim)``
        :param second: ``(batch, second_dim)``
        :return: ``(batch, output_dim)``
        """
        return self.joined(th.cat((self.first(first), self.second(second)), dim=1))


class SuccessorPredictor(nn.Module):
    r"""
    Predicts the discounted sum of future embeddings from an embedding, an action and a task vector, under the policy
    for that task: :math:`T(\varphi(s), a, z)`. There are several of them, whose mean counts.

    Of discrete actions, all are predicted in one pass.

    :param embed_dim: Width of the embedding
    :param action_dim: Width of a continuous action, or the number of discrete ones
    :param task_dim: Width of the task vector
    :param output_dim: Width of what is predicted
    :param widths: As of :class:`JoiningMlp`
    :param is_discrete: Whether actions are discrete
    :param n_predictors: How many
    """

    def __init__(
        self,
        embed_dim: int,
        action_dim: int,
        task_dim: int,
        output_dim: int,
        widths: Sequence[int],
        is_discrete: bool = False,
        n_predictors: int = 2,
    ):
        super().__init__()
        self.n_actions = action_dim if is_discrete else None
        self.output_dim = output_dim
        second_dim = embed_dim if is_discrete else embed_dim + action_dim
        outputs = action_dim * output_dim if is_discrete else output_dim
        self.predictors = nn.ModuleList(
            JoiningMlp(embed_dim + task_dim, second_dim, outputs, widths) for _ in range(n_predictors)
        )

    def of_all_actions(self, embeddings: th.Tensor, tasks: th.Tensor) -> th.Tensor:
        """
        :param embeddings: ``(batch, embed_dim)``
        :param tasks: Task vectors ``(batch, task_dim)``
        :return: Of discrete actions, ``(predictors, batch, actions, output_dim)``
        """
        assert self.n_actions is not None
        first = th.cat((embeddings, tasks), dim=1)
        outputs = th.stack([predictor(first, embeddings) for predictor in self.predictors])
        return outputs.unflatten(-1, (self.n_actions, self.output_dim))

    def forward(self, embeddings: th.Tensor, actions: th.Tensor, tasks: th.Tensor) -> th.Tensor:
        """
        :param embeddings: ``(batch, embed_dim)``
        :param actions: Scaled to [-1, 1], ``(batch, action_dim)``; of discrete ones their numbers, ``(batch,)``
        :param tasks: Task vectors ``(batch, task_dim)``
        :return: ``(predictors, batch, output_dim)``
        """
        if self.n_actions is not None:
            return take_actions(self.of_all_actions(embeddings, tasks), actions)
        first, second = th.cat((embeddings, tasks), dim=1), th.cat((embeddings, actions), dim=1)
        return th.stack([predictor(first, second) for predictor in self.predictors])


def take_actions(outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    :param outputs: ``(predictors, batch, actions, output_dim)``
    :param actions: Numbers of actions, ``(batch,)``
    :return: What belongs to these, ``(predictors, batch, output_dim)``
    """
    return outputs[:, th.arange(len(actions), device=actions.device), actions]


def best_action(outputs: th.Tensor, tasks: th.Tensor) -> th.Tensor:
    r"""
    :math:`\arg\max_a T(\varphi(s), a, z)^\top z`, with the mean of the predictors.

    :param outputs: ``(predictors, batch, actions, task_dim)``
    :param tasks: Task vectors ``(batch, task_dim)``
    :return: Numbers of actions, ``(batch,)``
    """
    return th.einsum("bad,bd->ba", outputs.mean(dim=0), tasks).argmax(dim=1)


class TaskActor(nn.Module):
    """
    The mean of the action for a task: :math:`\\pi(\\varphi(s), z)`, in [-1, 1].

    :param embed_dim: Width of what it reads
    :param task_dim: Width of the task vector
    :param action_dim: Width of an action
    :param widths: As of :class:`JoiningMlp`
    :param noise_dim: Width of a noise that it turns into one of several actions; 0 for one action
    """

    def __init__(self, embed_dim: int, task_dim: int, action_dim: int, widths: Sequence[int], noise_dim: int = 0):
        super().__init__()
        self.mlp = JoiningMlp(embed_dim + task_dim, embed_dim + noise_dim, action_dim, widths)

    def forward(self, embeddings: th.Tensor, tasks: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param embeddings: ``(batch, embed_dim)``
        :param tasks: Task vectors ``(batch, task_dim)``
        :param noise: ``(batch, noise_dim)``, if there is one
        :return: ``(batch, action_dim)``
        """
        second = embeddings if noise is None else th.cat((embeddings, noise), dim=1)
        return self.mlp(th.cat((embeddings, tasks), dim=1), second).tanh()


def init_orthogonally(module: nn.Module) -> None:
    """
    Orthogonal weights and biases of 0, as in *TD-JEPA*'s code.

    :param module: Whose linear layers to initialise
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
