"""The convolutions of DrQ, which zero-shot learning from pixels has in its papers."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_jepa.common import checks


class DrqExtractor(BaseFeaturesExtractor):
    """
    Four convolutions of 3x3 with 32 channels, of which the first has a stride of 2, a linear layer, LayerNorm and Tanh:
    the encoder of *DrQ-v2* (Yarats et al. 2021, arXiv 2107.09645), as *TD-JEPA* (arXiv 2510.00739) has it for pixels.
    It takes several times as long as ``NatureCNN``. Its random shift is the replay buffer's:
    ``replay_buffer_kwargs=dict(random_shift=2)``.

    :param observation_space: Images, channels first; in the paper three stacked frames of 64x64
    :param features_dim: Width of the features
    :param normalized_image: Whether images are from 0 to 1 already, as with ``normalize_images=False``
    :raises ValueError: If the observations are no images, or too small
    """

    def __init__(self, observation_space: spaces.Space, features_dim: int = 256, normalized_image: bool = False):
        features_dim = checks.whole_number("features_dim", features_dim)
        normalized_image = checks.flag("normalized_image", normalized_image)
        if not is_image_space(observation_space, check_channels=False, normalized_image=normalized_image):
            checks.refuse("observation_space", "images, channels first", observation_space)
        channels, height, width = observation_space.shape or (0, 0, 0)
        if min(height, width) < 16:
            raise ValueError(f"`observation_space` must have images of at least 16 x 16, got {height} x {width}")
        super().__init__(observation_space, features_dim)
        layers: list[nn.Module] = []
        for stride in (2, 1, 1, 1):
            layers += [nn.Conv2d(channels, 32, 3, stride=stride), nn.ReLU()]
            channels, height, width = 32, (height - 3) // stride + 1, (width - 3) // stride + 1
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(32 * height * width, features_dim), nn.LayerNorm(features_dim), nn.Tanh())
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.orthogonal_(layer.weight, 2.0**0.5 if isinstance(layer, nn.Conv2d) else 1.0)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: From 0 to 1, ``(batch, channels, height, width)``
        :return: ``(batch, features_dim)``
        """
        return self.linear(self.convolutions(observations - 0.5))
