"""Three runs to learn reading from: a healthy one, a collapsed one, and one that uses few dimensions.

    python examples/reading_a_run/three_runs.py
    tensorboard --logdir runs/reading

All three see pixel CartPole. The second and the third are made to fail: nothing but the prediction shapes the encoder,
and the predictor begins stronger than the future is predictable. Against that the second has nothing; the third has the
variance loss of *JEPA for RL*, which bounds the mean over the dimensions only.
"""

import argparse
import os
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # CartPole is drawn, but no window is wanted

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaPolicy, PictureCallback, ProbeCallback
from sb3_jepa.envs.pixels import make_pixel_vec_env


def failing(features_extractor_kwargs: dict[str, Any], **coefficients: float) -> dict[str, Any]:
    """Arguments of PPO for an encoder that only the paper's objective shapes, with a strong predictor."""
    return dict(
        learning_rate=3e-4,
        target_kl=None,
        policy_kwargs=dict(
            rl_gradient=False,
            encoder_lr_factor=1.0,
            features_extractor_kwargs=features_extractor_kwargs,
            objective_kwargs=dict(
                predictor_gain=2.0, prediction_coef=1.0, deviation_coef=0.0, covariance_coef=0.0, **coefficients
            ),
        ),
    )


RUNS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "collapsed": failing({}),
    "low_rank": failing(dict(final_norm=False), variance_coef=12.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument(
        "--timesteps", type=int, default=30_000, help="environment steps of each (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", default="runs/reading", help="folder for curves and models (default: %(default)s)")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    for name in arguments.runs:
        env = VecNormalize(make_pixel_vec_env("CartPole-v1", n_envs=8, seed=arguments.seed), norm_obs=False)
        model = PPO(JepaPolicy, env, tensorboard_log=arguments.logdir, seed=arguments.seed, **RUNS[name])
        callbacks: list[BaseCallback] = [
            PictureCallback(every_n_rollouts=5),
            ProbeCallback(attribute="state", names=["x", "x_dot", "theta", "theta_dot"], every_n_rollouts=5),
        ]
        model.learn(arguments.timesteps, callback=callbacks, tb_log_name=name, progress_bar=True)
        model.save(f"{arguments.logdir}/{name}_1/model")


if __name__ == "__main__":
    main()
