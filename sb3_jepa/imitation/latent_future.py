r"""
The JEPA branch of *ACT-JEPA*: from the context's tokens a narrow predictor guesses what a momentum copy of the encoder
makes of the next states, :math:`L_\mathrm{obs} = | P_\varphi(E_\theta(o_t)) - \mathrm{sg}(\bar E(s_{t+1:t+H})) |_1`
(Vujinovic, Kovacevic 2025, arXiv 2501.14622).
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn
from torch.nn import functional as F

from sb3_jepa.common import checks
from sb3_jepa.common.observations import as_observations
from sb3_jepa.common.spaces import spaces_by_key
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.tokenization import is_picture
from sb3_jepa.parts import (
    DictTokenizer,
    MomentumEncoder,
    QueryDecoder,
    embedding_variance,
    position_code,
    weighted_mean,
)

TARGETS = ("state", "observation", "raw_state")
# An observation is encoded for each of these steps, so that they are few
N_PREDICTED_OBSERVATIONS = 4


def state_keys(space: spaces.Space) -> list[str] | None:
    """
    :param space: Observation space
    :return: Which keys of a ``Dict`` are the state, all but images and grids; None for all of another space
    """
    if not isinstance(space, spaces.Dict):
        return None
    return [key for key, one in space.items() if not is_picture(one)]


def has_state(space: spaces.Space) -> bool:
    """
    :param space: Observation space
    :return: Whether there is anything beside images and grids
    """
    keys = state_keys(space)
    return not is_picture(space) if keys is None else bool(keys)


class FutureLoss(NamedTuple):
    """
    :param loss: Mean absolute error of the predicted future
    :param target_variance: How far the targets of different samples lie apart. Towards 0: they have collapsed, and a
        small loss says nothing.
    """

    loss: th.Tensor
    target_variance: th.Tensor


class LatentFuture(nn.Module):
    """
    Predictor of the next states and the encoder that gives its targets.

    What differs from the paper: each number of a state, and not the state as a whole, is a token of the context; the
    targets' token of a step is the mean of these, normalised, with a code of its step; and steps are counted from the
    first state that an action leads to. ``"observation"`` and ``"raw_state"`` are not in the paper.

    :param encoder: The context encoder
    :param observation_space: Observation space
    :param horizon: Number of steps that are looked ahead
    :param target: What is predicted: the embedded ``"state"`` of each step, of all that is no image; the embedding of
        the whole ``"observation"``; or, for comparison, the standardised numbers of the ``"raw_state"``
    :param context_dim: Width of the context's tokens
    :param n_predicted: How many of the steps are predicted, evenly spaced, the last one among them. By default all, and
        four of ``"observation"``.
    :param predictor_dim: Width of the predictor
    :param predictor_depth: Number of its blocks
    :param num_heads: Its attention heads
    :raises ValueError: If the observations have no state, the encoder cannot give such targets, or a size is wrong
    """

    step_code: th.Tensor

    def __init__(
        self,
        encoder: nn.Module,
        observation_space: spaces.Space,
        horizon: int,
        target: str,
        context_dim: int,
        n_predicted: int | None = None,
        predictor_dim: int = 32,
        predictor_depth: int = 2,
        num_heads: int = 4,
    ):
        super().__init__()
        self.target = checks.choice("latent_target", target, TARGETS)
        self.is_of_state = target != "observation"
        if self.is_of_state and not has_state(observation_space):
            raise ValueError(
                f'`latent_target` must be "observation" for observations that are images alone, got "{target}" and '
                f"{observation_space}"
            )
        if self.is_of_state and not isinstance(encoder, JepaExtractor):
            raise ValueError(
                f'`latent_target="{target}"` needs a JepaExtractor as `features_extractor_class`, whose tokens it is '
                f'made of, got {type(encoder).__name__}. Take "observation" instead'
            )
        if n_predicted is None:
            n_predicted = horizon if self.is_of_state else min(horizon, N_PREDICTED_OBSERVATIONS)
        n_predicted = checks.whole_number("n_predicted", n_predicted, 1, horizon)
        # Counted from the present: the last one is the horizon
        self.steps = np.linspace(horizon / n_predicted, horizon, n_predicted).round().astype(np.int64)
        self.keys = state_keys(observation_space) if self.is_of_state else None
        self.target_encoder: MomentumEncoder | None = None
        if target == "raw_state":
            assert isinstance(encoder, JepaExtractor)
            output_dim = _n_raw(encoder, observation_space, self.keys)
        else:
            self.target_encoder = MomentumEncoder(encoder)
            output_dim = encoder.encoder.embed_dim if self.is_of_state else encoder.features_dim  # type: ignore[union-attr,assignment]
        if target == "state":
            self.register_buffer("step_code", position_code([n_predicted], output_dim), persistent=False)
        self.predictor = QueryDecoder(n_predicted, context_dim, output_dim, predictor_dim, predictor_depth, num_heads)

    def forward(self, context: th.Tensor, encoder: nn.Module, future: Any, weights: th.Tensor) -> FutureLoss:
        """
        :param context: The context's tokens, ``(batch, tokens, context_dim)``
        :param encoder: The context encoder
        :param future: Preprocessed observations of the predicted steps, ``(batch * n_predicted, *shape)``, or a
            dictionary of such; of a ``Dict``, the keys of :attr:`keys`
        :param weights: ``(batch, n_predicted)``, 1 where a step exists
        :return: The loss
        """
        predicted = self.predictor(context)
        with th.no_grad():
            targets = self._targets(encoder, future, weights)
        # Of one step, since steps differ from each other also where observations do not
        return FutureLoss(
            weighted_mean((predicted - targets).abs().mean(dim=2), weights), embedding_variance(targets[:, 0])
        )

    @property
    def target_parameters(self) -> set[nn.Parameter]:
        """Parameters of the target encoder, which are not learned."""
        return set() if self.target_encoder is None else set(self.target_encoder.parameters())

    def update(self, encoder: nn.Module, momentum: float) -> None:
        """
        Move the target encoder one step towards the context encoder.

        :param encoder: The context encoder
        :param momentum: ``m``
        """
        if self.target_encoder is not None:
            self.target_encoder.update(encoder, momentum)

    def _targets(self, encoder: nn.Module, future: Any, weights: th.Tensor) -> th.Tensor:
        if self.target == "raw_state":
            return _raw(encoder, future, self.keys).unflatten(0, weights.shape)  # type: ignore[arg-type]
        assert self.target_encoder is not None
        if self.target == "observation":
            return self.target_encoder(future).unflatten(0, weights.shape)
        transformer: Any = self.target_encoder.encoder.encoder
        tokens = _state_tokens(transformer.tokenizer, future, self.keys)
        # NaN says that a number is missing
        tokens = tokens.nanmean(dim=1).nan_to_num() if transformer.missing_as_nan else tokens.mean(dim=1)
        # As large as the code of the steps, however many numbers a state has
        tokens = F.layer_norm(tokens, tokens.shape[1:]).unflatten(0, weights.shape) + self.step_code
        # The first step always exists: attend to that alone where the episode has ended before it
        missing = weights < 0.5
        missing = missing & ~missing.all(dim=1, keepdim=True)
        for block in transformer.blocks:
            tokens = block(tokens, missing=missing)
        return transformer.norm(tokens)


def _state_tokens(tokenizer: nn.Module, states: Any, keys: list[str] | None) -> th.Tensor:
    return tokenizer(states, keys) if isinstance(tokenizer, DictTokenizer) else tokenizer(states)


def _raw(encoder: JepaExtractor, states: Any, keys: list[str] | None) -> th.Tensor:
    tokenizer: Any = encoder.encoder.tokenizer
    if isinstance(tokenizer, DictTokenizer):
        return tokenizer.token_inputs(states, keys).flatten(1).nan_to_num()
    return encoder.token_inputs(states).flatten(1).nan_to_num()


@th.no_grad()
def _n_raw(encoder: JepaExtractor, space: spaces.Space, keys: list[str] | None) -> int:
    """How many numbers the raw state has."""
    zeros = {
        key: th.zeros((1, *(one.shape or ())), dtype=th.float32)
        for key, one in spaces_by_key(space).items()
        if keys is None or key in keys
    }
    return _raw(encoder, preprocess_obs(as_observations(zeros), space), keys).shape[1]
