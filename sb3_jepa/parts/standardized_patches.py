"""Tokenizers of images and grids whose input is standardised."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.parts.patches import PatchTokenizer
from sb3_jepa.parts.places import take_places
from sb3_jepa.parts.standardization import InputStandardization
from sb3_jepa.parts.token_selection import TokenSelection

# With fewer images, standardise the images and not the weights
MIN_IMAGES_TO_FOLD = 16
# If a larger share of patches differs from the mean, one product for all is faster
MAX_SHARE_IN_FRONT = 0.75


class StandardizedPatchTokenizer(nn.Sequential):
    r"""
    Standardised patches in one matrix product. Standardisation is linear, and so is the projection of a patch: in the
    place of each pixel, the weights are standardised, :math:`W (C x - C \mu) / \sigma = (W C / \sigma) (x - \mu)` with
    :math:`C` for the changes from frame to frame. Images may be bytes, 0 to 255, as they are stored.

    :param standardization: Of images
    :param tokenizer: Of their patches
    :param drop_constant_tokens: Whether to leave out the patches that never changed while the images were measured,
        see :class:`~sb3_jepa.parts.token_selection.TokenSelection`
    :param token_budget: How many tokens each image keeps at most, those that differ most from what is already known;
        None for all
    """

    def __init__(
        self,
        standardization: InputStandardization,
        tokenizer: PatchTokenizer,
        drop_constant_tokens: bool = False,
        token_budget: int | None = None,
    ):
        checks.instance("standardization", standardization, InputStandardization)
        super().__init__(standardization, checks.instance("tokenizer", tokenizer, PatchTokenizer))
        self.selection: TokenSelection | None = None
        if checks.flag("drop_constant_tokens", drop_constant_tokens) or token_budget is not None:
            self.selection = TokenSelection(standardization, tokenizer, drop_constant_tokens, token_budget)

    @property
    def standardization(self) -> InputStandardization:
        """What standardises the images."""
        return self[0]  # type: ignore[return-value]

    @property
    def tokenizer(self) -> PatchTokenizer:
        """What makes tokens of their patches."""
        return self[1]  # type: ignore[return-value]

    def places(self, images: th.Tensor) -> th.Tensor | None:
        """
        :param images: As of :meth:`forward`
        :return: The places of their tokens, ``(tokens,)`` if they are the same in all images, else
            ``(batch, tokens)``; None if there is a token for each place
        """
        return None if self.selection is None else self.selection.places(self.tokenizer.patches(images).flatten(1, 3))

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: ``(batch, frames * channels, height, width)``, uint8 from 0 to 255, or already scaled to [0, 1]
        :return: ``(batch, tokens, embed_dim)``, ordered by frame, row, column
        """
        scale = 1.0 / 255.0 if images.dtype == th.uint8 else 1.0
        if self._goes_step_by_step(images):
            return self.tokenizer(self.standardization(images * scale), self.places(images))
        return self._forward_folded(images, scale)

    def token_inputs(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: As of :meth:`forward`
        :return: The standardised pixels of all places, ``(batch, places, pixels)``
        """
        images = images / 255.0 if images.dtype == th.uint8 else images
        return self.tokenizer.token_inputs(self.standardization(images))

    def _goes_step_by_step(self, images: th.Tensor) -> bool:
        # In an export, the number of images is not known
        if self.standardization.is_measuring or th.compiler.is_exporting():
            return True
        # With rounded weights, frames and the changes between them would not cancel
        if th.is_autocast_enabled(images.device.type):
            return True
        # A few images are standardised faster than the weights. A compiled graph is for any number of images
        return not th.compiler.is_compiling() and len(images) < MIN_IMAGES_TO_FOLD

    def _forward_folded(self, images: th.Tensor, scale: float) -> th.Tensor:
        standardization, tokenizer = self.standardization, self.tokenizer
        weight = tokenizer.projection.weight
        by_frame = weight.unflatten(1, (standardization.changes_of, -1))  # (embed_dim, frames, pixels of a frame)
        # One deviation for each frame; if frames are tokens of their own, one for all frames
        deviation = standardization.deviation.view(standardization.changes_of, -1)[:, :1]
        of_pixels = standardization.changes_to_frames(by_frame / deviation)
        # Subtract the mean before the product: after it, the difference of two large numbers would not be exact
        mean = tokenizer.patches(standardization.mean_of_frames[None] / scale)
        patches, code = tokenizer.patches(images), tokenizer.place_code
        patches, mean, code = (one.flatten(1, 3) for one in (patches, mean, code[None]))
        places = None if self.selection is None else self.selection.places(patches)
        if places is not None:
            patches = take_places(patches, places)
            mean, code = (F.embedding(places, one[0]) for one in (mean, code))
        code = code + tokenizer.projection.bias
        weight = (of_pixels * scale).flatten(1)
        # Only on the CPU: elsewhere, counting the patches that differ would wait for the device
        if places is None and patches.dtype == th.uint8 and patches.device.type == "cpu":
            products = self._project_foreground(patches, mean, weight)
            if products is not None:
                return products + code
        # Change the floats made of bytes in place: allocating so much again takes several times as long
        patches = patches.to(weight.dtype).sub_(mean) if patches.dtype == th.uint8 else patches - mean
        return F.linear(patches, weight) + code

    @staticmethod
    def _project_foreground(patches: th.Tensor, mean: th.Tensor, weight: th.Tensor) -> th.Tensor | None:
        """
        Most patches of a rendered frame are background: equal to the mean, byte for byte, in all images. One product is
        theirs, and the others have one each.

        :param patches: ``(batch, places, pixels)``, uint8
        :param mean: ``(1, places, pixels)``, of the same scale
        :param weight: ``(embed_dim, pixels)``
        :return: ``(batch, places, embed_dim)``; None if most patches differ, or while a graph is made
        """
        if th.compiler.is_compiling():
            return None
        background = mean.round().to(th.uint8)
        # Compare several bytes at once
        n_pixels = patches.shape[-1]
        dtype = th.int64 if n_pixels % 8 == 0 else th.int32 if n_pixels % 4 == 0 else th.uint8
        differs = (patches.view(dtype) != background.view(dtype)).any(dim=-1)
        rows = differs.flatten().nonzero()[:, 0]
        if len(rows) > MAX_SHARE_IN_FRONT * differs.numel():
            return None
        in_front = patches.flatten(0, 1).index_select(0, rows).to(weight.dtype)
        in_front.sub_(mean[0].index_select(0, rows % patches.shape[1]))
        products = F.linear(background - mean, weight).expand(len(patches), -1, -1).flatten(0, 1)
        return products.index_copy(0, rows, F.linear(in_front, weight)).unflatten(0, (len(patches), -1))


class StandardizedGridTokenizer(nn.Sequential):
    """
    Patches of a grid whose channels have units of their own. Their deviations follow the data. The means stay as they
    were measured: a patch at the border is filled up with zeros, and one bias for all patches could not make up for
    other means there.

    :param standardization: Of the grid, by channel
    :param tokenizer: Of its patches
    """

    def __init__(self, standardization: InputStandardization, tokenizer: PatchTokenizer):
        checks.instance("standardization", standardization, InputStandardization)
        super().__init__(standardization, checks.instance("tokenizer", tokenizer, PatchTokenizer))

    def follow(self, grids: th.Tensor) -> None:
        """
        Let the deviations follow the data; tokens stay as they are, see
        :meth:`~sb3_jepa.parts.standardization.InputStandardization.follow`.

        :param grids: ``(batch, channels, height, width)``
        """
        ratio, _ = self[0].follow(grids, mean_stays=True)  # type: ignore[operator]
        self[1].absorb(ratio)  # type: ignore[operator]
