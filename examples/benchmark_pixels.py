"""Frames per second of pixel CartPole, and of the same through Gymnasium's own wrappers.

python examples/benchmark_pixels.py
"""

import argparse
import os
import time
from statistics import median

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import gymnasium as gym
from gymnasium.wrappers import AddRenderObservation, FrameStackObservation, GrayscaleObservation, ResizeObservation

from sb3_jepa.envs.pixels import PixelObservation


def with_gymnasium(env: gym.Env) -> gym.Env:
    env = ResizeObservation(AddRenderObservation(env, render_only=True), (64, 96))
    return FrameStackObservation(GrayscaleObservation(env), 3)


def frames_per_second(env: gym.Env, steps: int) -> float:
    env.reset(seed=0)
    env.action_space.seed(0)
    start = time.perf_counter()
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="environment steps per repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    envs = {}
    for name, wrap in (("Gymnasium's wrappers", with_gymnasium), ("PixelObservation", PixelObservation)):
        envs[name] = wrap(gym.make("CartPole-v1", render_mode="rgb_array"))
    # Take turns, so that other load on the machine slows both
    rates: dict[str, list[float]] = {name: [] for name in envs}
    for _ in range(arguments.repeats):
        for name, env in envs.items():
            rates[name].append(frames_per_second(env, arguments.steps))
    for name, values in rates.items():
        print(f"{name:22}{median(values):8.0f} frames/s (from {min(values):.0f} to {max(values):.0f})")
    slow, fast = rates.values()
    print(f"{'ratio':22}{median(b / a for a, b in zip(slow, fast, strict=True)):8.1f}")


if __name__ == "__main__":
    main()
