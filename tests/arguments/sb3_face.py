"""What Stable-Baselines3 sees: algorithms, extractor, callbacks, environments, files."""

import functools
import pathlib
from typing import Any

import numpy as np
from gymnasium import spaces

import sb3_jepa
from sb3_jepa import envs, report
from sb3_jepa.callbacks import JepaCallback, PictureCallback, ProbeCallback
from tests.arguments.cases import (
    BOTH,
    CHOICE,
    CLASS,
    COUNT,
    COUNT_FROM_0,
    FLAG,
    FRACTION,
    FUNCTION,
    IMAGE,
    INSTANCE,
    KEYWORDS,
    NEW_FILE,
    NO_SUCH_FILE,
    NONE_OF_THEM,
    NOT_NEGATIVE,
    OF_SB3,
    POSITIVE,
    SEED,
    SIZES,
    SMALL,
    TENSORS,
    TEXT,
    TEXTS,
    UNIT_INTERVAL,
    Call,
    alternating_model,
    cartpole,
    encoder_file,
    kind,
    model,
    or_none,
    pairs,
    pixel_cartpole,
)
from tests.conftest import SMALL_POLICY, SMALL_PPO


def start_callback(**arguments: Any) -> None:
    callback = JepaCallback(**arguments)
    callback.init_callback(alternating_model())
    callback.on_training_start({}, {})


MONITOR = dict(every_n_rollouts=or_none(COUNT), encoder=or_none(TEXT), verbose=COUNT_FROM_0)
ALGORITHMS = [
    Call(
        algorithm,
        lambda env=env, policy_kwargs=policy_kwargs: dict(
            policy="JepaPolicy", env=env(), device="cpu", policy_kwargs=dict(policy_kwargs)
        ),
        dict(policy=CLASS, policy_kwargs=KEYWORDS),
        dict(args=OF_SB3, kwargs=OF_SB3),
    )
    for algorithms, env, policy_kwargs in (
        ((sb3_jepa.PPO, sb3_jepa.A2C), cartpole, SMALL_POLICY),
        ((sb3_jepa.DQN,), cartpole, dict(net_arch=[16])),
        ((sb3_jepa.SAC, sb3_jepa.TD3, sb3_jepa.DDPG), lambda: "Pendulum-v1", dict(net_arch=[16])),
    )
    for algorithm in algorithms
]

FACE = [
    *ALGORITHMS,
    Call(
        sb3_jepa.JepaPolicy,
        lambda: dict(SMALL_POLICY),
        dict(
            features_extractor_class=or_none(CLASS),
            features_extractor_kwargs=KEYWORDS,
            objective_class=or_none(CLASS),
            objective_kwargs=KEYWORDS,
            rl_gradient=FLAG,
            encoder_lr_factor=NOT_NEGATIVE,
            share_features_extractor=FLAG,
            objective_for=CHOICE,
            normalize_images=FLAG,
            optimizer_class=CLASS,
            optimizer_kwargs=KEYWORDS,
        ),
        dict(observation_space=OF_SB3, action_space=OF_SB3, lr_schedule=OF_SB3, kwargs=OF_SB3),
        run=lambda **kwargs: sb3_jepa.PPO("JepaPolicy", cartpole(), policy_kwargs=kwargs, **SMALL_PPO),
    ),
    Call(
        sb3_jepa.DrqExtractor,
        lambda: dict(observation_space=IMAGE),
        dict(observation_space=INSTANCE, features_dim=COUNT, normalized_image=FLAG),
    ),
    Call(
        sb3_jepa.MlpExtractor,
        lambda: dict(observation_space=spaces.Box(-1, 1, (3,))),
        dict(observation_space=INSTANCE, embed_dim=COUNT, hidden_dim=COUNT, hidden_layers=COUNT),
    ),
    Call(
        sb3_jepa.JepaExtractor,
        lambda: dict(SMALL, observation_space=BOTH, output="mean", standardize_frames=8),
        dict(
            observation_space=INSTANCE,
            embed_dim=COUNT,
            patch_size=or_none(COUNT),
            depth=COUNT,
            num_heads=COUNT,
            mlp_ratio=kind("1.5"),
            frames=or_none(COUNT),
            frames_as=CHOICE,
            final_norm=FLAG,
            standardize_frames=COUNT_FROM_0,
            frozen=FLAG,
            normalized_image=FLAG,
            drop_constant_tokens=FLAG,
            token_budget=or_none(COUNT),
            autocast=FLAG,
            compile_kwargs=KEYWORDS,
            class_tokens=COUNT_FROM_0,
            output=CHOICE,
            missing_as_nan=FLAG,
            numbers_per_token=or_none(COUNT),
            channels_first=or_none(FLAG),
        ),
    ),
    Call(
        JepaCallback,
        lambda: dict(objective_class=sb3_jepa.NextLatentPrediction),
        dict(
            objective_class=or_none(CLASS),
            objective_kwargs=KEYWORDS,
            encoders=or_none(CHOICE),
            n_updates=or_none(COUNT),
            batch_size=or_none(COUNT),
            learning_rate=or_none(NOT_NEGATIVE),
            verbose=COUNT_FROM_0,
        ),
        run=start_callback,
    ),
    Call(sb3_jepa.LatentModel, lambda: dict(model=model()), dict(model=INSTANCE, encoder=or_none(CHOICE))),
    Call(
        sb3_jepa.VecSurprise,
        lambda: dict(venv=cartpole()),
        dict(
            venv=INSTANCE,
            reward_coef=NOT_NEGATIVE,
            encoder=or_none(TEXT),
            training=FLAG,
            norm=FLAG,
            clip=POSITIVE,
            gamma=UNIT_INTERVAL,
            epsilon=POSITIVE,
        ),
    ),
    Call(
        sb3_jepa.surprise,
        lambda: dict(
            model=model(),
            **{name: np.zeros((1, 4), np.float32) for name in ("observations", "next_observations")},
            actions=np.zeros(1, int),
        ),
        dict(model=INSTANCE, encoder=or_none(CHOICE)),
        dict(observations=TENSORS, actions=TENSORS, next_observations=TENSORS),
    ),
    Call(
        sb3_jepa.save_encoder,
        lambda: dict(model=model(), path=pathlib.Path("encoder.pth")),
        dict(model=INSTANCE, path=NEW_FILE, encoder=or_none(CHOICE)),
    ),
    Call(
        sb3_jepa.load_encoder,
        lambda: dict(model=model(), path=encoder_file()),
        dict(model=INSTANCE, path=NO_SUCH_FILE, encoders=or_none(CHOICE), freeze=FLAG),
    ),
    Call(
        sb3_jepa.export_policy,
        lambda: dict(model=model(), path=pathlib.Path("policy.pt2")),
        dict(model=INSTANCE, path=CHOICE),
        is_costly=True,
    ),
    Call(
        sb3_jepa.noise_diagnostic,
        lambda: dict(buffer=pairs()),
        dict(
            buffer=NO_SUCH_FILE,
            names=or_none(kind("{}")),
            components=COUNT,
            horizon=COUNT,
            max_samples=or_none(COUNT),
            env=or_none(INSTANCE),
        ),
    ),
    *(
        Call(
            buffer_class,
            functools.partial(dict, buffer_size=2, observation_space=space, action_space=spaces.Discrete(2)),
            dict(optimize_memory_usage=NONE_OF_THEM, random_shift=COUNT_FROM_0),
            dict.fromkeys(("buffer_size", "observation_space", "args", "kwargs"), OF_SB3),
        )
        for buffer_class, space in ((sb3_jepa.FrameReplayBuffer, IMAGE), (sb3_jepa.FrameDictReplayBuffer, BOTH))
    ),
]

SHOWN = [
    Call(PictureCallback, dict, dict(MONITOR, horizon=COUNT, max_steps=COUNT, projector=FLAG)),
    Call(
        ProbeCallback,
        lambda: dict(attribute="state"),
        dict(
            MONITOR,
            attribute=TEXT,
            info_key=kind("None"),
            function=kind("None"),
            names=or_none(TEXTS),
            every_n_steps=COUNT,
            n_samples=COUNT,
            held_out=FRACTION,
        ),
    ),
    Call(
        report.write_report,
        lambda: dict(model=model(), env=cartpole(), out=pathlib.Path("page.html"), n_steps=8),
        dict(
            model=INSTANCE,
            env=INSTANCE,
            out=NEW_FILE,
            curves=KEYWORDS,
            n_steps=COUNT,
            horizon=COUNT,
            read=or_none(FUNCTION),
            names=or_none(TEXTS),
            title=TEXT | kind("empty text"),
        ),
        is_costly=True,
    ),
    Call(
        envs.state_names,
        lambda: dict(env=cartpole(), n_variables=4),
        dict(env=INSTANCE, n_variables=COUNT_FROM_0),
    ),
    Call(
        envs.PixelObservation,
        lambda: dict(env=pixel_cartpole(), frame_size=16),
        dict(env=INSTANCE, frame_size=COUNT, crop=or_none(SIZES), grayscale=FLAG, frames=COUNT),
    ),
    Call(
        envs.make_pixel_vec_env,
        lambda: dict(env_id="CartPole-v1", frame_size=16),
        dict(
            env_id=CHOICE,
            n_envs=COUNT,
            seed=or_none(SEED),
            frame_size=COUNT,
            crop=or_none(SIZES),
            grayscale=FLAG,
            frames=COUNT,
            vec_env_cls=or_none(CLASS),
            env_kwargs=KEYWORDS,
        ),
        dict(kwargs=OF_SB3),
    ),
]
