"""Environments with the observations that a model takes."""

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.common.sb3_privates import wrap_env
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.extractors.finding import find_encoders
from sb3_jepa.extractors.tokenization import count_frames


def make_env_for(model: BaseAlgorithm, env_id: str, n_envs: int = 8, seed: int | None = None) -> VecEnv:
    """
    Environments with the observations that a model takes: as they are, or seen through their rendered frames. (Three
    channels are taken for three grey frames, unless the encoder was told that ``frames=1``.)

    :param model: Of any algorithm
    :param env_id: ID of the environment; ``"module:ID"`` imports a module that registers it
    :param n_envs: Number of environments in parallel
    :param seed: Seed of the environments' random numbers
    :return: The environments, wrapped as the model's own were
    :raises ValueError: If the observations do not fit
    """
    try:
        env = wrap_env(make_vec_env(env_id, n_envs=n_envs, seed=seed))
    except gym.error.Error as error:
        raise ValueError(f"`env_id` must be the ID of an environment, got {env_id!r}. {error}") from error
    wanted = model.observation_space
    if env.observation_space != wanted and is_image_space(wanted):
        assert isinstance(wanted, spaces.Box)
        env.close()
        n_channels, height, width = wanted.shape
        (extractor, *_) = find_encoders(model.policy).values()
        frames = getattr(extractor, "frames", None) or count_frames(n_channels)
        env = make_pixel_vec_env(
            env_id, n_envs, seed, frame_size=(height, width), grayscale=frames == n_channels, frames=frames
        )
    if (env.observation_space, env.action_space) != (wanted, model.action_space):
        raise ValueError(
            f"The model takes {wanted} and gives {model.action_space}, and {env_id} gives {env.observation_space} and "
            f"takes {env.action_space}. Make the environment yourself, and call "
            "`sb3_jepa.report.write_report(model, env, out)`"
        )
    return env
