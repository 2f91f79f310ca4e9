"""Train PPO with a JEPA on pixel CartPole, in one process or in several that train one model (ranks).

One process, or two on one machine:

    python examples/train_on_ranks.py --n-envs 8 --batch-size 128
    torchrun --nproc-per-node 2 examples/train_on_ranks.py --n-envs 4 --batch-size 64

Several machines, here two with four processes each (and as many GPUs, if they have any), with the same line on both:

    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \
        examples/train_on_ranks.py --n-envs 4 --batch-size 64

Environments and rows of a minibatch are those of each process: both lines for one machine are the same training, of 8
environments and minibatches of 128 rows. On a machine with two cores, the second line makes 1.31 times the steps per
second of the first (1.27 to 1.38, in four runs each that benchmark_ranks.py took in turns). If a process dies, all end
with an error; what was saved last is whole.
"""

import argparse
import os

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaPolicy
from sb3_jepa.envs.pixels import make_pixel_vec_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=100_000, help="of all processes (default: %(default)s)")
    parser.add_argument("--n-envs", type=int, default=4, help="of each process (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="of each process (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", default="runs", help="folder for curves and checkpoints (default: %(default)s)")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    # The seed of PPO is also that of the environments, of each process another one. Where you seed environments
    # yourself, add int(os.environ["RANK"]) times as many as a process has
    env = VecNormalize(make_pixel_vec_env("CartPole-v1", n_envs=arguments.n_envs), norm_obs=False)
    model = PPO(
        JepaPolicy,
        env,
        batch_size=arguments.batch_size,
        tensorboard_log=arguments.logdir,
        seed=arguments.seed,
    )
    checkpoints = CheckpointCallback(1_000, f"{arguments.logdir}/checkpoints", save_vecnormalize=True)
    # Only the first process calls callbacks, logs and saves
    model.learn(arguments.timesteps, callback=checkpoints, tb_log_name="cartpole_ranks", progress_bar=True)
    model.save(f"{arguments.logdir}/cartpole_ranks")


if __name__ == "__main__":
    main()
