"""Histories, and what learns from them."""

import functools
from typing import Any

import gymnasium as gym
from gymnasium import spaces

import sb3_jepa
from sb3_jepa import envs
from tests.arguments.cases import (
    CHOICE,
    CLASS,
    COUNT,
    COUNT_FROM_0,
    FLAG,
    INSTANCE,
    KEYWORDS,
    NONE_OF_THEM,
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


SEQUENCES = [
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
