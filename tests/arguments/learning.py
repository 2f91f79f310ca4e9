"""Objectives and pretraining."""

import importlib
import pathlib
from typing import Any

import numpy as np

import sb3_jepa
from sb3_jepa import data
from tests.arguments.cases import (
    CHOICE,
    CLASS,
    COUNT,
    COUNT_FROM_0,
    FLAG,
    FRACTION,
    INSTANCE,
    KEYWORDS,
    NEW_FILE,
    NO_SUCH_FILE,
    NONE_OF_THEM,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SMALL,
    UNIT_INTERVAL,
    VECTOR,
    Call,
    episodes_folder,
    image_extractor,
    kind,
    made_files,
    or_none,
    pretrained_file,
    recordings,
    replay_buffer,
    rows_file,
)

pretrain: Any = importlib.import_module("sb3_jepa.pretrain")
OF_ROWS = ("rewards", "terminated", "has_action", "times")

COEFFICIENTS = dict(
    momentum=UNIT_INTERVAL,
    prediction_coef=NOT_NEGATIVE,
    variance_coef=NOT_NEGATIVE,
    deviation_coef=NOT_NEGATIVE,
    covariance_coef=NOT_NEGATIVE,
)
MASKED = dict(
    encoder=INSTANCE,
    embed_dim=COUNT,
    action_dim=COUNT_FROM_0,
    target=CHOICE,
    teacher=or_none(INSTANCE),
    mask_kwargs=KEYWORDS | kind("[]"),
    prediction_loss=CHOICE,
    normalize_targets=FLAG,
    target_transform_class=or_none(CLASS),
    target_transform_kwargs=KEYWORDS,
    predictor_dim=COUNT,
    predictor_depth=COUNT,
    predictor_heads=COUNT,
    **COEFFICIENTS,
)
PRETRAIN = dict(
    source=INSTANCE,
    folder=NEW_FILE,
    objective_class=CLASS,
    objective_kwargs=KEYWORDS,
    features_extractor_kwargs=KEYWORDS,
    n_updates=COUNT,
    batch_size=COUNT,
    learning_rate=POSITIVE,
    weight_decay=NOT_NEGATIVE,
    warmup=kind("0"),
    max_grad_norm=POSITIVE,
    validation_fraction=FRACTION,
    eval_freq=COUNT,
    criterion=or_none(CHOICE),
    patience=or_none(COUNT),
    labels=or_none(INSTANCE),
    seed=SEED,
    device=INSTANCE,
    progress_bar=FLAG,
    verbose=COUNT_FROM_0,
    initial_encoder=kind("None"),
    features_extractor_class=or_none(CLASS),
)


def masked_arguments() -> dict[str, Any]:
    return dict(encoder=image_extractor(), embed_dim=16)


def pretrain_arguments() -> dict[str, Any]:
    kwargs = dict(SMALL, embed_dim=8)
    objective = dict(mask_kwargs=dict(n_masks=1, min_context=1), predictor_dim=8, predictor_heads=2)
    return dict(
        source=recordings(),
        folder=pathlib.Path("folder"),
        n_updates=1,
        batch_size=4,
        objective_kwargs=objective,
        features_extractor_kwargs=kwargs,
        device="cpu",
    )


OBJECTIVES = [
    *(
        Call(objective, masked_arguments, MASKED, dict(kwargs="those of the class above"))
        for objective in (sb3_jepa.MaskedPrediction, sb3_jepa.TJepa, sb3_jepa.DmtJepa)
    ),
    Call(
        sb3_jepa.SaltTeacher,
        masked_arguments,
        {**MASKED, "normalize_targets": NONE_OF_THEM},
        dict(kwargs="those of MaskedPrediction"),
    ),
    Call(
        sb3_jepa.Salt,
        lambda: dict(masked_arguments(), teacher=image_extractor()),
        {**MASKED, "teacher": INSTANCE},
        dict(kwargs="those of MaskedPrediction"),
    ),
    Call(
        sb3_jepa.Objective,
        lambda: dict(encoder=image_extractor(), embed_dim=16, action_dim=2),
        dict(
            encoder=INSTANCE,
            embed_dim=COUNT,
            action_dim=COUNT_FROM_0,
            target_encoder=or_none(INSTANCE),
            **COEFFICIENTS,
        ),
    ),
    Call(
        sb3_jepa.NextLatentPrediction,
        lambda: dict(encoder=image_extractor(), embed_dim=16, action_dim=2),
        dict(
            encoder=INSTANCE,
            embed_dim=COUNT,
            action_dim=COUNT,
            hidden_dim=COUNT,
            predictor_gain=or_none(POSITIVE),
            target_refresh=CHOICE,
            steps_ahead=COUNT,
            reward_coef=NOT_NEGATIVE,
            end_coef=NOT_NEGATIVE,
            inverse_coef=NOT_NEGATIVE,
            random_shift=COUNT_FROM_0,
            **COEFFICIENTS,
        ),
        dict(kwargs="those of Objective"),
    ),
]

PRETRAINING = [
    Call(
        pretrain.pretrain,
        pretrain_arguments,
        PRETRAIN,
        dict(source_kwargs="those of `read`, for other sources"),
        is_costly=True,
    ),
    Call(
        pretrain.pretrain_salt,
        lambda: dict(pretrain_arguments(), n_updates=2),
        {
            **{name: legal for name, legal in PRETRAIN.items() if name != "objective_class"},
            "teacher_updates": or_none(COUNT),
            "teacher_features_extractor_kwargs": or_none(KEYWORDS),
        },
        dict(kwargs="those of `pretrain` and `read`"),
        is_costly=True,
    ),
    Call(pretrain.teacher_budget, lambda: dict(n_updates=6), dict(n_updates=COUNT)),
    Call(
        pretrain.Recordings,
        lambda: dict(observation_space=VECTOR, observations=np.zeros((3, 4), np.float32), episodes=np.zeros(3, int)),
        dict(
            observation_space=INSTANCE,
            observations=INSTANCE,
            episodes=INSTANCE,
            **dict.fromkeys(("action_space", "actions", *OF_ROWS), or_none(INSTANCE)),
        ),
    ),
    Call(
        data.save_recordings,
        lambda: dict(recordings=recordings(), folder=made_files() / "recordings"),
        dict(recordings=INSTANCE, folder=NEW_FILE),
    ),
    Call(pretrain.read, lambda: dict(source=recordings()), dict(source=INSTANCE), dict(kwargs="those of the readers")),
    Call(pretrain.read_buffer, lambda: dict(buffer=replay_buffer()), dict(buffer=INSTANCE)),
    Call(
        data.read_episodes,
        lambda: dict(folder=episodes_folder()),
        dict(folder=NO_SUCH_FILE, observation_space=or_none(INSTANCE), action_space=or_none(INSTANCE)),
    ),
    Call(
        pretrain.read_file,
        lambda: dict(path=rows_file()),
        dict(path=NO_SUCH_FILE, observation_space=or_none(INSTANCE), action_space=or_none(INSTANCE)),
    ),
    Call(pretrain.read_encoder, lambda: dict(path=pretrained_file()), dict(path=NO_SUCH_FILE)),
    Call(pretrain.describe_encoder, lambda: dict(path=pretrained_file()), dict(path=NO_SUCH_FILE)),
    Call(
        pretrain.record_env,
        lambda: dict(env="CartPole-v1", n_steps=4, progress_bar=False),
        dict(
            env=CHOICE,
            n_steps=COUNT,
            folder=or_none(NEW_FILE),
            policy=kind("None"),
            seed=SEED,
            progress_bar=FLAG,
        ),
    ),
]
