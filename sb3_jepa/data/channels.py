"""Images as a Stable-Baselines3 policy sees them: with their channels first."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first, maybe_transpose
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.spaces import spaces_by_key


def channels_first(space: spaces.Space) -> spaces.Space:
    """As a policy sees it."""
    if isinstance(space, spaces.Dict):
        # Pass pairs: a Dict space sorts the keys of a dictionary
        return spaces.Dict([(key, channels_first(one)) for key, one in space.items()])
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


def transpose(observations: Any, space: spaces.Space) -> Any:
    """Views of the observations as a policy sees them."""
    keyed = spaces_by_key(space)
    arrays = by_key(observations)
    return as_observations(
        {key: maybe_transpose(array, keyed[key]) if key in keyed else array for key, array in arrays.items()}
    )
