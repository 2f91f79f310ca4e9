"""Stable-Baselines3's algorithms, trained jointly with a JEPA objective."""

from sb3_jepa.algorithms.joint import A2C, PPO

__all__ = ["A2C", "PPO"]
