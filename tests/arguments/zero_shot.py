"""Zero-shot learning: algorithms, policies, callbacks, and what are methods of algorithms."""

import functools
from typing import Any

import numpy as np

import sb3_jepa
from sb3_jepa import zero_shot
from tests.arguments.cases import (
    CHOICE,
    CLASS,
    COUNT,
    COUNT_FROM_0,
    FLAG,
    FUNCTION,
    KEYWORDS,
    NEW_FILE,
    NONE_OF_THEM,
    NOT_NEGATIVE,
    OF_SB3,
    RECORD,
    SIZES,
    UNIT_INTERVAL,
    Call,
    cartpole,
    or_none,
)

SMALL = dict(net_arch=[8, 8], state_dim=8, task_dim=4, encoder_dim=8)
ROOM_OF_SB3 = (
    *("env", "learning_rate", "buffer_size", "learning_starts", "train_freq", "gradient_steps", "replay_buffer_class"),
    *("replay_buffer_kwargs", "stats_window_size", "tensorboard_log", "verbose", "seed", "device", "_init_setup_model"),
)


@functools.lru_cache
def model() -> Any:
    made = sb3_jepa.TDJEPA("MlpPolicy", cartpole(), learning_starts=20, batch_size=8, policy_kwargs=SMALL, device="cpu")
    return made.learn(40)


def start(callback: Any) -> None:
    callback.init_callback(model())


TASKS = dict(tasks=dict(upright=dict(env=None, reward=lambda observations: 1.0 - np.abs(observations[:, 2]))))


def tasks() -> dict[str, Any]:
    return dict(tasks=dict(upright=dict(TASKS["tasks"]["upright"], env=cartpole())))


ZERO_SHOT = [
    *(
        Call(
            algorithm,
            lambda: dict(policy="MlpPolicy", env="Pendulum-v1", policy_kwargs=dict(SMALL), device="cpu"),
            dict(
                policy=CLASS,
                batch_size=COUNT,
                momentum=UNIT_INTERVAL,
                gamma=UNIT_INTERVAL,
                state_orthonormality_coef=NOT_NEGATIVE,
                task_orthonormality_coef=NOT_NEGATIVE,
                goal_share=UNIT_INTERVAL,
                whiten_goals=FLAG,
                cuda_graph=FLAG,
                next_actions=CHOICE,
                behavior_coef=NOT_NEGATIVE,
                policy_kwargs=KEYWORDS,
            ),
            dict.fromkeys(ROOM_OF_SB3, OF_SB3),
            is_costly=True,
        )
        for algorithm in (sb3_jepa.TDJEPA, zero_shot.ForwardBackward, zero_shot.RandomTaskFeatures)
    ),
    *(
        Call(
            policy,
            lambda: dict(SMALL),
            dict(
                net_arch=SIZES,
                features_extractor_class=or_none(CLASS),
                features_extractor_kwargs=KEYWORDS,
                state_dim=COUNT,
                task_dim=COUNT,
                encoder_dim=COUNT,
                state_layers=COUNT_FROM_0,
                task_layers=COUNT_FROM_0,
                symmetric=FLAG,
                predicts_states=FLAG,
                exploration_noise=UNIT_INTERVAL,
                behavior_flow=NONE_OF_THEM,
                optimizer_kwargs=KEYWORDS,
            ),
            dict.fromkeys(
                ("observation_space", "action_space", "lr_schedule", "normalize_images", "optimizer_class", "task"),
                OF_SB3,
            ),
            run=lambda **kwargs: sb3_jepa.TDJEPA("MlpPolicy", cartpole(), policy_kwargs=kwargs, device="cpu"),
            is_costly=True,
        )
        for policy in (zero_shot.TDJEPAPolicy, zero_shot.TDJEPACnnPolicy, zero_shot.TDJEPAMultiInputPolicy)
    ),
    Call(
        sb3_jepa.TaskEvalCallback,
        tasks,
        dict(
            tasks=NONE_OF_THEM,
            eval_freq=COUNT,
            n_eval_episodes=COUNT,
            n_random_tasks=COUNT_FROM_0,
            log_path=or_none(NEW_FILE),
            best_model_save_path=or_none(NEW_FILE),
            deterministic=FLAG,
        ),
        dict(verbose=OF_SB3),
        run=lambda **kwargs: start(sb3_jepa.TaskEvalCallback(**kwargs)),
    ),
    Call(
        sb3_jepa.TaskPictureCallback,
        tasks,
        dict(tasks=NONE_OF_THEM, every_n_steps=COUNT, position=or_none(FUNCTION)),
        dict(verbose=OF_SB3),
        run=lambda **kwargs: start(sb3_jepa.TaskPictureCallback(**kwargs)),
    ),
]
RECORDS = {sb3_jepa.Task: RECORD, zero_shot.Fit: RECORD}
