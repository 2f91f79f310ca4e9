"""Whether tensors have changed, without a look at their values."""

from collections.abc import Sequence

import torch as th

from sb3_jepa.common.torch_privates import version


class Versions:
    """
    Tensors as they are at a moment. PyTorch counts how often a tensor was changed in place, so that nothing is compared
    and no device waited for.

    :param tensors: To be remembered
    """

    def __init__(self, tensors: Sequence[th.Tensor] = ()):
        self._versions = [(tensor, version(tensor)) for tensor in tensors]

    def match(self, tensors: Sequence[th.Tensor]) -> bool:
        """
        :param tensors: As many as were remembered, or others
        :return: Whether they are the same objects, and were not changed since
        """
        return len(tensors) == len(self._versions) and all(
            tensor is one and version(tensor) == known
            for tensor, (one, known) in zip(tensors, self._versions, strict=True)
        )
