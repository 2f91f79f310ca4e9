"""What an embedding knows of CartPole's state: ridge regression from it, on episodes that it was not fitted to.

    python examples/reproduction/probe.py --arms 1 2 default --out runs/reproduction/probe.csv

Every model that ``run.py`` saved in the course of its training sees the same episodes, which a noisy controller of its
own kind has played. Also shown is what the true positions in the last three frames would tell: the latest action is
not seen in them, and it has changed the velocities already. What ``--out`` holds is kept and not measured again.
"""

import argparse
import os
import pathlib

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th

from sb3_jepa import PPO
from sb3_jepa.diagnostics import ridge_predictions
from sb3_jepa.envs.pixels import PixelObservation

VARIABLES = ["x", "x_dot", "theta", "theta_dot"]
# Of the sampled controllers' gain; the state is (x, x', theta, theta')
CONTROLLER = np.array([1.0, 1.7, 19.0, 3.5])


def collect_episodes(n_episodes: int, max_steps: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Play episodes with a controller that balances around a place of its own and acts at random now and then.

    :param n_episodes: Number of episodes
    :param max_steps: Episodes are cut after this many steps
    :return: Observations, states ``(steps, 4)``, positions in the three frames ``(steps, 6)``, number of the episode
    """
    rng = np.random.default_rng(0)
    env = PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
    rows = []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=episode)
        place, randomness = rng.uniform(-0.2, 0.2), rng.choice([0.2, 0.5, 0.8, 1.0])
        states = [np.array(env.unwrapped.state)] * 3  # type: ignore[attr-defined]
        for _ in range(max_steps):
            positions = np.concatenate([state[[0, 2]] for state in states[-3:]])
            rows.append((np.array(observation), states[-1], positions, episode))
            offset = states[-1] - np.array([place, 0.0, 0.0, 0.0])
            action = rng.integers(2) if rng.random() < randomness else int(CONTROLLER @ offset > 0)
            observation, _, terminated, truncated, _ = env.step(action)
            states.append(np.array(env.unwrapped.state))  # type: ignore[attr-defined]
            if terminated or truncated:
                break
    observations, state, positions, episodes = (np.array(column) for column in zip(*rows, strict=True))
    return observations, state, positions, episodes


def ridge_r2(inputs: np.ndarray, states: np.ndarray, is_test: np.ndarray, penalty: float = 1e-3) -> np.ndarray:
    """
    Coefficient of determination of ridge regression on held-out rows.

    :param inputs: ``(rows, inputs)``
    :param states: ``(rows, variables)``
    :param is_test: ``(rows,)``, which rows are held out
    :param penalty: Ridge penalty, per row and for inputs of unit variance
    :return: R² of each variable
    """
    errors = states[is_test] - ridge_predictions(inputs, states, is_test, penalty)
    # Without the errors' mean: a bias is not counted
    return 1.0 - errors.var(axis=0) / states[is_test].var(axis=0)


def embed(path: pathlib.Path, observations: np.ndarray) -> np.ndarray:
    """
    Embeddings of a saved model.

    :param path: What ``run.py`` saved
    :param observations: ``(rows, frames, height, width)``
    :return: ``(rows, embed_dim)``
    """
    policy = PPO.load(path, device="cpu").policy
    policy.set_training_mode(False)
    with th.no_grad():
        batches = th.as_tensor(observations).split(512)
        return th.cat([policy.extract_features(batch) for batch in batches]).double().numpy()  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/reproduction"))
    parser.add_argument("--arms", nargs="+", default=["1", "2", "default"])
    parser.add_argument("--episodes", type=int, default=120, help="a quarter of them held out (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/reproduction/probe.csv"))
    arguments = parser.parse_args()

    th.set_num_threads(1)
    observations, states, positions, episodes = collect_episodes(arguments.episodes)
    is_test = episodes % 4 == 0
    known = {("true positions", -1, 0): ridge_r2(positions, states, is_test)}
    if arguments.out.exists():
        # Models are large, and may be gone when their numbers are wanted still
        known = {tuple(row[:3]): row[3:] for row in pd.read_csv(arguments.out).itertuples(index=False)} | known
    for arm in arguments.arms:
        for path in sorted((arguments.folder / "cartpole" / arm).glob("seed*/models/*_steps.zip")):
            key = (arm, int(path.parents[1].name.removeprefix("seed")), int(path.stem.split("_")[-2]))
            if key not in known:
                known[key] = ridge_r2(embed(path, observations), states, is_test)
    rows = [(*key, *values) for key, values in sorted(known.items())]
    table = pd.DataFrame(rows, columns=["arm", "seed", "steps", *VARIABLES])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False, float_format="%.4f")
    summary = table.groupby(["arm", "steps"])[VARIABLES].mean()
    print(summary.round(2).to_string())


if __name__ == "__main__":
    main()
