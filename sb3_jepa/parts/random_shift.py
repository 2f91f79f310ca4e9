"""
Random shift: every image moves by a few pixels, so that an encoder cannot learn where exactly something is seen.

Kostrikov et al. 2020, *Image Augmentation Is All You Need* (DrQ), arXiv 2004.13649: an image is padded by 4 pixels that
repeat its edge, and cropped to its size at a random place. Here the pixels are looked up where that crop has them from,
and no padded copy is made::

    shifted = random_shift(images, pad=4)
"""

import torch as th

from sb3_jepa.common import checks


def random_shift(images: th.Tensor, pad: int, channels_last: bool = False) -> th.Tensor:
    """
    Move each sample by a random number of pixels in both directions. What moves in repeats the edge. All channels and
    frames of a sample move alike. The random numbers are those of PyTorch's global generator on the images' device.

    :param images: Of any type, ``(batch, ..., height, width)``, or ``(batch, ..., height, width, channels)``
    :param pad: By how many pixels a sample moves at most; 0 for not at all, without a random number
    :param channels_last: Whether an axis of channels follows height and width
    :return: The shifted images, of the same shape and type
    :raises ValueError: If ``pad`` is negative, or as large as the height or width
    """
    is_last = checks.flag("channels_last", channels_last)
    height, width = images.shape[-3:-1] if is_last else images.shape[-2:]
    if checks.whole_number("pad", pad, 0) >= min(height, width):
        checks.refuse("pad", f"smaller than the sides of the images, {height} and {width}", pad)
    if pad == 0 or images.numel() == 0:
        return images
    offsets = th.randint(-pad, pad + 1, (2, len(images), 1), device=images.device)
    rows = (th.arange(height, device=images.device) + offsets[0]).clamp_(0, height - 1)
    columns = (th.arange(width, device=images.device) + offsets[1]).clamp_(0, width - 1)
    source = (rows[:, :, None] * width + columns[:, None]).view(len(images), 1, height * width)
    shape: tuple[int, ...] = (len(images), -1, height * width)
    if is_last:
        shape, source = (*shape, images.shape[-1]), source[..., None]
    pixels = images.reshape(shape)
    # Without channels this is the last axis, along which a look-up takes a third of the time
    return pixels.gather(2, source.expand_as(pixels)).view(images.shape)
