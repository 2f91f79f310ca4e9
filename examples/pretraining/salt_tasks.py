"""What the encoders of salt.py learn from, and what is probed in them: moving glyphs, and CartPole's frames."""

import pathlib
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from experiments import class_accuracy
from toys import as_recordings, moving_glyphs

from sb3_jepa import JepaExtractor, Recordings
from sb3_jepa.diagnostics import effective_rank, probe_r2
from sb3_jepa.envs import PixelObservation
from sb3_jepa.pretrain import read, record_env

VARIABLES = ["x", "x_dot", "theta", "theta_dot"]


class Task(NamedTuple):
    """
    :param recordings: What is learned from
    :param observations: What is probed: some of the recordings, and others that were put aside
    :param labels: What is seen in them: classes ``(rows,)`` or variables ``(rows, variables)``, by their names
    :param is_held_out: Which of them were put aside
    :param extractor: Keyword arguments of the encoder
    """

    recordings: Recordings
    observations: np.ndarray
    labels: dict[str, np.ndarray]
    is_held_out: np.ndarray
    extractor: dict[str, Any]

    def measure(self, encoder: JepaExtractor) -> dict[str, float]:
        """
        :param encoder: Of these observations
        :return: What a probe reads from its tokens, and their effective rank
        """
        encoder.eval()
        n_times = encoder.encoder.token_shape[0]
        with th.no_grad():
            batches = [encoder.encode_tokens(batch)[:, 1:] for batch in th.as_tensor(self.observations).split(250)]
        # The mean over the places of each time, one time after the other
        inputs = th.cat([tokens.unflatten(1, (n_times, -1)).mean(dim=2).flatten(1) for tokens in batches])
        rows, measured = inputs.double().numpy(), {}
        for name, label in self.labels.items():
            if label.dtype.kind == "i":
                measured[name] = class_accuracy(rows, label, self.is_held_out)
            else:
                measured[name] = float(probe_r2(rows, label[:, None], self.is_held_out)[0])
        measured["effective_rank"] = float(effective_rank(inputs[th.as_tensor(self.is_held_out)]))
        return measured


def glyphs(n_clips: int) -> Task:
    """
    :param n_clips: Number of clips to learn from
    :return: Clips with a moving glyph, as four times with two frames each
    """
    n_probed, n_held_out = n_clips // 2, n_clips // 4
    seen, held_out = moving_glyphs(n_clips, seed=0), moving_glyphs(n_held_out, seed=1)
    return Task(
        as_recordings(seen.observations),
        np.concatenate([seen.observations[:n_probed], held_out.observations]),
        dict(
            shape=np.concatenate([seen.shapes[:n_probed], held_out.shapes]),
            direction=np.concatenate([seen.directions[:n_probed], held_out.directions]),
        ),
        np.arange(n_probed + n_held_out) >= n_probed,
        dict(embed_dim=32, patch_size=3, frames=4, frames_as="tokens", num_heads=2, output="mean"),
    )


class KnownStates(gym.Wrapper):
    """
    Remembers the state that belongs to each observation, in the order in which they are seen.

    :param env: CartPole
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.states: list[np.ndarray] = []

    def reset(self, **kwargs: Any) -> Any:
        """As of the environment."""
        result = self.env.reset(**kwargs)
        self.states.append(np.array(self.unwrapped.state))  # type: ignore[attr-defined]
        return result

    def step(self, action: Any) -> Any:
        """As of the environment."""
        result = self.env.step(action)
        self.states.append(np.array(self.unwrapped.state))  # type: ignore[attr-defined]
        return result


def cartpole(n_frames: int, file: pathlib.Path) -> Task:
    """
    :param n_frames: Number of observations, a fifth of which is put aside
    :param file: Where they are kept, once they are recorded
    :return: What a random policy sees of CartPole, three frames at once
    """
    if not file.exists():
        env = KnownStates(PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array")))
        recorded = record_env(env, n_frames, progress_bar=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        states = np.array(env.states[:n_frames])
        np.savez(file, observations=recorded.observations, episodes=recorded.episodes, states=states)
    recordings, states = read(file), np.load(file)["states"]
    seen, held_out = recordings.split(0.2, seed=0)
    rows = np.concatenate([seen[:2_000], held_out])
    return Task(
        Recordings(recordings.observation_space, recordings.take(seen), recordings.episodes[seen]),
        recordings.take(rows),
        {name: states[rows, index] for index, name in enumerate(VARIABLES)},
        np.isin(rows, held_out),
        dict(embed_dim=32, num_heads=2, output="mean"),
    )
