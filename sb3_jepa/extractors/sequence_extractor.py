"""seq-JEPA's context encoder: memory for tasks that a single observation does not tell enough of."""

from functools import partial
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.histories import ACTIONS, IS_REAL, VIEWS, has_views, is_history
from sb3_jepa.common.observations import NO_KEY, as_observations, by_key
from sb3_jepa.common.versions import Versions
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.mlp_extractor import MlpExtractor, has_only_vectors
from sb3_jepa.objectives import NextLatentPrediction, Objective, SequencePrediction
from sb3_jepa.parts.aggregator import SequenceAggregator


class ViewEncoder(nn.Module):
    """
    Encoder of single views. Of a history, it gives the embedding of the newest: this is the part of a
    :class:`SequenceExtractor` that targets come from.

    :param extractor: Features extractor for one view
    :param keys: Under which key of a history the views are, for each key of a view
    :param scales: What views under a key are multiplied by, where Stable-Baselines3 has not done it
    """

    def __init__(self, extractor: BaseFeaturesExtractor, keys: dict[str, str], scales: dict[str, float]):
        super().__init__()
        self.extractor, self.keys, self.scales = extractor, keys, scales

    def select(self, histories: dict[str, th.Tensor], which: Any) -> Any:
        """
        :param histories: Preprocessed, ``(batch, length, *view shape)`` under the keys of the views
        :param which: Index of the first two axes
        :return: These views, as the extractor takes them
        """
        views = {}
        for name, key in self.keys.items():
            views[name] = array = histories[key][which]
            # Bytes are scaled where they become tokens
            if key in self.scales and array.dtype != th.uint8:
                views[name] = array * self.scales[key]
        return as_observations(views)

    def forward(self, histories: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param histories: Preprocessed
        :return: Embedding of the newest view, ``(batch, embed_dim)``
        """
        return self.extractor(self.select(histories, (slice(None), -1)))


class _LastViews(NamedTuple):
    """What was embedded in the step before, and by which parameters."""

    views: dict[str, th.Tensor]
    is_real: th.Tensor
    embeddings: th.Tensor
    versions: Versions
    smallest: th.Tensor

    def are_like(self, views: dict[str, th.Tensor]) -> bool:
        """Whether there were as many, of the same type: images may be bytes or floats."""
        return all(
            (self.views[key].shape, self.views[key].dtype) == (one.shape, one.dtype) for key, one in views.items()
        )

    def were_embedded_by(self, tensors: list[th.Tensor], smallest: th.Tensor) -> bool:
        """Whether the parameters are still the same."""
        return self.versions.match(tensors) and th.equal(smallest, self.smallest)

    def are_followed_by(self, views: dict[str, th.Tensor], is_real: th.Tensor) -> bool:
        """Whether there is one new view for each environment, and all others are the same."""
        arrays = [(array, self.views[key]) for key, array in views.items()]
        return all(th.equal(array[:, :-1], last[:, 1:]) for array, last in [(is_real, self.is_real), *arrays])

    def which_are_known(self, views: dict[str, th.Tensor], is_real: th.Tensor) -> th.Tensor:
        """Which of the older views were embedded, ``(batch, length - 1)``; no environment has ended there."""
        known = is_real[:, :-1] & self.is_real[:, 1:]
        for key, array in views.items():
            known = known & (array[:, :-1] == self.views[key][:, 1:]).reshape(*known.shape, -1).all(dim=2)
        return known


class SequenceExtractor(BaseFeaturesExtractor):
    """
    Memory: an encoder of single views, and a transformer over the last of them and the actions between, whose aggregate
    token is the state (*seq-JEPA*, Ghaemi, Muller, Bakhtiari 2025, arXiv 2505.03176). Usable as
    ``features_extractor_class`` of any Stable-Baselines3 algorithm, with the histories of
    :class:`~sb3_jepa.envs.VecHistory`::

        from sb3_jepa import PPO, JepaPolicy, SequenceExtractor, SequencePrediction
        from sb3_jepa.envs import VecHistory

        policy_kwargs = dict(features_extractor_class=SequenceExtractor, objective_class=SequencePrediction)
        PPO(JepaPolicy, VecHistory(env, length=4), policy_kwargs=policy_kwargs).learn(100_000)

    While it acts, views that it has encoded in the step before are not encoded again.

    :param observation_space: Of histories. What else there is, such as goals, is appended to the features.
    :param embed_dim: Width of a view's embedding
    :param view_extractor_class: Encoder of a view; by default a :class:`~sb3_jepa.JepaExtractor` for images and grids,
        and else a :class:`~sb3_jepa.MlpExtractor`
    :param view_extractor_kwargs: Its keyword arguments beside ``embed_dim``
    :param action_embed_dim: Width of an action's embedding in the aggregator; 0 to tell it no actions
    :param depth: Number of the aggregator's blocks
    :param num_heads: Attention heads of each, a divisor of ``embed_dim + action_embed_dim``
    :param mlp_ratio: Hidden width of each block's MLP as a multiple of its width
    :param order_code: Whether the aggregator is told how old each view is
    :param output: What the features are: ``"both"``, the aggregate and the newest view's embedding, or the
        ``"aggregate"`` alone, as in the paper
    :raises ValueError: If the observations are no histories, or an argument is not among those accepted
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        embed_dim: int = 64,
        *,
        view_extractor_class: type[BaseFeaturesExtractor] | None = None,
        view_extractor_kwargs: dict[str, Any] | None = None,
        action_embed_dim: int = 16,
        depth: int = 1,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        order_code: bool = True,
        output: str = "both",
    ):
        if not is_history(observation_space):
            checks.refuse(
                "observation_space", "histories: wrap the environment in sb3_jepa.envs.VecHistory", observation_space
            )
        assert isinstance(observation_space, spaces.Dict)
        kwargs = checks.keyword_arguments("view_extractor_kwargs", view_extractor_kwargs)
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        output = checks.choice("output", output, ("both", "aggregate"))
        keys = {key.removeprefix(VIEWS).removeprefix("_"): key for key in observation_space if has_views(key)}
        view_spaces = {name: _of_one_view(observation_space[key]) for name, key in keys.items()}
        view_space = view_spaces[NO_KEY] if NO_KEY in view_spaces else spaces.Dict(view_spaces)
        if view_extractor_class is None:
            view_extractor_class = MlpExtractor if has_only_vectors(view_space) else JepaExtractor
        checks.subclass("view_extractor_class", view_extractor_class, BaseFeaturesExtractor)
        width = "embed_dim" if issubclass(view_extractor_class, (JepaExtractor, MlpExtractor)) else "features_dim"
        extractor = view_extractor_class(view_space, **{width: embed_dim, **kwargs})
        others = {key: one for key, one in observation_space.items() if not _is_part_of_history(key)}
        combined = CombinedExtractor(spaces.Dict(others)) if others else None
        length, action_dim = observation_space[IS_REAL].shape[0], observation_space[ACTIONS].shape[1]  # type: ignore[index]
        aggregator = SequenceAggregator(
            extractor.features_dim, action_dim, action_embed_dim, length, depth, num_heads, mlp_ratio, order_code
        )
        n_features = aggregator.dim + extractor.features_dim * (output == "both")
        super().__init__(observation_space, n_features + (combined.features_dim if combined is not None else 0))
        self.output, self._others = output, list(others)
        # Stable-Baselines3 scales the images that it recognises: a view may be one, and a stack of views none
        scales = {
            keys[name]: _scale_of(one) / _scale_of(observation_space[keys[name]]) for name, one in view_spaces.items()
        }
        scales = {key: scale for key, scale in scales.items() if scale != 1.0}
        self.view_encoder = ViewEncoder(extractor, keys, scales)
        self.aggregator, self.combined = aggregator, combined
        self._last: _LastViews | None = None
        # Parameters and buffers of the encoder of views, and the smallest parameter
        self._tensors: tuple[list[th.Tensor], th.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return dict(super().__getstate__(), _last=None, _tensors=None)

    def _apply(self, fn: Any, recurse: bool = True) -> "SequenceExtractor":
        # To another device: PyTorch makes other tensors of buffers
        self._last = self._tensors = None
        return super()._apply(fn, recurse)

    @property
    def target_module(self) -> ViewEncoder:
        """What targets come from: the encoder of single views."""
        return self.view_encoder

    @property
    def takes_bytes(self) -> bool:
        """Whether images may stay bytes."""
        return isinstance(self.view_encoder.extractor, JepaExtractor)

    @property
    def n_inputs_to_measure(self) -> int:
        """Number of views that the input statistics still lack."""
        return getattr(self.view_encoder.extractor, "n_inputs_to_measure", 0)

    def measure_inputs(self, observations: dict[str, th.Tensor]) -> None:
        """
        Merge views into the statistics that standardise the input, see :meth:`~sb3_jepa.JepaExtractor.measure_inputs`.

        :param observations: Preprocessed histories, of which the newest views are measured
        """
        newest = self.view_encoder.select(observations, (slice(None), -1))
        self.view_encoder.extractor.measure_inputs(newest)  # type: ignore[operator]

    def token_inputs(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Preprocessed histories
        :return: The numbers of the newest view, ``(batch, inputs, 1)``
        """
        newest = by_key(self.view_encoder.select(observations, (slice(None), -1)))
        return th.cat([one.float().flatten(1) for one in newest.values()], dim=1)[..., None]

    def apply(self, fn: Any) -> "SequenceExtractor":
        """
        Apply a function to all submodules, except Stable-Baselines3's ``ortho_init``, as
        :meth:`~sb3_jepa.JepaExtractor.apply`.

        :param fn: Function to apply
        """
        if isinstance(fn, partial) and fn.func is BasePolicy.init_weights:
            return self
        return super().apply(fn)

    def embed_views(self, histories: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param histories: Preprocessed
        :return: Embeddings of the views, ``(batch, length, embed_dim)``, 0 where there is none
        """
        is_real = histories[IS_REAL] > 0.5
        # The newest always is, also in a sample of the space
        is_real[:, -1] = True
        if th.compiler.is_exporting():
            # One place after the other: neither indices nor sizes that depend on the data
            places = [self.view_encoder.select(histories, (slice(None), index)) for index in range(is_real.shape[1])]
            views = th.stack([self.view_encoder.extractor(one) for one in places], dim=1)
            return views * is_real[..., None]
        if self.training or th.is_grad_enabled():
            return self._embed(histories, is_real)
        return self._embed_new(histories, is_real)

    def _embed(self, histories: dict[str, th.Tensor], which: th.Tensor) -> th.Tensor:
        embedded = self.view_encoder.extractor(self.view_encoder.select(histories, which))
        embeddings = embedded.new_zeros(*which.shape, embedded.shape[1])
        embeddings[which] = embedded
        return embeddings

    def _embed_new(self, histories: dict[str, th.Tensor], is_real: th.Tensor) -> th.Tensor:
        """Only what was not embedded in the step before, by the same parameters."""
        views = {key: histories[key] for key in self.view_encoder.keys.values()}
        if self._tensors is None:
            parameters = list(self.view_encoder.parameters())
            smallest = min(parameters, key=th.numel) if parameters else next(iter(views.values())).new_zeros(1)
            self._tensors = [*parameters, *self.view_encoder.buffers()], smallest
        # Target networks move without another version: look at the values of a small parameter too
        tensors, smallest = self._tensors
        last = self._last
        if last is not None and not (last.are_like(views) and last.were_embedded_by(tensors, smallest)):
            last = None
        if last is not None and last.are_followed_by(views, is_real):
            newest = self.view_encoder(histories)
            embeddings = th.cat((last.embeddings[:, 1:], newest[:, None]), dim=1)
        elif last is not None:
            is_known = last.which_are_known(views, is_real)
            is_needed = is_real.clone()
            is_needed[:, :-1] &= ~is_known
            embeddings = self._embed(histories, is_needed)
            embeddings[:, :-1] += th.where(is_known[..., None], last.embeddings[:, 1:], 0.0)
        else:
            embeddings = self._embed(histories, is_real)
        # Copy: the caller may write into its arrays
        copies = {key: array.clone() for key, array in views.items()}
        self._last = _LastViews(copies, is_real, embeddings, Versions(tensors), smallest.clone())
        return embeddings

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Preprocessed histories
        :return: The aggregate, then with ``output="both"`` the newest view's embedding, then all that is not part of a
            history, ``(batch, features_dim)``
        """
        embeddings = self.embed_views(observations)
        features = [self.aggregator(embeddings, observations[ACTIONS], observations[IS_REAL])]
        if self.output == "both":
            features.append(embeddings[:, -1])
        if self.combined is not None:
            features.append(self.combined({key: observations[key] for key in self._others}))
        return th.cat(features, dim=1) if len(features) > 1 else features[0]


def _is_part_of_history(key: str) -> bool:
    return has_views(key) or key in (ACTIONS, IS_REAL)


def _of_one_view(space: spaces.Space) -> spaces.Space:
    assert isinstance(space, spaces.Box)
    return spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type)  # type: ignore[type-var]


def _scale_of(space: spaces.Space) -> float:
    """What Stable-Baselines3 multiplies such observations by."""
    return 1.0 / 255.0 if is_image_space(space) else 1.0


def default_objective(features_extractor_class: type[BaseFeaturesExtractor]) -> type[Objective]:
    """
    :param features_extractor_class: Of a context encoder
    :return: What it learns unless something else is asked for
    """
    return SequencePrediction if issubclass(features_extractor_class, SequenceExtractor) else NextLatentPrediction
