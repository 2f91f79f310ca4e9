"""The values that are tried, and what the tables are made of."""

import functools
import importlib
import pathlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env

import sb3_jepa
from sb3_jepa.extractors.files import write_encoder
from tests.conftest import SMALL_POLICY, SMALL_PPO

# The package: sb3_jepa.pretrain is its function
pretrain: Any = importlib.import_module("sb3_jepa.pretrain")
# What users have tried, wherever it did not belong
VALUES: dict[str, Any] = {
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "text": "text",
    "empty text": "",
    "None": None,
    "[]": [],
    "{}": {},
    "True": True,
    "object": object(),
    "10**30": 10**30,
}


def kind(*legal: str) -> frozenset[str]:
    """Which of the values are legal."""
    assert set(legal) <= set(VALUES)
    return frozenset(legal)


NONE_OF_THEM = kind()
COUNT = CHOICE = INSTANCE = CLASS = SIZES = PAIR = FRACTION = FUNCTION = NONE_OF_THEM
COUNT_FROM_0 = SEED = UNIT_INTERVAL = kind("0")
POSITIVE, NOT_NEGATIVE = kind("1.5", "10**30"), kind("0", "1.5", "10**30")
FLAG, TEXT, TEXTS, KEYWORDS = kind("True"), kind("text"), kind("[]"), kind("None", "{}")
# What exists, or is wanted for what is to be written
NO_SUCH_FILE, NEW_FILE = kind(), kind("text")


def or_none(of: frozenset[str]) -> frozenset[str]:
    return of | kind("None")


# Why an argument is not tried
TENSORS = "tensors or arrays, whose shapes are looked at where they are used"
OF_SB3 = "handed on to Stable-Baselines3, which has errors of its own"
RECORD = "a record that keeps what it is given"
OF_TORCH = "torch's own, or called by it"


@dataclass
class Call:
    """
    A public class or function, called with arguments that work but for one.

    :param target: The class or function
    :param arguments: Makes those that work
    :param legal: For each argument that is tried, which values are legal
    :param untried: For the others, why not
    :param run: How to call it, if not with these arguments
    :param is_costly: Whether what is legal takes too long to be tried value by value
    """

    target: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    legal: dict[str, frozenset[str]]
    untried: dict[str, str] = field(default_factory=dict)
    run: Callable[..., Any] | None = None
    is_costly: bool = False

    def __call__(self, **arguments: Any) -> Any:
        return (self.run or self.target)(**{**self.arguments(), **arguments})


VECTOR = spaces.Box(-1.0, 1.0, (4,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 16, 16), np.uint8)
BOTH = spaces.Dict(image=IMAGE, vector=VECTOR)
SMALL = dict(embed_dim=16, num_heads=2, depth=1, patch_size=8, standardize_frames=0)


@functools.lru_cache
def image_extractor() -> sb3_jepa.JepaExtractor:
    return extractor()


def extractor(space: spaces.Space = IMAGE) -> sb3_jepa.JepaExtractor:
    return sb3_jepa.JepaExtractor(space, **SMALL)


@functools.lru_cache
def cartpole() -> Any:
    return make_vec_env("CartPole-v1", n_envs=1)


@functools.lru_cache
def model() -> Any:
    return sb3_jepa.PPO("JepaPolicy", cartpole(), policy_kwargs=dict(SMALL_POLICY), **SMALL_PPO)


@functools.lru_cache
def alternating_model() -> Any:
    kwargs = dict(features_extractor_class=sb3_jepa.JepaExtractor, features_extractor_kwargs=SMALL)
    return stable_baselines3.PPO("MlpPolicy", cartpole(), policy_kwargs=kwargs, **SMALL_PPO)


@functools.lru_cache
def pairs() -> dict[str, np.ndarray]:
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    return dict(observations=x, next_observations=y)


def recordings(space: spaces.Box = IMAGE) -> sb3_jepa.Recordings:
    rng = np.random.default_rng(0)
    rows = (255 * rng.random((20, *space.shape))).astype(space.dtype)
    return sb3_jepa.Recordings(space, rows, np.arange(20) // 4)


MADE_FILES = tempfile.TemporaryDirectory()


def made_files() -> pathlib.Path:
    return pathlib.Path(MADE_FILES.name)


@functools.lru_cache
def encoder_file() -> pathlib.Path:
    return sb3_jepa.save_encoder(model(), made_files() / "saved.pth")


@functools.lru_cache
def episodes_folder() -> pathlib.Path:
    folder = made_files() / "episodes"
    folder.mkdir()
    np.savez(folder / "0.npz", observation=np.zeros((3, 4), np.float32), action=np.zeros((3, 2), np.float32))
    return folder


@functools.lru_cache
def rows_file() -> pathlib.Path:
    np.save(made_files() / "rows.npy", np.zeros((3, 4), np.float32))
    return made_files() / "rows.npy"


@functools.lru_cache
def pretrained_file() -> pathlib.Path:
    return write_encoder(extractor(), made_files() / "pretrained", SMALL)


@functools.lru_cache
def replay_buffer() -> ReplayBuffer:
    buffer = ReplayBuffer(2, VECTOR, spaces.Discrete(2), "cpu")
    zeros = np.zeros((1, 4), np.float32)
    buffer.add(zeros, zeros, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    return buffer


def pixel_cartpole() -> gym.Env:
    return gym.make("CartPole-v1", render_mode="rgb_array")
