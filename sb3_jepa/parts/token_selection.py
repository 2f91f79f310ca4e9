"""Which patches of an image become tokens."""

from typing import Any

import torch as th

from sb3_jepa.common import checks
from sb3_jepa.common.versions import Versions
from sb3_jepa.parts.patches import PatchTokenizer
from sb3_jepa.parts.standardization import InputStandardization


class TokenSelection:
    """
    Leaves out the tokens of images that say little.

    A patch is constant if none of its pixels ever changed while the input statistics were measured. It is left out of
    all images alike.

    With a budget, each image keeps the patches that differ most from what is already known: from the same patch of the
    frame before, or from the mean of the input statistics where no frame came before, or where a token holds all
    frames of its place. This is the run-length tokenization of Choudhury et al. 2024 (*Don't Look Twice*, arXiv
    2411.05222), which measures the difference likewise as a sum of absolute values, but with a number of tokens in the
    place of a threshold, so that batches stay rectangular, and without a code for the length of a run.

    :param standardization: Of the images; tells what changed
    :param tokenizer: Of their patches
    :param drop_constant_tokens: Whether to leave out the patches that are constant
    :param token_budget: How many tokens an image keeps at most; None for all
    :raises ValueError: If the budget is not positive
    """

    def __init__(
        self,
        standardization: InputStandardization,
        tokenizer: PatchTokenizer,
        drop_constant_tokens: bool = False,
        token_budget: int | None = None,
    ):
        self.standardization, self.tokenizer = standardization, tokenizer
        self.drop_constant_tokens = checks.flag("drop_constant_tokens", drop_constant_tokens)
        self.token_budget = checks.optional(checks.whole_number, "token_budget", token_budget)
        self._forget()

    def _forget(self) -> None:
        self._varying: th.Tensor | None = None
        self._noticed = Versions()

    def __getstate__(self) -> dict[str, Any]:
        # Do not pickle what is cached: PyTorch counts the versions of a copy's statistics from 0
        return {name: value for name, value in vars(self).items() if name not in ("_varying", "_noticed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def update(self) -> None:
        """
        Note which patches are constant, if the input statistics have changed since. It waits for the device only then.
        To be called before a compiled function that makes tokens: what it decides is not part of a graph.
        """
        variance = self.standardization.variance
        if not self.drop_constant_tokens or self._noticed.match([variance]):
            return
        varies = (self.tokenizer.patches(variance[None]) > 0).any(dim=-1).flatten()
        if self.standardization.n_seen == 0 or varies.all():
            self._varying = None
        else:
            # Keep one token even if nothing changes
            varies[0] |= ~varies.any()
            self._varying = varies.nonzero().flatten()
        self._noticed = Versions([variance])

    def places(self, patches: th.Tensor) -> th.Tensor | None:
        """
        :param patches: ``(batch, places, pixels)``, ordered by frame, row, column; uint8 from 0 to 255, or already
            scaled to [0, 1]
        :return: The places that are kept, in order: ``(tokens,)`` if they are the same in all images, else
            ``(batch, tokens)``; None for all of them
        """
        if not th.compiler.is_compiling():
            self.update()
        varying = self._varying
        if self.token_budget is None or self.token_budget >= (patches.shape[1] if varying is None else len(varying)):
            return varying
        differences = self._differences(patches)
        if varying is not None:
            differences = differences.index_select(1, varying)
        n_places = differences.shape[1]
        # Break ties by the place, so that all devices choose the same tokens
        ranks = differences.long() * n_places + th.arange(n_places - 1, -1, -1, device=differences.device)
        chosen = ranks.topk(self.token_budget, dim=1, sorted=False).indices.sort(dim=1).values
        return chosen if varying is None else varying[chosen]

    def _differences(self, patches: th.Tensor) -> th.Tensor:
        """Of each patch from what is already known, ``(batch, places)``."""
        by_frame = _whole(patches).unflatten(1, (self.tokenizer.frames, -1))  # (batch, frames, places, pixels)
        mean = self.tokenizer.patches(self.standardization.mean_of_frames[None])[:, :1].flatten(2, 3)
        # Round the mean to whole numbers, so that a pixel that never changed differs by exactly 0
        differences = _distance(by_frame[:, :1], (mean * 255.0).round().to(by_frame.dtype))
        if self.tokenizer.frames > 1:
            differences = th.cat((differences, _distance(by_frame[:, 1:], by_frame[:, :-1])), dim=1)
        return differences.flatten(1)


def _whole(patches: th.Tensor) -> th.Tensor:
    # Sums of whole numbers are exact in any order, so that bytes and floats choose the same tokens
    if patches.dtype != th.uint8:
        return (patches * 255.0).round().int()
    # ONNX cannot subtract bytes
    return patches.int() if th.compiler.is_exporting() else patches


def _distance(one: th.Tensor, other: th.Tensor) -> th.Tensor:
    # abs(one - other) would overflow: bytes have no sign
    return (th.maximum(one, other) - th.minimum(one, other)).sum(dim=-1, dtype=th.int32)
