"""Replay buffers that store the frames of images once."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa.buffers.frames import FrameStacks, has_frames
from sb3_jepa.buffers.shifted_images import check_random_shift, shift_images
from sb3_jepa.common import checks
from sb3_jepa.common.observations import as_observations, by_key


class SharedFrames(ReplayBuffer):
    """
    Makes a replay buffer store each frame of its images once: not again for every stack that it is part of, nor for
    next observations, see :class:`~sb3_jepa.frames.FrameStacks`. What is sampled is the same, bit by bit.

    :param buffer_size: Max number of element in the buffer
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param n_envs: Number of parallel environments
    :param optimize_memory_usage: Not accepted, for next observations are stored once already
    :param handle_timeout_termination: Handle timeout termination (due to timelimit) separately and treat the task as
        infinite horizon task
    :param random_shift: By how many pixels the images of each sample are shifted at random, those of observations and
        of next observations by draws of their own, see :func:`~sb3_jepa.parts.random_shift`; 0 for none
    :raises ValueError: With ``optimize_memory_usage``; or if ``random_shift`` is not 0 and there is no image, or one
        that is not larger
    """

    # What a buffer that was pickled before there was a shift goes on with
    random_shift = 0

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        random_shift: int = 0,
    ):
        if checks.flag("optimize_memory_usage", optimize_memory_usage):
            raise ValueError(
                f"{type(self).__name__} stores next observations once by itself, and forgets none: "
                "`optimize_memory_usage` must be False, got True"
            )
        self.random_shift = check_random_shift(random_shift, observation_space)
        keyed = by_key(observation_space)
        spaces_of_frames = {key: space for key, space in keyed.items() if has_frames(space)}
        # An array of the whole stacks is not even to be asked for
        nothing = {key: spaces.Box(0, 1, (0,), space.dtype) for key, space in spaces_of_frames.items()}
        allocated = as_observations({**keyed, **nothing})
        super().__init__(
            buffer_size,
            spaces.Dict(allocated) if isinstance(observation_space, spaces.Dict) else allocated,
            action_space,
            device,
            n_envs=n_envs,
            handle_timeout_termination=handle_timeout_termination,
        )
        self.observation_space = observation_space
        self.obs_shape = get_obs_shape(observation_space)  # type: ignore[assignment]
        observations, next_observations = dict(by_key(self.observations)), dict(by_key(self.next_observations))
        for key, space in spaces_of_frames.items():
            size = self.buffer_size, n_envs, space.shape, space.dtype
            observations[key] = FrameStacks(*size)
            next_observations[key] = FrameStacks(*size, beside=observations[key])
        self.observations, self.next_observations = as_observations(observations), as_observations(next_observations)

    def to_torch(self, array: np.ndarray, copy: bool = True) -> th.Tensor:
        """
        :param array: Samples
        :param copy: Without effect: samples are copies of what is stored already
        :return: The same as a tensor
        """
        return super().to_torch(array, copy=False)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """
        :param batch_size: Number of samples
        :param env: What normalizes observations and rewards
        :return: Samples, whose images are shifted with ``random_shift``
        """
        samples = super().sample(batch_size, env=env)
        return samples._replace(
            observations=self.shift(samples.observations), next_observations=self.shift(samples.next_observations)
        )

    def shift(self, observations: Any) -> Any:
        """
        Shift images as those of samples are, each observation by a draw of its own.

        :param observations: Tensor ``(batch, ..., *observation shape)``, or a dictionary of such
        :return: The shifted observations; with ``random_shift=0`` the same
        """
        return shift_images(observations, self.observation_space, self.random_shift)


class FrameReplayBuffer(SharedFrames):
    """
    Replay buffer for images and stacks of them with a fraction of the memory, see :class:`SharedFrames`. Pass it as
    ``replay_buffer_class``. The parameters are those of ``ReplayBuffer`` and ``random_shift``.

    :raises ValueError: If the observations are a ``Dict``, or as :class:`SharedFrames`
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"FrameReplayBuffer takes observations of a single array, got {observation_space}: "
                "use FrameDictReplayBuffer"
            )
        super().__init__(buffer_size, observation_space, *args, **kwargs)


class FrameDictReplayBuffer(SharedFrames, DictReplayBuffer):  # type: ignore[misc]
    """
    The same for ``Dict`` observations: each image of them is stored with a fraction of the memory, see
    :class:`SharedFrames`. Pass it as ``replay_buffer_class``. The parameters are those of ``DictReplayBuffer``
    and ``random_shift``.

    :raises ValueError: If the observations are no ``Dict``, or as :class:`SharedFrames`
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"FrameDictReplayBuffer takes Dict observations, got {observation_space}: use FrameReplayBuffer"
            )
        super().__init__(buffer_size, observation_space, *args, **kwargs)


def frame_buffer_class(observation_space: spaces.Space) -> type[ReplayBuffer] | None:
    """
    :param observation_space: Observation space
    :return: The class that stores its frames once; None if it has none
    """
    if not any(has_frames(space) for space in by_key(observation_space).values()):
        return None
    return FrameDictReplayBuffer if isinstance(observation_space, spaces.Dict) else FrameReplayBuffer
