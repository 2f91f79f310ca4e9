"""What the diagnostics cost, as a share of the time that a training takes.

    python examples/benchmark_diagnostics.py
    python examples/benchmark_diagnostics.py --vectors

Their time is taken where they are called, in the course of one training, and divided by the time of that training: with
and without them, two trainings would differ by more from one moment of the machine to the next.
"""

import argparse
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaCallback, JepaPolicy, PictureCallback, ProbeCallback
from sb3_jepa.diagnostics import ObjectiveGauge
from sb3_jepa.envs.pixels import make_pixel_vec_env

# What is timed: each method is called by none of the others of its row
PARTS: dict[str, list[tuple[type, str]]] = {
    "scalars": [
        (ObjectiveGauge, "watch_gradient"),
        (ObjectiveGauge, "_keep_gradient"),
        (ObjectiveGauge, "add"),
        (JepaCallback, "_log_update"),
    ],
    "pictures": [(PictureCallback, "_on_step"), (PictureCallback, "_look")],
    "probe": [(ProbeCallback, "_on_step"), (ProbeCallback, "_look")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=42_000, help="environment steps (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=20, help="between pictures and probes (default: %(default)s)")
    parser.add_argument("--vectors", action="store_true", help="CartPole's four numbers, and not its picture")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    seconds = dict.fromkeys(PARTS, 0.0)
    calls = dict.fromkeys(PARTS, 0)

    def time_calls(part: str, owner: type, name: str) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = method(*args, **kwargs)
            seconds[part] += time.perf_counter() - start
            calls[part] += 1
            return result

        setattr(owner, name, timed)

    for part, methods in PARTS.items():
        for owner, name in methods:
            time_calls(part, owner, name)

    make_env = make_vec_env if arguments.vectors else make_pixel_vec_env
    env = VecNormalize(make_env("CartPole-v1", n_envs=8, seed=0), norm_obs=False)
    with tempfile.TemporaryDirectory() as folder:
        model = PPO(JepaPolicy, env, tensorboard_log=folder, seed=0)
        callbacks: list[BaseCallback] = [
            PictureCallback(every_n_rollouts=arguments.rollouts),
            ProbeCallback(attribute="state", every_n_rollouts=arguments.rollouts),
        ]
        start = time.perf_counter()
        model.learn(arguments.timesteps, callback=callbacks, progress_bar=True)
        whole = time.perf_counter() - start
    print(f"{model.num_timesteps} steps in {whole:.1f} s ({model.num_timesteps / whole:.0f} steps/s)")
    for part in PARTS:
        print(f"{part:10}{seconds[part]:8.3f} s{seconds[part] / whole:10.2%} of the training, {calls[part]} calls")


if __name__ == "__main__":
    main()
