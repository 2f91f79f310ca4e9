"""Train PPO with a JEPA on CartPole, from pixels.

python examples/train_cartpole.py --timesteps 100000
tensorboard --logdir runs
"""

import argparse
import os

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.envs.pixels import make_pixel_vec_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=20_000, help="environment steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", default="runs", help="folder for the TensorBoard curves (default: %(default)s)")
    parser.add_argument("--save", metavar="PATH", help="where to save the trained model")
    arguments = parser.parse_args()

    # The safe choice: a second thread makes a little faster where a core is idle, and many times slower where none is
    th.set_num_threads(1)
    env = make_pixel_vec_env("CartPole-v1", n_envs=8, seed=arguments.seed)
    # A critic that predicts returns in the hundreds would dominate the gradient of the shared encoder
    env = VecNormalize(env, norm_obs=False)
    model = PPO(JepaPolicy, env, tensorboard_log=arguments.logdir, seed=arguments.seed)
    model.learn(arguments.timesteps, tb_log_name="cartpole", progress_bar=True)
    if arguments.save:
        model.save(arguments.save)

    assert model.ep_info_buffer is not None
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(f"Mean return of the last {len(returns)} episodes after {model.num_timesteps} steps: {np.mean(returns):.1f}")
    print(f"Curves: tensorboard --logdir {arguments.logdir}")


if __name__ == "__main__":
    main()
