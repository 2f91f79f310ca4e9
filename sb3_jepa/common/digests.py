"""Digests: a few digits by which encoders and data sets are told apart."""

import hashlib
from collections.abc import Iterable

from torch import nn


def digest(chunks: Iterable[bytes]) -> str:
    """Eight hexadecimal digits of contents, given in parts."""
    hashed = hashlib.sha256()
    for chunk in chunks:
        hashed.update(chunk)
    return hashed.hexdigest()[:8]


def id_of(module: nn.Module) -> str:
    """A digest of a network's parameters and buffers."""
    state = module.state_dict().items()
    return digest(part for name, value in state for part in (name.encode(), value.detach().cpu().numpy().tobytes()))
