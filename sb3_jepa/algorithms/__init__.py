"""Stable-Baselines3's algorithms, trained jointly with a JEPA objective."""

from sb3_jepa.algorithms.joint import A2C, PPO
from sb3_jepa.algorithms.off_policy import DDPG, DQN, SAC, TD3

__all__ = ["A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"]
