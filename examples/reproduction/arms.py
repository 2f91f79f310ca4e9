"""What is compared: tasks and arms. All that is not said here is the default of sb3_jepa or of Stable-Baselines3."""

from typing import Any

# Every arm sees the same frames, and rewards divided by the deviation of their running return (VecNormalize)
TASKS: dict[str, dict[str, Any]] = {
    "cartpole": dict(environment=dict(env_id="CartPole-v1", n_envs=8), ppo={}),
    "acrobot": dict(environment=dict(env_id="Acrobot-v1", n_envs=8), ppo={}),
    # The discount that rl-baselines3-zoo has for this task, for every arm
    "pendulum": dict(environment=dict(env_id="Pendulum-v1", n_envs=8), ppo=dict(gamma=0.9)),
}


def default(**policy_kwargs: Any) -> dict[str, Any]:
    """``PPO(JepaPolicy, env)``, but for what an ablation changes."""
    return dict(policy="JepaPolicy", policy_kwargs=policy_kwargs, ppo={})


def paper(predictor_gain: float | None = None, **switches: Any) -> dict[str, Any]:
    """
    A configuration of the paper (arXiv 2504.16591, figure 3): plain frames, and no loss but the paper's.

    :param predictor_gain: Gain of the predictor's initialisation, which the paper leaves open
    :param switches: ``prediction_coef``, ``variance_coef`` and ``rl_gradient``
    """
    rl_gradient = switches.pop("rl_gradient")
    objective = dict(deviation_coef=0.0, covariance_coef=0.0, predictor_gain=predictor_gain, **switches)
    return default(
        features_extractor_kwargs=dict(frames_as="channels"), objective_kwargs=objective, rl_gradient=rl_gradient
    )


# A predictor that begins stronger than the future is predictable: with it configuration 3 collapses
STRONG = 2.0


def cnn(**ppo: Any) -> dict[str, Any]:
    """Stable-Baselines3's ``CnnPolicy``. ``learning_rate_falls``: linearly, from and to."""
    return dict(policy="CnnPolicy", policy_kwargs={}, ppo=ppo)


# What sb3_jepa.PPO gives to a JepaPolicy
OURS: dict[str, Any] = dict(n_steps=128, batch_size=128, n_epochs=5, gae_lambda=0.9, learning_rate_falls=[1e-3, 1e-4])

ARMS: dict[str, dict[str, Any]] = {
    "1": paper(rl_gradient=True, prediction_coef=0.0, variance_coef=0.0),
    "2": paper(rl_gradient=True, prediction_coef=1.0, variance_coef=0.0),
    "3": paper(rl_gradient=False, prediction_coef=1.0, variance_coef=0.0),
    "4": paper(rl_gradient=False, prediction_coef=1.0, variance_coef=1.0),
    "2-strong": paper(STRONG, rl_gradient=True, prediction_coef=1.0, variance_coef=0.0),
    "3-strong": paper(STRONG, rl_gradient=False, prediction_coef=1.0, variance_coef=0.0),
    "4-strong": paper(STRONG, rl_gradient=False, prediction_coef=1.0, variance_coef=1.0),
    "default": default(),
    "without-jepa": default(objective_kwargs=dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0)),
    "without-vicreg": default(objective_kwargs=dict(deviation_coef=0.0, covariance_coef=0.0)),
    "without-changes": default(features_extractor_kwargs=dict(frames_as="channels")),
    # The baseline has its choice of five settings: ours, ours with a lower rate, with more epochs, those of
    # Stable-Baselines3 with rollouts as long (2,048 steps), and those of rl-baselines3-zoo for Atari
    "cnn-ours": cnn(**OURS),
    "cnn-ours-3e-4": cnn(**{**OURS, "learning_rate_falls": [3e-4, 3e-5]}),
    "cnn-10-epochs": cnn(n_steps=128, batch_size=128, n_epochs=10, learning_rate=3e-4),
    "cnn-sb3": cnn(n_steps=256, batch_size=64, n_epochs=10, learning_rate=3e-4),
    "cnn-atari": cnn(
        n_steps=128, batch_size=256, n_epochs=4, learning_rate_falls=[2.5e-4, 0.0], clip_range=0.1, ent_coef=0.01
    ),
}
