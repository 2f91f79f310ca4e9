"""Environments the tests share."""

import csv
import importlib
import os
import pathlib
import subprocess
import sys
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.envs.pixels import make_pixel_vec_env

th.set_num_threads(1)

# A small encoder that measures its inputs quickly: what a test needs that is not about either. (A2C writes its own
# optimiser into the policy's arguments: give it a copy.)
SMALL_EXTRACTOR = dict(embed_dim=16, num_heads=2, patch_size=16, standardize_frames=32)
SMALL_POLICY = dict(features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16])
SMALL_PPO = dict(n_steps=16, batch_size=16, n_epochs=2, seed=0, device="cpu")


class CountingImageEnv(gym.Env):
    """
    Images that say where they come from: channel 0 holds the number of the environment, channel 1 that of the episode,
    channel 2 the time step. Episodes end after ``lengths[episode]`` steps, in turn by termination and truncation.
    """

    def __init__(self, number: int, lengths: tuple[int, ...], action_space: spaces.Space | None = None):
        self.observation_space = spaces.Box(0, 255, (3, 16, 16), np.uint8)
        self.action_space = action_space or spaces.Discrete(2)
        self.number, self.lengths = number, lengths
        self.episode, self.time = -1, 0

    def _observation(self) -> np.ndarray:
        return np.full((16, 16, 3), (self.number, self.episode, self.time), dtype=np.uint8).transpose(2, 0, 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.lengths[self.episode % len(self.lengths)]
        truncates = self.episode % 2 == 1
        return self._observation(), 1.0, over and not truncates, over and truncates, {}


class FakeEnv(gym.Env):
    """Random observations of a space, and a reward that neither they nor the actions decide about."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space | None = None):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)
        self.time = 0

    def action_masks(self) -> np.ndarray:
        """For MaskablePPO: everything is allowed, except for the first action."""
        n_choices = {spaces.Discrete: "n", spaces.MultiDiscrete: "nvec", spaces.MultiBinary: "n"}
        n = getattr(self.action_space, n_choices[type(self.action_space)])
        masks = np.ones(2 * n if isinstance(self.action_space, spaces.MultiBinary) else np.sum(n), dtype=bool)
        masks[0] = False
        return masks

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        over = self.time == 5
        return self.observation_space.sample(), self.np_random.random(), over, False, {}


# Of three environments: short episodes, and one that outlasts a rollout
EPISODE_LENGTHS = ((3, 5, 4), (7, 2, 6), (60,))


def make_counting_env(lengths=EPISODE_LENGTHS, action_space: spaces.Space | None = None) -> VecEnv:
    """One :class:`CountingImageEnv` for each row of episode lengths."""
    numbers = iter(range(len(lengths)))

    def make():
        number = next(numbers)
        return CountingImageEnv(number, lengths[number], action_space)

    return make_vec_env(make, n_envs=len(lengths), seed=0)


EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run_example(script: str, *arguments: str, cwd: pathlib.Path | None = None) -> str:
    """What a script of ``examples/`` prints."""
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def load_script(monkeypatch):
    """Imports a script of ``examples/pretraining``, which may import others of that folder."""
    monkeypatch.syspath_prepend(EXAMPLES / "pretraining")
    return importlib.import_module


@pytest.fixture
def run_script(load_script, monkeypatch, tmp_path):
    """Runs such a script, and returns the rows of its results, a CSV file beside its figure in a new folder."""
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")

    def run(name: str, *arguments: Any, results: str = "") -> list[dict[str, str]]:
        paths = ("--folder", tmp_path / "runs", "--out", tmp_path / "results")
        monkeypatch.setattr(sys, "argv", [name, *map(str, (*arguments, *paths))])
        load_script(name).main()
        assert (tmp_path / "results" / f"{results or name}.png").stat().st_size > 5_000
        with (tmp_path / "results" / f"{results or name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return run


@pytest.fixture
def pixel_cartpole() -> VecEnv:
    """Two small CartPoles, seen through three grey frames of 32 x 48 pixels."""
    return make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32)
