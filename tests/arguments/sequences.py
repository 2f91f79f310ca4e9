"""Histories, and what learns from them."""

import functools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

import sb3_jepa
from sb3_jepa import data, diagnostics, envs
from sb3_jepa.callbacks import SequenceProbeCallback
from tests.arguments.cases import (
    CHOICE,
    CLASS,
    COUNT,
    COUNT_FROM_0,
    FLAG,
    FRACTION,
    INSTANCE,
    KEYWORDS,
    NONE_OF_THEM,
    SEED,
    TENSORS,
    TEXT,
    Call,
    cartpole,
    kind,
    or_none,
)
from tests.arguments.learning import COEFFICIENTS

SMALL = dict(embed_dim=8, action_embed_dim=8, num_heads=2)


@functools.lru_cache
def histories() -> spaces.Space:
    return envs.VecHistory(cartpole(), 3).observation_space


def encoder() -> Any:
    return sb3_jepa.SequenceExtractor(histories(), **SMALL)


def recordings() -> Any:
    return data.record_env("CartPole-v1", n_steps=40)


PROBED = dict(inputs=np.eye(8), targets=np.eye(8)[:, :2], is_held_out=np.arange(8) > 5)

SEQUENCES = [
    Call(data.HistoryRecordings, lambda: dict(recordings=recordings()), dict(recordings=INSTANCE, length=COUNT)),
    Call(
        data.transformed_views,
        lambda: dict(images=np.zeros((2, 24, 24), np.uint8), n_sequences=4),
        dict(
            images=INSTANCE,
            transformation=CHOICE,
            n_views=COUNT,
            n_sequences=COUNT,
            largest=kind("1.5"),
            window=COUNT,
            seed=SEED,
        ),
    ),
    Call(
        diagnostics.mlp_probe_r2,
        lambda: dict(PROBED),
        dict(n_steps=COUNT),
        dict(inputs=TENSORS, targets=TENSORS, is_held_out=TENSORS),
    ),
    Call(
        diagnostics.sequence_probes,
        lambda: dict(
            views=np.ones((8, 2, 3)),
            aggregates=np.eye(8),
            actions=np.ones((8, 1, 2)),
            displacements=np.ones((8, 2)),
            is_held_out=PROBED["is_held_out"],
        ),
        dict(with_mlp=FLAG),
        dict(views=TENSORS, aggregates=TENSORS, actions=TENSORS, displacements=TENSORS, is_held_out=TENSORS),
    ),
    Call(
        SequenceProbeCallback,
        dict,
        dict(
            every_n_rollouts=or_none(COUNT),
            every_n_steps=COUNT,
            n_samples=COUNT,
            held_out=FRACTION,
            with_mlp=FLAG,
            encoder=or_none(TEXT),
            verbose=COUNT_FROM_0,
        ),
    ),
    Call(envs.VecHistory, lambda: dict(venv=cartpole()), dict(venv=INSTANCE, length=COUNT, keys=or_none(NONE_OF_THEM))),
    Call(
        envs.HistoryObservation,
        lambda: dict(env=gym.make("CartPole-v1")),
        dict(env=INSTANCE, length=COUNT, keys=or_none(NONE_OF_THEM)),
    ),
    Call(
        sb3_jepa.SequenceExtractor,
        lambda: dict(SMALL, observation_space=histories()),
        dict(
            observation_space=INSTANCE,
            embed_dim=COUNT,
            view_extractor_class=or_none(CLASS),
            view_extractor_kwargs=KEYWORDS,
            action_embed_dim=COUNT_FROM_0,
            depth=COUNT,
            num_heads=COUNT,
            mlp_ratio=kind("1.5"),
            order_code=FLAG,
            output=CHOICE,
        ),
    ),
    *(
        Call(
            objective,
            lambda: dict(encoder=encoder(), embed_dim=24, action_dim=2),
            dict(
                encoder=INSTANCE,
                embed_dim=COUNT,
                action_dim=COUNT,
                hidden_dim=COUNT,
                predict_with_action=FLAG,
                **COEFFICIENTS,
            ),
            dict(kwargs="those of Objective"),
        )
        for objective in (sb3_jepa.SequencePrediction, sb3_jepa.SeqJepa)
    ),
]
