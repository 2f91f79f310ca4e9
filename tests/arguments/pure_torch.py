"""Parts and diagnostics."""

import numpy as np
import torch as th

from sb3_jepa import diagnostics, parts
from tests.arguments.cases import (
    CHOICE,
    COUNT,
    COUNT_FROM_0,
    FLAG,
    FRACTION,
    FUNCTION,
    IMAGE,
    INSTANCE,
    NONE_OF_THEM,
    NOT_NEGATIVE,
    PAIR,
    POSITIVE,
    SIZES,
    TENSORS,
    Call,
    extractor,
    kind,
    or_none,
    pairs,
)

PARTS = [
    Call(
        parts.ActionConditionedPredictor,
        lambda: dict(embed_dim=4, action_dim=2),
        dict(embed_dim=COUNT, action_dim=COUNT, hidden_dim=COUNT, init_gain=or_none(POSITIVE)),
    ),
    Call(
        parts.InverseDynamics,
        lambda: dict(embed_dim=4, action_dim=2),
        dict(embed_dim=COUNT, action_dim=COUNT, hidden_dim=COUNT),
    ),
    Call(
        parts.BlockMasks,
        lambda: dict(grid=(4, 6)),
        dict(
            grid=SIZES,
            n_masks=COUNT,
            target_scale=PAIR,
            aspect_ratio=PAIR,
            context_scale=or_none(PAIR),
            union=FLAG,
            frame_scale=PAIR,
            min_context=or_none(COUNT),
        ),
    ),
    Call(
        parts.SubsetMasks,
        lambda: dict(grid=(12,)),
        dict(grid=SIZES, n_masks=COUNT, context_scale=PAIR, target_scale=PAIR),
    ),
    Call(
        parts.MaskedPredictor,
        lambda: dict(grid=(2, 3), embed_dim=4),
        dict(
            grid=SIZES,
            embed_dim=COUNT,
            output_dim=or_none(COUNT),
            predictor_dim=COUNT,
            depth=COUNT,
            num_heads=COUNT,
            mlp_ratio=kind("1.5"),
        ),
    ),
    Call(
        parts.NeighborAggregation,
        lambda: dict(grid=(3, 3), embed_dim=4),
        dict(
            grid=SIZES,
            embed_dim=COUNT,
            num_heads=COUNT,
            window=COUNT,
            k=COUNT,
            aggregation=CHOICE,
            selection=CHOICE,
        ),
    ),
    Call(
        parts.TransformerEncoder,
        lambda: dict(tokenizer=parts.ColumnTokenizer(3, 8), embed_dim=8, num_heads=2, output="mean"),
        dict(
            tokenizer=INSTANCE,
            embed_dim=COUNT,
            depth=COUNT,
            num_heads=COUNT,
            mlp_ratio=kind("1.5"),
            final_norm=FLAG,
            class_tokens=COUNT_FROM_0,
            output=CHOICE,
            missing_as_nan=FLAG,
        ),
    ),
    Call(parts.TargetEncoder, lambda: dict(encoder=th.nn.Identity()), dict(encoder=INSTANCE)),
    Call(parts.MomentumEncoder, lambda: dict(encoder=th.nn.Identity()), dict(encoder=INSTANCE)),
    Call(
        parts.deviation_loss, lambda: dict(embedding=th.rand(4, 3)), dict(epsilon=NOT_NEGATIVE), dict(embedding=TENSORS)
    ),
    Call(
        parts.random_shift,
        lambda: dict(images=th.rand(2, 3, 8, 8), pad=2),
        dict(pad=COUNT_FROM_0, channels_last=FLAG),
        dict(images=TENSORS),
    ),
    Call(parts.position_code, lambda: dict(grid=(2, 3), dim=8), dict(grid=SIZES, dim=COUNT)),
    Call(
        parts.CategoryTokenizer,
        lambda: dict(sizes=(2, 3), embed_dim=4),
        dict(sizes=SIZES, embed_dim=COUNT, variables_per_token=COUNT),
    ),
    Call(
        parts.ColumnTokenizer,
        lambda: dict(n_columns=3, embed_dim=4),
        dict(n_columns=COUNT, embed_dim=COUNT, numbers_per_token=COUNT, missing_as_nan=FLAG),
    ),
    Call(
        parts.DictTokenizer,
        lambda: dict(tokenizers=dict(a=parts.ColumnTokenizer(3, 4)), embed_dim=4),
        dict(tokenizers=INSTANCE, embed_dim=COUNT),
    ),
    Call(
        parts.InputStandardization,
        lambda: dict(shape=(3, 4, 4)),
        dict(shape=SIZES, changes_of=COUNT, per=CHOICE),
    ),
    Call(
        parts.PatchTokenizer,
        lambda: dict(frames=1, channels=3, height=16, width=16, patch_size=8, embed_dim=4),
        dict(frames=COUNT, channels=COUNT, height=COUNT, width=COUNT, patch_size=or_none(COUNT), embed_dim=COUNT),
    ),
    Call(parts.default_patch_size, lambda: dict(height=16, width=16), dict(height=COUNT, width=COUNT)),
    Call(
        parts.StandardizedColumnTokenizer,
        lambda: dict(
            standardization=parts.InputStandardization((3,), per="input"), tokenizer=parts.ColumnTokenizer(3, 4)
        ),
        dict(standardization=INSTANCE, tokenizer=INSTANCE),
    ),
    Call(
        parts.StandardizedGridTokenizer,
        lambda: dict(
            standardization=parts.InputStandardization((3, 4, 4), per="channel"),
            tokenizer=parts.PatchTokenizer(1, 3, 4, 4, 2, 4),
        ),
        dict(standardization=INSTANCE, tokenizer=INSTANCE),
    ),
    Call(
        parts.StandardizedPatchTokenizer,
        lambda: dict(
            standardization=parts.InputStandardization((3, 16, 16)),
            tokenizer=parts.PatchTokenizer(1, 3, 16, 16, 8, 4),
        ),
        dict(standardization=INSTANCE, tokenizer=INSTANCE, drop_constant_tokens=FLAG, token_budget=or_none(COUNT)),
    ),
]

DIAGNOSTICS = [
    Call(
        diagnostics.attention_maps,
        lambda: dict(encoder=extractor().encoder, observations=th.zeros(2, *IMAGE.shape)),
        dict(encoder=INSTANCE),
        dict(observations=TENSORS),
    ),
    Call(
        diagnostics.feature_noise,
        pairs,
        dict(names=or_none(CHOICE), components=or_none(COUNT), depth=COUNT),
        dict(observations=TENSORS, next_observations=TENSORS),
    ),
    Call(
        diagnostics.principal_components,
        lambda: dict(embeddings=th.rand(6, 4)),
        dict(n_components=COUNT),
        dict(embeddings=TENSORS),
    ),
    Call(
        diagnostics.unrolled_errors,
        lambda: dict(
            predict=lambda embeddings, actions: embeddings,
            trajectories=[diagnostics.Trajectory(th.rand(3, 4), th.rand(3, 4), th.rand(2, 1))],
        ),
        dict(predict=FUNCTION, trajectories=NONE_OF_THEM, horizon=COUNT),
    ),
    *(
        Call(
            function,
            lambda: dict(inputs=np.eye(8)[::-1, :2], targets=np.eye(8)[:, :2], is_held_out=np.arange(8) % 4 == 1),
            dict(penalty=NOT_NEGATIVE),
            dict(inputs=TENSORS, targets=TENSORS, is_held_out=TENSORS),
        )
        for function in (diagnostics.ridge_predictions, diagnostics.probe_r2)
    ),
    Call(
        diagnostics.probe_episodes,
        lambda: dict(embeddings=np.eye(8), values=np.eye(8)[:, :2], episodes=np.arange(8)),
        dict(names=or_none(CHOICE), held_out=FRACTION),
        dict(embeddings=TENSORS, values=TENSORS, episodes=TENSORS),
    ),
    Call(
        diagnostics.similarity_gap,
        lambda: dict(tokens=th.rand(1, 4, 3), regions=th.zeros(1, 4, dtype=th.long), grid=(2, 2)),
        dict(grid=SIZES),
        dict(tokens=TENSORS, regions=TENSORS),
    ),
]
