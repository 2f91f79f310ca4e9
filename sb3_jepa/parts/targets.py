"""Target encoders: what the predictor has to guess."""

import copy
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.parts.versions import Versions


class MomentumEncoder(nn.Module):
    r"""
    A copy of the context encoder that follows it slowly,
    :math:`\bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta`
    (*JEPA for RL*, arXiv 2504.16591, section 3). Equal to the context encoder at the start, without gradient, always in
    evaluation mode.

    :param encoder: The context encoder
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self._copied = Versions()

    def __getstate__(self) -> dict[str, Any]:
        # The buffers of a copy count their versions anew
        return dict(super().__getstate__(), _copied=Versions())

    def train(self, mode: bool = True) -> "MomentumEncoder":
        """Stay in evaluation mode, whatever mode the parent module is put in."""
        return super().train(False)

    @th.no_grad()
    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: What the context encoder takes
        :return: Target embedding ``(batch, embed_dim)``, without gradient
        """
        return self.encoder(observations)

    @th.no_grad()
    def update(self, encoder: nn.Module, momentum: float) -> None:
        """
        Move one step towards the context encoder.

        :param encoder: The context encoder
        :param momentum: ``m``; 1 leaves the target as it is, 0 copies the context encoder
        """
        th._foreach_lerp_(list(self.encoder.parameters()), list(encoder.parameters()), 1.0 - momentum)
        self.copy_buffers(encoder)

    @th.no_grad()
    def copy_buffers(self, encoder: nn.Module) -> None:
        """
        Take over what is measured and not learned, such as input statistics: context and target must see the same.

        :param encoder: The context encoder
        """
        own, theirs = list(self.encoder.buffers()), list(encoder.buffers())
        # Who works something out from a buffer need not do so again after each update
        if self._copied.are_those_of(own + theirs):
            return
        for one, other in zip(own, theirs, strict=True):
            one.copy_(other)
        self._copied = Versions(own + theirs)
