"""Target encoders: their embeddings are what the predictor has to guess."""

import copy
from typing import Any

import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.digests import id_of
from sb3_jepa.common.torch_privates import interpolate_each
from sb3_jepa.common.versions import Versions


def target_module(encoder: nn.Module) -> nn.Module:
    """
    An encoder of which only a part gives targets, such as the encoder of single views below an aggregator of a history,
    names that part by a property ``target_module``.

    :param encoder: The context encoder
    :return: The part that target encoders copy and follow; by default all of it
    """
    return getattr(encoder, "target_module", encoder)


class TargetEncoder(nn.Module):
    """
    An encoder that gives targets: without gradient, and always in evaluation mode. This one stays as it is (a *frozen
    teacher*, SALT, arXiv 2509.24317).

    :param encoder: Its :func:`target_module` is copied
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        encoder = checks.instance("encoder", encoder, nn.Module)
        self.encoder = copy.deepcopy(target_module(encoder)).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TargetEncoder":
        """Stay in evaluation mode, whatever mode the parent module is put in."""
        return super().train(False)

    @th.no_grad()
    def forward(self, *inputs: Any) -> th.Tensor:
        """
        :param inputs: What the encoder takes
        :return: Target embedding ``(batch, embed_dim)``, without gradient
        """
        return self.encoder(*inputs)

    @th.no_grad()
    def encode_tokens(self, observations: Any, places: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: What the encoder takes
        :param places: The tokens that are visible, as of :class:`~sb3_jepa.parts.TokenEncoder`; None for all
        :return: The outputs of class tokens and tokens, ``(batch, class_tokens + tokens, embed_dim)``, without gradient
        """
        return self.encoder.encode_tokens(observations, places)  # type: ignore[operator]

    def update(self, encoder: nn.Module, momentum: float) -> None:
        """
        Without effect: it is frozen.

        :param encoder: The context encoder
        :param momentum: ``m``
        """

    def copy_buffers(self, encoder: nn.Module) -> None:
        """
        Without effect: it keeps the input statistics that it was trained with.

        :param encoder: The context encoder
        """

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that tell it from others."""
        return id_of(self.encoder)


class MomentumEncoder(TargetEncoder):
    r"""
    A copy of the context encoder's :func:`target_module` that follows it slowly,
    :math:`\bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta`
    (*JEPA for RL*, arXiv 2504.16591, section 3). Equal to the context encoder at the start.

    :param encoder: The context encoder
    """

    def __init__(self, encoder: nn.Module):
        super().__init__(encoder)
        self._copied = Versions()

    def __getstate__(self) -> dict[str, Any]:
        # Do not pickle the versions: PyTorch counts those of a copy's buffers from 0
        return dict(super().__getstate__(), _copied=Versions())

    @th.no_grad()
    def update(self, encoder: nn.Module, momentum: float) -> None:
        """
        Move one step towards the context encoder.

        :param encoder: The context encoder
        :param momentum: ``m``; 1 leaves the target as it is, 0 copies the context encoder
        """
        own: list[th.Tensor] = list(self.encoder.parameters())
        # PyTorch refuses an empty list
        if own:
            interpolate_each(own, list(target_module(encoder).parameters()), 1.0 - momentum)
        self.copy_buffers(encoder)

    @th.no_grad()
    def copy_buffers(self, encoder: nn.Module) -> None:
        """
        Take over what is measured and not learned, such as input statistics: context and target must see the same.

        :param encoder: The context encoder
        """
        own, theirs = list(self.encoder.buffers()), list(target_module(encoder).buffers())
        # Skip the copy if buffers have not changed: what is computed from them is cached by their versions
        if self._copied.match(own + theirs):
            return
        for one, other in zip(own, theirs, strict=True):
            one.copy_(other)
        self._copied = Versions(own + theirs)
