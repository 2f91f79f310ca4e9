"""What is compared: tasks and arms. All that is not said here is the default of sb3_jepa or of Stable-Baselines3."""

from typing import Any

TASKS: dict[str, dict[str, Any]] = {
    "cartpole": dict(environment=dict(env_id="CartPole-v1", n_envs=8), ppo={}),
    # Drawing and shrinking 500 by 500 pixels would take longer than learning from them
    "acrobot": dict(environment=dict(env_id="Acrobot-v1", n_envs=8, screen_size=128), ppo={}),
    # The discount that rl-baselines3-zoo has for this task, for every arm
    "pendulum": dict(environment=dict(env_id="Pendulum-v1", n_envs=8, screen_size=128), ppo=dict(gamma=0.9)),
}

# Stable-Baselines3's own, but for rollouts that suit eight environments
SB3_PPO: dict[str, Any] = dict(
    n_steps=128, batch_size=128, n_epochs=10, gae_lambda=0.95, learning_rate=3e-4, target_kl=None
)


def paper(rl_gradient: bool, predictor_gain: float | None = None, **coefficients: float) -> dict[str, Any]:
    """
    A configuration of the paper (arXiv 2504.16591, figure 3): plain frames, no loss but the paper's, rewards as they
    are, and PPO's hyper-parameters from Stable-Baselines3.

    :param rl_gradient: Whether PPO's losses reach the encoder
    :param predictor_gain: Gain of the predictor's initialisation, which the paper leaves open. With 2 it begins
        stronger than the future is predictable, and configuration 3 collapses.
    :param coefficients: ``prediction_coef`` and ``variance_coef``
    """
    objective_kwargs = dict(deviation_coef=0.0, covariance_coef=0.0, predictor_gain=predictor_gain, **coefficients)
    policy_kwargs = dict(
        features_extractor_kwargs=dict(frames_as="channels"),
        objective_kwargs=objective_kwargs,
        rl_gradient=rl_gradient,
        encoder_lr_factor=1.0,
    )
    return dict(policy="JepaPolicy", policy_kwargs=policy_kwargs, ppo=SB3_PPO, normalize_reward=False)


def default(**policy_kwargs: Any) -> dict[str, Any]:
    """``PPO(JepaPolicy, env)``, but for what an ablation changes."""
    return dict(policy="JepaPolicy", policy_kwargs=policy_kwargs, ppo={}, normalize_reward=True)


def without_jepa() -> dict[str, Any]:
    """The same encoder and the same PPO, with nothing but the actor's and the critic's losses."""
    return default(objective_kwargs=dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0))


def cnn(normalize_reward: bool = True, **ppo: Any) -> dict[str, Any]:
    """Stable-Baselines3's ``CnnPolicy``. ``learning_rate_falls``: linearly, from and to."""
    return dict(policy="CnnPolicy", policy_kwargs={}, ppo=ppo, normalize_reward=normalize_reward)


# What sb3_jepa.PPO gives to a JepaPolicy
OUR_PPO: dict[str, Any] = dict(
    n_steps=128, batch_size=128, n_epochs=5, gae_lambda=0.95, learning_rate_falls=[1e-3, 1e-4], target_kl=0.05
)

ARMS: dict[str, dict[str, Any]] = {
    "1": paper(rl_gradient=True, prediction_coef=0.0, variance_coef=0.0),
    "2": paper(rl_gradient=True, prediction_coef=1.0, variance_coef=0.0),
    "3": paper(rl_gradient=False, prediction_coef=1.0, variance_coef=0.0),
    "4": paper(rl_gradient=False, prediction_coef=1.0, variance_coef=1.0),
    "2-strong": paper(True, predictor_gain=2.0, prediction_coef=1.0, variance_coef=0.0),
    "3-strong": paper(False, predictor_gain=2.0, prediction_coef=1.0, variance_coef=0.0),
    # With a weight of 1 the variance term comes too late
    "4-strong": paper(False, predictor_gain=2.0, prediction_coef=1.0, variance_coef=4.0),
    "default": default(),
    "without-jepa": without_jepa(),
    # Where rewards are rare, an entropy bonus or PPO's common settings might do what the JEPA does
    "without-jepa-entropy": {**without_jepa(), "ppo": dict(ent_coef=0.01)},
    "without-jepa-sb3-ppo": {**without_jepa(), "ppo": SB3_PPO},
    "without-prediction": default(objective_kwargs=dict(prediction_coef=0.0)),
    "without-vicreg": default(objective_kwargs=dict(deviation_coef=0.0, covariance_coef=0.0)),
    "prediction-1": default(objective_kwargs=dict(prediction_coef=1.0)),
    "prediction-1-without-vicreg": default(
        objective_kwargs=dict(prediction_coef=1.0, deviation_coef=0.0, covariance_coef=0.0)
    ),
    "without-changes": default(features_extractor_kwargs=dict(frames_as="channels")),
    "without-slow-encoder": default(encoder_lr_factor=1.0),
    # More to learn from the same embedding: several steps ahead, and heads with a weight of their own
    "steps-ahead-3": default(objective_kwargs=dict(steps_ahead=3)),
    "steps-ahead-5": default(objective_kwargs=dict(steps_ahead=5)),
    "reward-head": default(objective_kwargs=dict(reward_coef=1.0)),
    "end-head": default(objective_kwargs=dict(end_coef=1.0)),
    "inverse-head": default(objective_kwargs=dict(inverse_coef=1.0)),
    # Faster: the target encoder embeds a rollout once; half of the tokens, those that differ most from what is known;
    # no token of a patch that did not change while a random policy acted
    "targets-by-rollout": default(objective_kwargs=dict(target_refresh="rollout")),
    "token-budget": default(features_extractor_kwargs=dict(token_budget=12)),
    "without-constant-tokens": default(features_extractor_kwargs=dict(drop_constant_tokens=True)),
    # Faster on GPUs
    "bfloat16": default(features_extractor_kwargs=dict(autocast=True)),
    "without-target-kl": {**default(), "ppo": dict(target_kl=None)},
    "without-our-ppo": {**default(), "ppo": SB3_PPO},
    "without-normalized-reward": {**default(), "normalize_reward": False},
    # The baseline has its choice of seven settings: ours, and with a lower rate; Stable-Baselines3's, with target_kl,
    # without normalised rewards, and with its own 2,048 steps; and those of rl-baselines3-zoo for Atari
    "cnn-ours": cnn(**OUR_PPO),
    "cnn-ours-3e-4": cnn(**{**OUR_PPO, "learning_rate_falls": [3e-4, 3e-5]}),
    "cnn-sb3": cnn(**SB3_PPO),
    "cnn-sb3-target-kl": cnn(**{**SB3_PPO, "target_kl": 0.02}),
    "cnn-sb3-raw-reward": cnn(normalize_reward=False, **SB3_PPO),
    "cnn-sb3-2048": cnn(n_steps=256, batch_size=64, n_epochs=10, learning_rate=3e-4),
    "cnn-atari": cnn(
        n_steps=128, batch_size=256, n_epochs=4, learning_rate_falls=[2.5e-4, 0.0], clip_range=0.1, ent_coef=0.01
    ),
}
