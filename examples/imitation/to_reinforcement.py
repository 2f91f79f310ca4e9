"""
From imitation to reinforcement, on CartPole from pixels: an expert that knows the state, 20 demonstrations of it that
are seen as pixels, an ACT-JEPA of these, and PPO that begins with its encoder, beside PPO from scratch.

    python examples/imitation/to_reinforcement.py --seeds 0 1 2 3 4
    python examples/imitation/to_reinforcement.py --table

Demonstrations are made by the first run.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_jepa import ACTJEPA, PPO, JepaPolicy, Recordings, load_encoder
from sb3_jepa.data import read, record_episodes, save_recordings
from sb3_jepa.envs.pixels import make_pixel_vec_env

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import bootstrap_interval

# What PPO's encoder begins as
ARMS = ("from-imitation", "frozen", "from-scratch")
# The expert's return is 500
HALF = 250
HORIZON = 10


class SeesTheState:
    """
    An expert that is told the state of the environments, and not what they show.

    :param model: Of states
    :param env: Environments that have a ``state``
    """

    def __init__(self, model: Any, env: VecEnv):
        self.model, self.env = model, env

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        states = np.array(self.env.get_attr("state"), dtype=np.float32)
        return self.model.predict(states, deterministic=True)[0], None


def demonstrations_in(folder: pathlib.Path, n_episodes: int) -> Recordings:
    """
    :param folder: Where they are, or are saved
    :param n_episodes: How many to record, if there are none
    :return: Demonstrations
    """
    if not folder.exists():
        states = make_vec_env("CartPole-v1", n_envs=8, seed=0)
        expert = stable_baselines3.PPO("MlpPolicy", states, n_steps=128, learning_rate=1e-3, seed=0, device="cpu")
        expert.learn(60_000)
        print("The expert's return:", evaluate_policy(expert, states, 20)[0])
        env = make_pixel_vec_env(lambda: gym.make("CartPole-v1", render_mode="rgb_array"), n_envs=4, seed=0)
        save_recordings(record_episodes(env, SeesTheState(expert, env), n_episodes), folder)
    return read(folder)


class Curve(BaseCallback):
    """Keeps the mean return of the latest episodes, 60 times."""

    def __init__(self, timesteps: int):
        super().__init__()
        self.every, self.curve = max(1, timesteps // 60), list[tuple[int, float]]()

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > len(self.curve) and self.model.ep_info_buffer:
            latest = [info["r"] for info in self.model.ep_info_buffer][-20:]
            self.curve.append((self.num_timesteps, float(np.mean(latest))))
        return True


def mean_return(model: Any, env: VecEnv) -> float:
    """
    :param model: That acts
    :param env: Where
    :return: Of 20 episodes with the most likely actions
    """
    return float(np.mean(evaluate_policy(model, env, 20)[0]))


def run(arm: str, seed: int, demonstrations: Recordings, n_updates: int, timesteps: int) -> dict[str, Any]:
    """
    :param arm: Name
    :param seed: Seed
    :param demonstrations: To imitate
    :param n_updates: Of the imitation
    :param timesteps: Of PPO
    :return: What was measured
    """
    start, result = time.process_time(), dict[str, Any]()
    env = VecNormalize(make_pixel_vec_env("CartPole-v1", n_envs=8, seed=seed), norm_obs=False)
    model = PPO(JepaPolicy, env, seed=seed, device="cpu")
    evaluation_env = make_pixel_vec_env("CartPole-v1", n_envs=4, seed=10_000 + seed)
    if arm != "from-scratch":
        imitation = ACTJEPA("CnnPolicy", evaluation_env, horizon=HORIZON, seed=seed, device="cpu")
        imitation.learn(demonstrations, n_updates=n_updates)
        result.update(imitation=mean_return(imitation, evaluation_env), fit=str(imitation.fit))
        load_encoder(model, imitation, freeze=arm == "frozen")
    curve = Curve(timesteps)
    model.learn(timesteps, callback=curve)
    # The first time that 20 episodes in succession have half of the expert's return
    reached = [step for step, mean in curve.curve if mean >= HALF]
    result.update(
        steps_to_half=reached[0] if reached else None,
        deterministic=mean_return(model, evaluation_env),
        last_20=curve.curve[-1][1] if curve.curve else None,
        curve=curve.curve,
        cpu_seconds=time.process_time() - start,
    )
    return result


def print_table(folder: pathlib.Path) -> None:
    """
    :param folder: Of results
    """
    print("| encoder | imitation | PPO, last 20 episodes | PPO, most likely actions | steps to half | seeds |")
    print("|---|---|---|---|---|---|")
    for arm in ARMS:
        runs = [json.loads(path.read_text()) for path in sorted((folder / arm).glob("seed*.json"))]
        cells = []
        for name in ("imitation", "last_20", "deterministic"):
            values = np.array([one[name] for one in runs if one.get(name) is not None])
            if len(values) == 0:
                cells.append("")
                continue
            low, high = bootstrap_interval(values, lambda resampled: resampled.mean(axis=-1))
            cells.append(f"{values.mean():.0f} [{low:.0f}, {high:.0f}]")
        steps = ", ".join("never" if one["steps_to_half"] is None else f"{one['steps_to_half']:,}" for one in runs)
        print(f"| {arm} | {' | '.join(cells)} | {steps} | {len(runs)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--demonstrations", type=pathlib.Path, default=pathlib.Path("build/cartpole_demonstrations"))
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--updates", type=int, default=2_000)
    parser.add_argument("--timesteps", type=int, default=60_000)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/to_reinforcement"))
    parser.add_argument("--table", action="store_true", help="print what was measured")
    arguments = parser.parse_args()
    if arguments.table:
        return print_table(arguments.folder)
    th.set_num_threads(1)
    demonstrations = demonstrations_in(arguments.demonstrations, arguments.episodes)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            file = arguments.folder / arm / f"seed{seed}.json"
            if not file.exists():
                result = run(arm, seed, demonstrations, arguments.updates, arguments.timesteps)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(result))
                print(arm, seed, {name: value for name, value in result.items() if name != "curve"}, flush=True)


if __name__ == "__main__":
    main()
