"""Train, evaluate and tune the algorithms of sb3_jepa with rl-baselines3-zoo (``pip install "sb3-jepa[zoo]"``).

    python examples/zoo/zoo.py train --algo jepa_ppo --env PixelCartPole-v1 --conf-file examples/zoo/jepa_ppo.yml
    python examples/zoo/zoo.py enjoy --algo jepa_ppo --env PixelCartPole-v1 --folder logs --no-render
    python examples/zoo/zoo.py train --algo jepa_ppo --env PixelCartPole-v1 --conf-file examples/zoo/jepa_ppo.yml \\
        --optimize-hyperparameters --n-trials 20 --storage sqlite:///study.db --study-name jepa

All options are those of rl_zoo3. Its own algorithms are here too, and learn a JEPA in alternation (jepa_dqn.yml); but
its search for their hyperparameters replaces `policy_kwargs`, and the encoder with them.
"""

import sys
from functools import partial
from typing import Any

import gymnasium as gym
import optuna
from rl_zoo3 import exp_manager
from rl_zoo3.enjoy import enjoy
from rl_zoo3.train import train
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_jepa
from sb3_jepa.envs.pixels import PixelObservation

# For the expressions in a YAML file, such as "dict(features_extractor_class=sb3_jepa.JepaExtractor)"
exp_manager.sb3_jepa = sb3_jepa  # type: ignore[attr-defined]


def to_hyperparameters(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an algorithm of sb3_jepa, from what a trial has sampled."""
    hyperparameters = dict(sampled_params)
    objective_kwargs = {name: hyperparameters.pop(name) for name in ("prediction_coef", "deviation_coef")}
    encoder_lr_factor = hyperparameters.pop("encoder_lr_factor")
    return dict(
        hyperparameters,
        policy_kwargs=dict(encoder_lr_factor=encoder_lr_factor, objective_kwargs=objective_kwargs),
    )


def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """What rl_zoo3 asks for a trial."""
    return to_hyperparameters(
        dict(
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
            gamma=trial.suggest_categorical("gamma", [0.9, 0.98, 0.99]),
            gae_lambda=trial.suggest_categorical("gae_lambda", [0.8, 0.9, 0.95]),
            ent_coef=trial.suggest_float("ent_coef", 1e-5, 0.03, log=True),
            encoder_lr_factor=trial.suggest_float("encoder_lr_factor", 0.1, 1.0, log=True),
            prediction_coef=trial.suggest_float("prediction_coef", 0.03, 3.0, log=True),
            deviation_coef=trial.suggest_float("deviation_coef", 0.03, 3.0, log=True),
        )
    )


def make_from_pixels(env_id: str, render_mode: str = "rgb_array") -> gym.Env:
    """An environment that is seen through its rendered frames."""
    return PixelObservation(gym.make(env_id, render_mode=render_mode))


for env_id in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1"):
    gym.register(f"Pixel{env_id}", entry_point=partial(make_from_pixels, env_id))

algorithms: dict[str, type[BaseAlgorithm]] = dict(
    jepa_ppo=sb3_jepa.PPO,
    jepa_a2c=sb3_jepa.A2C,
    jepa_ppo_lstm=sb3_jepa.RecurrentPPO,
)
exp_manager.ALGOS.update(algorithms)
exp_manager.HYPERPARAMS_SAMPLER.update(dict.fromkeys(algorithms, sample))
exp_manager.HYPERPARAMS_CONVERTER.update(dict.fromkeys(algorithms, to_hyperparameters))

if __name__ == "__main__":
    commands = dict(train=train, enjoy=enjoy)
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        raise SystemExit(__doc__)
    commands[sys.argv.pop(1)]()
