"""Settings of a pretraining and of recordings: checked before anything begins, and written for others to read."""

import torch as th
from stable_baselines3.common.utils import get_device

from sb3_jepa.common import checks

# Whether more of it is better
CRITERIA = {"validation_loss": False, "probe_r2": True}


def find_device(device: th.device | str) -> th.device:
    """
    :param device: Device on which the code should run
    :return: The device
    :raises ValueError: If it is none of PyTorch's, or not there
    """
    try:
        return get_device(checks.instance("device", device, (str, th.device)))
    except RuntimeError as error:
        raise ValueError(f"`device` must be one of PyTorch's, got {device!r}. {error}") from error
