"""How fast a transformer with a JEPA trains, beside Stable-Baselines3's CnnPolicy, from the same environment.

    python examples/benchmark_training.py

All arms have one process and take turns, rollout by rollout, so that whatever else the machine does slows all of them:
what counts are the ratios. All have the same PPO settings: rollouts of 8 x 128 steps, minibatches of 128, 4 epochs.
"""

import argparse
import os
import time
from statistics import median
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.utils.flop_counter import FlopCounterMode

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.envs.pixels import make_pixel_vec_env

PPO_SETTINGS: dict[str, Any] = dict(n_steps=128, batch_size=128, n_epochs=4, learning_rate=3e-4, target_kl=None)
NO_JEPA = dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0)
# The paper's layout: each patch of each frame is a token (it leaves their size open)
TOKENS = dict(frames_as="tokens", patch_size=14)
# Frame size, and policy_kwargs of a JepaPolicy; None for CnnPolicy
ARMS: dict[str, tuple[Any, dict[str, Any] | None]] = {
    "CnnPolicy": (64, None),
    "JepaPolicy": (64, {}),
    "JepaPolicy without JEPA": (64, dict(objective_kwargs=NO_JEPA)),
    # Options that change what is computed
    "JepaPolicy, targets by rollout": (64, dict(objective_kwargs=dict(target_refresh="rollout"))),
    "JepaPolicy, 12 of 24 tokens": (64, dict(features_extractor_kwargs=dict(token_budget=12))),
    "CnnPolicy, 84 x 84": ((84, 84), None),
    "JepaPolicy, 84 x 84, frames as tokens": ((84, 84), dict(features_extractor_kwargs=TOKENS)),
    "JepaPolicy, 84 x 84, 24 of 108 tokens": (
        (84, 84),
        dict(features_extractor_kwargs=dict(TOKENS, token_budget=24)),
    ),
}
# (numerator, denominator) of steps per second
RATIOS = [
    ("JepaPolicy", "CnnPolicy"),
    ("JepaPolicy", "JepaPolicy without JEPA"),
    ("JepaPolicy, targets by rollout", "CnnPolicy"),
    ("JepaPolicy, targets by rollout", "JepaPolicy without JEPA"),
    ("JepaPolicy, 12 of 24 tokens", "CnnPolicy"),
    ("JepaPolicy, 84 x 84, frames as tokens", "CnnPolicy, 84 x 84"),
    ("JepaPolicy, 84 x 84, 24 of 108 tokens", "CnnPolicy, 84 x 84"),
]


def make_model(frame_size: Any, policy_kwargs: dict[str, Any] | None) -> BaseAlgorithm:
    env = make_pixel_vec_env("CartPole-v1", n_envs=8, seed=0, frame_size=frame_size)
    if policy_kwargs is None:
        return stable_baselines3.PPO("CnnPolicy", env, seed=0, **PPO_SETTINGS)
    return PPO(JepaPolicy, env, policy_kwargs=policy_kwargs, seed=0, **PPO_SETTINGS)


class Timed:
    """
    A training that goes on one rollout at a time, and the seconds that its parts take.

    :param model: To be trained
    """

    def __init__(self, model: BaseAlgorithm):
        self.model: Any = model
        self.seconds: dict[str, list[float]] = dict(environment=[], rollout=[], update=[])
        self._in_environment = 0.0
        self._time(self.model, "train", "update")
        self._time(self.model, "collect_rollouts", "rollout")
        env: Any = self.model.env
        step = env.step

        def timed_step(actions: Any) -> Any:
            start = time.perf_counter()
            result = step(actions)
            self._in_environment += time.perf_counter() - start
            return result

        env.step = timed_step

    def _time(self, owner: Any, name: str, part: str) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, self._in_environment = time.perf_counter(), 0.0
            result = method(*args, **kwargs)
            # What the environment takes is a row of its own
            self.seconds[part].append(time.perf_counter() - start - self._in_environment)
            if part == "rollout":
                self.seconds["environment"].append(self._in_environment)
            return result

        setattr(owner, name, timed)

    def go_on(self, is_first: bool) -> None:
        """One rollout and one update; at first the inputs are measured too, and nothing is timed."""
        self.model.learn(1024, reset_num_timesteps=is_first)
        if is_first:
            for values in self.seconds.values():
                values.clear()

    def flops_of_update(self) -> int:
        """Floating-point operations of one update, in products of matrices, attention and convolutions."""
        counter = FlopCounterMode(display=False)
        train = self.model.train

        def counted() -> None:
            with counter:
                train()

        self.model.train = counted
        self.go_on(is_first=False)
        self.model.train = train
        # Drop the times of this rollout: counting slows it
        for values in self.seconds.values():
            values.pop()
        return counter.get_total_flops()

    def steps_per_second(self) -> list[float]:
        return [1024 / sum(parts) for parts in zip(*self.seconds.values(), strict=True)]

    def action_milliseconds(self, n_actions: int = 200) -> float:
        """What one action for one observation takes."""
        observation = self.model._last_obs[0]
        start = time.perf_counter()
        for _ in range(n_actions):
            self.model.predict(observation, deterministic=True)
        return 1000 * (time.perf_counter() - start) / n_actions


def product_flops(size: int = 2048) -> float:
    """Floating-point operations per second of a large matrix product."""
    matrix = th.ones(size, size)
    start = time.perf_counter()
    matrix @ matrix
    return 2 * size**3 / (time.perf_counter() - start)


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rollouts of each arm (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="(default: all)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    arguments = parser.parse_args()

    th.set_num_threads(arguments.threads)
    trainings = {name: Timed(make_model(*ARMS[name])) for name in arguments.arms}
    ratios = [pair for pair in RATIOS if set(pair) <= set(trainings)]
    products = []
    for repeat in range(arguments.repeats + 1):
        products.append(product_flops())
        for training in trainings.values():
            training.go_on(is_first=repeat == 0)
    # Take turns, as above
    latencies = [
        {name: training.action_milliseconds() for name, training in trainings.items()} for _ in range(arguments.repeats)
    ]

    # The first one of each has to warm up
    flops = {name: training.flops_of_update() for name, training in trainings.items()}
    shares = {
        name: [
            flops[name] / seconds / product
            for seconds, product in zip(training.seconds["update"], products[1:], strict=True)
        ]
        for name, training in trainings.items()
    }

    print("Milliseconds for 1,024 steps, median; steps per second")
    for name, training in trainings.items():
        parts = "".join(f"{part} {1000 * median(values):6.0f}  " for part, values in training.seconds.items())
        print(f"{name:40}{parts}{median(training.steps_per_second()):6.0f}/s")
    print("Operations of an update; their number per second as a share of a large matrix product's")
    for name in trainings:
        print(f"{name:40}{flops[name] / 1e9:4.0f} GFLOP  {spread(shares[name])}")
    print("Ratios, rollout by rollout: median [smallest, largest]")
    for one, other in ratios:
        pairs = list(zip(trainings[one].steps_per_second(), trainings[other].steps_per_second(), strict=True))
        print(f"{one} / {other}: steps per second {spread([a / b for a, b in pairs])}")
        updates = zip(trainings[one].seconds["update"], trainings[other].seconds["update"], strict=True)
        print(f"{one} / {other}: update time {spread([a / b for a, b in updates])}")
        actions = [latency[one] / latency[other] for latency in latencies]
        print(f"{one} / {other}: time of one action {spread(actions)}")


if __name__ == "__main__":
    main()
