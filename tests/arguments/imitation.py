"""Imitation: the algorithm, its policy, recorded episodes, and demonstrations in a replay buffer."""

from typing import Any

import stable_baselines3

import sb3_jepa
from sb3_jepa import data, imitation, parts
from tests.arguments.cases import (
    CHOICE,
    CLASS,
    COUNT,
    COUNT_FROM_0,
    FLAG,
    INSTANCE,
    KEYWORDS,
    NONE_OF_THEM,
    NOT_NEGATIVE,
    OF_SB3,
    POSITIVE,
    RECORD,
    SEED,
    UNIT_INTERVAL,
    VECTOR,
    Call,
    cartpole,
    model,
    or_none,
)

SMALL = dict(features_extractor_kwargs=dict(embed_dim=8, num_heads=2, depth=1), predictor_dim=8, num_heads=2)
ROOM_OF_SB3 = ("env", "stats_window_size", "tensorboard_log", "verbose", "seed", "device", "_init_setup_model")
NETWORK = dict(
    horizon=COUNT,
    n_action_steps=or_none(NONE_OF_THEM),
    temporal_ensemble_coef=or_none(NOT_NEGATIVE),
    latent_target=or_none(CHOICE),
)
IMITATION_RECORDS: dict[Any, str] = {imitation.ImitationFit: RECORD}


def episodes() -> sb3_jepa.Recordings:
    return data.record_episodes("CartPole-v1", model(), 1)


def replay_model() -> Any:
    return stable_baselines3.DQN("MlpPolicy", "CartPole-v1", buffer_size=1_000)


IMITATION = [
    Call(
        sb3_jepa.ACTJEPA,
        lambda: dict(policy="MlpPolicy", env=cartpole(), policy_kwargs=dict(SMALL), device="cpu"),
        dict(
            policy=CLASS,
            learning_rate=POSITIVE,
            batch_size=COUNT,
            prediction_coef=NOT_NEGATIVE,
            action_coef=NOT_NEGATIVE,
            momentum=UNIT_INTERVAL,
            random_shift=COUNT_FROM_0,
            max_grad_norm=POSITIVE,
            policy_kwargs=KEYWORDS,
            **NETWORK,
        ),
        dict.fromkeys(ROOM_OF_SB3, OF_SB3),
        is_costly=True,
    ),
    Call(
        imitation.ACTJEPAPolicy,
        lambda: dict(
            observation_space=VECTOR, action_space=cartpole().action_space, lr_schedule=lambda _: 1e-3, **SMALL
        ),
        dict(
            features_extractor_class=CLASS,
            features_extractor_kwargs=KEYWORDS,
            n_predicted=or_none(NONE_OF_THEM),
            decoder_depth=COUNT,
            predictor_dim=NONE_OF_THEM,
            predictor_depth=COUNT,
            num_heads=NONE_OF_THEM,
            optimizer_kwargs=KEYWORDS,
            **NETWORK,
        ),
        dict.fromkeys(
            ("observation_space", "action_space", "lr_schedule", "normalize_images", "optimizer_class"), OF_SB3
        ),
        is_costly=True,
    ),
    Call(
        parts.QueryDecoder,
        lambda: dict(n_queries=2, context_dim=8, output_dim=3, dim=8, num_heads=1),
        dict(
            n_queries=COUNT,
            context_dim=COUNT,
            output_dim=COUNT,
            dim=COUNT,
            depth=COUNT,
            num_heads=COUNT,
            mlp_ratio=POSITIVE,
        ),
        is_costly=True,
    ),
    Call(
        data.record_episodes,
        lambda: dict(env="CartPole-v1", policy=model(), n_episodes=1),
        dict(
            env=INSTANCE,
            policy=INSTANCE,
            n_episodes=COUNT,
            seed=SEED,
            deterministic=FLAG,
            progress_bar=FLAG,
        ),
    ),
    Call(
        data.add_to_replay_buffer,
        lambda: dict(model=replay_model(), demonstrations=episodes()),
        dict(model=INSTANCE),
        dict(demonstrations="as of read, which is tried", kwargs="those of read"),
    ),
]
