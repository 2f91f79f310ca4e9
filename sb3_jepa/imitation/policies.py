"""Policies that decide on chunks of actions, and execute them one after the other."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_jepa.common import checks
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.preprocessing import preprocess
from sb3_jepa.imitation.actions import chunked_actions
from sb3_jepa.imitation.latent_future import LatentFuture
from sb3_jepa.imitation.queue import from_ensemble, from_queue
from sb3_jepa.parts import QueryDecoder
from sb3_jepa.policies.files import PolicyFiles

# A wider encoder, such as a convolutional one with 512 features, is decoded by queries of this width
MAX_DECODER_DIM = 256


class ACTJEPAPolicy(PolicyFiles, BasePolicy):
    r"""
    The networks of *ACT-JEPA* (Vujinovic, Kovacevic 2025, arXiv 2501.14622): a context encoder, a decoder of the next
    ``horizon`` actions, and, while it learns, a predictor of the next states' embeddings, see
    :class:`~sb3_jepa.imitation.latent_future.LatentFuture`.

    It acts from a queue, which is the ``state`` of :meth:`predict`, as a recurrent policy's is. Pass it on.

    :param observation_space: Observation space
    :param action_space: A ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_class: The context encoder. All tokens of a :class:`~sb3_jepa.JepaExtractor` are decoded;
        any other extractor's features count as one token.
    :param features_extractor_kwargs: Keyword arguments for it
    :param normalize_images: Whether to normalize images or not, dividing by 255.0
    :param horizon: Number of actions of a chunk
    :param n_action_steps: How many of them are executed before the next chunk is decided on
    :param temporal_ensemble_coef: If given, a chunk is decided on at each step, and what is executed is the mean of all
        decisions for this step, the older ones with the larger weights, :math:`\exp(-\text{coef} \cdot i)`
    :param latent_target: What is predicted beside the actions: ``"state"``, ``"observation"`` or ``"raw_state"``; None
        for nothing
    :param n_predicted: How many of the next steps are predicted, see
        :class:`~sb3_jepa.imitation.latent_future.LatentFuture`
    :param decoder_depth: Blocks of the action decoder
    :param predictor_dim: Width of the predictor
    :param predictor_depth: Blocks of the predictor
    :param num_heads: Attention heads of decoder and predictor
    :param optimizer_class: The optimizer to use, ``th.optim.AdamW`` by default
    :param optimizer_kwargs: Additional keyword arguments, excluding the learning rate, to pass to the optimizer. By
        default a weight decay of 0.1, as in the paper.
    :raises ValueError: If an argument is out of range, or the actions are of another space
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = JepaExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        *,
        horizon: int = 30,
        n_action_steps: int | None = None,
        temporal_ensemble_coef: float | None = None,
        latent_target: str | None = "state",
        n_predicted: int | None = None,
        decoder_depth: int = 1,
        predictor_dim: int = 32,
        predictor_depth: int = 2,
        num_heads: int = 4,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        checks.subclass("features_extractor_class", features_extractor_class, BaseFeaturesExtractor)
        self.horizon = checks.whole_number("horizon", horizon)
        self.n_action_steps = checks.optional(
            checks.whole_number, "n_action_steps", n_action_steps, least=1, most=self.horizon
        )
        self.temporal_ensemble_coef = checks.optional(
            checks.number, "temporal_ensemble_coef", temporal_ensemble_coef, least=0
        )
        optimizer_kwargs = checks.keyword_arguments("optimizer_kwargs", optimizer_kwargs)
        if optimizer_class is th.optim.AdamW:
            optimizer_kwargs.setdefault("weight_decay", 0.1)
            optimizer_kwargs.setdefault("fused", not optimizer_kwargs.get("foreach"))
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=checks.keyword_arguments("features_extractor_kwargs", features_extractor_kwargs),
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self._network_kwargs = dict(
            decoder_depth=checks.whole_number("decoder_depth", decoder_depth),
            predictor_dim=checks.whole_number("predictor_dim", predictor_dim),
            predictor_depth=checks.whole_number("predictor_depth", predictor_depth),
            num_heads=checks.whole_number("num_heads", num_heads),
            n_predicted=n_predicted,
            latent_target=latent_target,
        )
        # The name by which find_encoders and load_encoder know it
        self.features_extractor = self.make_features_extractor()
        self.actions = chunked_actions(action_space)
        encoder = self.features_extractor
        context_dim = encoder.encoder.embed_dim if isinstance(encoder, JepaExtractor) else encoder.features_dim
        dim = max(num_heads, min(context_dim, MAX_DECODER_DIM) // num_heads * num_heads)
        self.action_decoder = QueryDecoder(
            self.horizon, context_dim, self.actions.output_dim, dim, decoder_depth, num_heads
        )
        self.latent_future: LatentFuture | None = None
        if latent_target is not None:
            self.latent_future = LatentFuture(
                encoder,
                observation_space,
                self.horizon,
                latent_target,
                context_dim,
                n_predicted,
                predictor_dim,
                predictor_depth,
                num_heads,
            )
        # Those of a frozen encoder too, which get no gradient, so that a saved optimizer fits either way
        of_target = set() if self.latent_future is None else self.latent_future.target_parameters
        learned = [one for one in self.parameters() if one not in of_target]
        self.optimizer = optimizer_class(learned, lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]

    def inputs(self, observations: PyTorchObs, keys: list[str] | None = None) -> Any:
        """
        :param observations: ``(batch, *observation shape)``, or a dictionary of such
        :param keys: Which keys there are; all by default
        :return: Preprocessed, as the encoder takes them
        """
        space = self.observation_space
        if keys is not None:
            assert isinstance(space, spaces.Dict)
            space = spaces.Dict({key: space[key] for key in keys})
        return preprocess(observations, space, self.normalize_images, [self.features_extractor])

    def context(self, inputs: Any) -> th.Tensor:
        """
        :param inputs: Preprocessed observations
        :return: What the context encoder makes of them, ``(batch, tokens, context_dim)``
        """
        encoder = self.features_extractor
        return encoder.encode_tokens(inputs) if isinstance(encoder, JepaExtractor) else encoder(inputs)[:, None]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        # The first action of a new chunk
        decoded = self.decide(observation)[:, 0]
        return th.as_tensor(self.actions.choose(decoded, deterministic), device=self.device)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: ``(batch, *observation shape)``
        :param deterministic: Whether or not to return deterministic actions
        :return: The first action of a new chunk
        """
        return self._predict(observation, deterministic)

    @th.no_grad()
    def decide(self, observation: PyTorchObs) -> np.ndarray:
        """
        :param observation: ``(batch, *observation shape)``
        :return: Of the next actions what they are chosen from, ``(batch, horizon, decoded)``: numbers of a ``Box``, or
            probabilities of categories
        """
        outputs = self.action_decoder(self.context(self.inputs(observation)))
        return self.actions.decode(outputs).float().cpu().numpy()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Get the policy action from an observation. The state holds the chunks that are being executed: pass it on, as
        ``evaluate_policy`` does. Without it, each call decides anew. Observations are looked at only where a chunk has
        come to its end, or an episode begins.

        :param observation: the input observation
        :param state: The last state, None at the start
        :param episode_start: The last masks, whether an episode begins
        :param deterministic: Whether or not to return deterministic actions; a ``Box`` has no others
        :return: the model's action and the next state
        :raises ValueError: If the observation is none of the space, or the state is of another policy
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple):
            raise ValueError(
                "`observation` must be an observation, got a tuple: `reset()` of a Gymnasium environment returns "
                "(observation, info)"
            )
        is_vectorized = self.is_vectorized_observation(observation)
        keyed = {key: np.asarray(array) for key, array in by_key(observation).items()}
        if not is_vectorized:
            keyed = {key: array[None] for key, array in keyed.items()}
        n_envs = len(next(iter(keyed.values())))
        starts = np.zeros(n_envs, dtype=bool)
        if episode_start is not None:
            starts = np.broadcast_to(np.asarray(episode_start, dtype=bool).reshape(-1), (n_envs,))

        def decide(numbers: np.ndarray) -> np.ndarray:
            picked = keyed if len(numbers) == n_envs else {key: array[numbers] for key, array in keyed.items()}
            tensors, _ = self.obs_to_tensor(as_observations(picked))
            return self.decide(tensors)

        shape = (self.horizon, self.actions.output_dim)
        if self.temporal_ensemble_coef is None:
            n_action_steps = self.horizon if self.n_action_steps is None else self.n_action_steps
            decoded, state = from_queue(state, starts, n_action_steps, shape, decide)
        else:
            decoded, state = from_ensemble(state, starts, self.temporal_ensemble_coef, shape, decide)
        actions = self.actions.choose(decoded, deterministic)
        return (actions if is_vectorized else actions[0]), state

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=_no_schedule,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            horizon=self.horizon,
            n_action_steps=self.n_action_steps,
            temporal_ensemble_coef=self.temporal_ensemble_coef,
            **self._network_kwargs,
        )
        return data


def _no_schedule(_: float) -> float:
    """The learning rate of a policy that was loaded without its algorithm."""
    return 0.0
