"""LiDAR: its extractor and its objective."""

import functools
import pathlib

import numpy as np
from gymnasium import spaces

import sb3_jepa
from sb3_jepa import data
from tests.arguments.cases import (
    CHOICE,
    COUNT,
    FLAG,
    INSTANCE,
    KEYWORDS,
    NONE_OF_THEM,
    NOT_NEGATIVE,
    PAIR,
    SIZES,
    UNIT_INTERVAL,
    Call,
    made_files,
    or_none,
)

SWEEP = spaces.Box(-np.inf, np.inf, (20, 4), np.float32)
SMALL = dict(width=4, cell_dim=8, cell=1.0)


@functools.lru_cache
def sweep_file() -> pathlib.Path:
    np.save(made_files() / "sweep.npy", np.zeros((3, 4), np.float32))
    return made_files() / "sweep.npy"


@functools.lru_cache
def extractor() -> sb3_jepa.LidarExtractor:
    return sb3_jepa.LidarExtractor(SWEEP, 8, **SMALL)


LIDAR = [
    Call(
        data.read_sweeps,
        lambda: dict(source=[sweep_file()]),
        dict(source=NONE_OF_THEM, n_points=or_none(COUNT), width=or_none(NONE_OF_THEM)),
        is_costly=True,
    ),
    Call(
        sb3_jepa.LidarExtractor,
        lambda: dict(SMALL, observation_space=SWEEP),
        dict(
            observation_space=INSTANCE,
            embed_dim=COUNT,
            key=or_none(NONE_OF_THEM),
            range=SIZES,
            cell=frozenset({"1.5"}),
            kind=or_none(CHOICE),
            z_bins=COUNT,
            polar=FLAG,
            width=NONE_OF_THEM,
            halvings=frozenset({"0"}),
            cell_dim=NONE_OF_THEM,
            norm=CHOICE,
            pooling=COUNT,
            others_kwargs=KEYWORDS,
        ),
        dict(angles="tested with scans", no_return="tested with scans"),
        is_costly=True,
    ),
    Call(
        sb3_jepa.BevPrediction,
        lambda: dict(encoder=extractor(), embed_dim=8),
        dict(
            encoder=INSTANCE,
            embed_dim=COUNT,
            mask_ratio=PAIR,
            empty_mask_ratio=frozenset({"0"}),
            occupied_weight=UNIT_INTERVAL,
            hinge_coef=NOT_NEGATIVE,
            empty_token=FLAG,
            momentum=UNIT_INTERVAL,
            prediction_coef=NOT_NEGATIVE,
            variance_coef=NOT_NEGATIVE,
            deviation_coef=NOT_NEGATIVE,
            covariance_coef=NOT_NEGATIVE,
        ),
        dict(kwargs="those of Objective, which are here"),
        is_costly=True,
    ),
]
