"""What an encoder learns from in a pretraining: observations, and where the objective needs them, what came next."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_jepa.common.actions import encode_actions
from sb3_jepa.data.recordings import Recordings
from sb3_jepa.extractors.preprocessing import preprocess
from sb3_jepa.objectives import Objective, ObjectiveInput


class Loader:
    """
    Makes tensors of recordings.

    :param recordings: What is learned from
    :param objective_class: What is learned
    :param device: Where to put them
    :raises ValueError: If the objective needs what the recordings do not have
    """

    def __init__(self, recordings: Recordings, objective_class: type[Objective], device: th.device):
        self.recordings, self.device = recordings, device
        self.needs_actions = objective_class.needs_actions
        self.needs_next = objective_class.needs_next_observations or self.needs_actions
        if self.needs_actions and recordings.action_space is None:
            raise ValueError(
                f"`source` must have actions for `objective_class={objective_class.__name__}`, which learns from them, "
                "got recordings of observations alone"
            )
        self.action_dim = spaces.flatdim(recordings.action_space) if self.needs_actions else 0  # type: ignore[arg-type]

    def observations(self, rows: np.ndarray, encoder: nn.Module) -> Any:
        """
        :param rows: Numbers of rows
        :param encoder: The context encoder
        :return: Their observations, as it takes them
        """
        tensors = obs_as_tensor(self.recordings.take(rows), self.device)
        return preprocess(tensors, self.recordings.observation_space, True, [encoder])

    def batch(self, rows: np.ndarray, encoder: nn.Module, with_embedding: bool) -> ObjectiveInput:
        """
        :param rows: Numbers of rows
        :param encoder: The context encoder
        :param with_embedding: Whether the objective learns from the embedding itself; it also gets it if it has to know
            what came next
        :return: What the objective learns from
        """
        observations = self.observations(rows, encoder)
        embedding = encoder(observations) if with_embedding or self.needs_next else None
        batch = ObjectiveInput(encoder, observations, embedding)
        if not self.needs_next:
            return batch
        next_rows, valid = self.recordings.next_rows(rows)
        batch = batch._replace(
            next_observations=self.observations(next_rows, encoder), valid=th.as_tensor(valid, device=self.device)
        )
        if not self.needs_actions:
            return batch
        space, actions = self.recordings.action_space, self.recordings.actions
        assert space is not None
        assert actions is not None
        flat = th.as_tensor(np.asarray(actions[rows], dtype=np.float32).reshape(len(rows), -1), device=self.device)
        return batch._replace(actions=encode_actions(flat, space))
