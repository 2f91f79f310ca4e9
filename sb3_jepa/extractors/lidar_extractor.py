"""AD-L-JEPA's context encoder: LiDAR, as point clouds, laser scans and occupancy grids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.observations import NO_KEY, as_observations, by_key
from sb3_jepa.common.spaces import spaces_by_key
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.mlp_extractor import MlpExtractor, has_only_vectors
from sb3_jepa.parts.bev import BevGrid, BevMap, scan_points
from sb3_jepa.parts.masked_convolutions import BevEncoder

KINDS = ("points", "scan", "grid")
# x, y, z, and further numbers such as intensity and ring
POINT_WIDTHS = (3, 4, 5)


class LidarExtractor(BaseFeaturesExtractor):
    """
    LiDAR as features: points fall into the cells of a bird's-eye view, convolutions embed these and leave empty ones
    empty, and what lies in each of ``pooling`` x ``pooling`` parts of the view becomes the features. (The encoder of
    *AD-L-JEPA*, Zhu et al. 2026, arXiv 2501.04969, for robots: two dimensions in the place of three, without a library
    for sparse tensors.) Usable as ``features_extractor_class`` of any Stable-Baselines3 algorithm::

        kwargs = dict(key="lidar", range=(-20, 20, -20, 20, -2, 2), cell=0.5)
        policy_kwargs = dict(features_extractor_class=LidarExtractor, features_extractor_kwargs=kwargs)
        PPO(JepaPolicy, env, policy_kwargs=policy_kwargs).learn(100_000)

    It takes

    - point clouds ``(points, 3)`` of x, y, z, or with up to two further numbers such as intensity; several sweeps,
      ``(sweeps, points, 3)``, are seen as layers of one view. Points that are NaN, infinite or out of range do not
      count, so that a cloud is filled up with NaN, or with points far away; a cloud without a point is empty space.
    - laser scans ``(beams,)``, or several, ``(scans, beams)``, with the ``angles`` of the beams. A beam as long as
      ``no_return`` has hit nothing, and gives no point.
    - occupancy grids ``(rows, columns)`` or ``(channels, rows, columns)``: 0 is empty

    alone, or under the ``key`` of a ``Dict``. All other keys are embedded by an :class:`~sb3_jepa.MlpExtractor`, or if
    there are images by a :class:`~sb3_jepa.JepaExtractor`, and appended.

    :param observation_space: Of the observations
    :param embed_dim: Width of what is made of the LiDAR, and of all other keys
    :param key: Under which key of a ``Dict`` the LiDAR is; by default the only one that can be it
    :param range: ``(x_min, x_max, y_min, y_max, z_min, z_max)`` that is looked at, in the unit of the points, with the
        sensor at 0. With ``polar``, x is the distance and y the angle.
    :param cell: Side of a cell, or its sides along x and y
    :param kind: ``"points"``, ``"scan"`` or ``"grid"``, where the shape does not tell
    :param angles: Of the beams of a scan, in radians: ``(first, last)``, evenly spaced, or one for each beam
    :param no_return: The length of a beam that has hit nothing; by default the upper bound of the space
    :param z_bins: Number of voxels above each other
    :param polar: Whether cells are those of distance and angle
    :param width: Width of the first convolution, a multiple of 4
    :param halvings: How often the rows and columns of the view are halved
    :param cell_dim: Width of a cell's embedding, a multiple of 4
    :param norm: ``"group"``, or as in the paper ``"batch"``, of which a policy should not be made: it acts in another
        mode than it learns
    :param pooling: Into how many parts on each side the view is divided for the features; at most as many as there are
        embedded cells. The more, the better it is known where something is, which a robot needs that must not hit it.
    :param others_kwargs: Keyword arguments of the extractor of all other keys
    :raises ValueError: If the observations are none of these, or do not fit an argument
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        embed_dim: int = 64,
        *,
        key: str | None = None,
        range: Sequence[float] = (-20.0, 20.0, -20.0, 20.0, -2.0, 2.0),
        cell: float | Sequence[float] = 0.5,
        kind: str | None = None,
        angles: Sequence[float] | None = None,
        no_return: float | None = None,
        z_bins: int = 2,
        polar: bool = False,
        width: int = 16,
        halvings: int = 2,
        cell_dim: int = 64,
        norm: str = "group",
        pooling: int = 8,
        others_kwargs: dict[str, Any] | None = None,
    ):
        checks.instance("observation_space", observation_space, spaces.Space)
        embed_dim = checks.whole_number("embed_dim", embed_dim)
        pooling, halvings = checks.whole_number("pooling", pooling), checks.whole_number("halvings", halvings, 0)
        others_kwargs = checks.keyword_arguments("others_kwargs", others_kwargs)
        keyed = spaces_by_key(observation_space)
        key = _find_key(keyed, checks.optional(checks.text, "key", key))
        space = keyed[key]
        kind = checks.optional(checks.choice, "kind", kind, accepted=KINDS)
        kind = ("scan" if angles is not None else _kind_of(space)) if kind is None else kind
        shape = _sweep_shape(space, kind)
        others = {name: one for name, one in keyed.items() if name != key}
        rest: BaseFeaturesExtractor | None = None
        if others:
            rest_class = MlpExtractor if has_only_vectors(spaces.Dict(others)) else JepaExtractor
            rest = rest_class(spaces.Dict(others), embed_dim, **others_kwargs)
        super().__init__(observation_space, embed_dim + (rest.features_dim if rest is not None else 0))
        self.key, self.kind, self.pooling, self.sweep_shape = key, kind, pooling, shape
        self.grid: BevGrid | None = None
        self.no_return = np.inf
        if kind == "grid":
            channels, map_shape = shape[0], _multiples(shape[1:], 2**halvings)
        else:
            self.grid = BevGrid(range, cell, max(0, shape[2] - 3), z_bins, polar, 2**halvings)
            channels, map_shape = shape[0] * self.grid.channels, self.grid.shape
        if kind == "scan":
            self._set_beams(space, angles, no_return, shape[1])
        self.map_shape = tuple(map_shape)
        self.cell_encoder = BevEncoder(channels, map_shape, cell_dim, width, halvings, norm)
        n_parts = min(pooling, *self.cell_encoder.token_shape) ** 2
        self.pool = nn.AdaptiveMaxPool2d(min(pooling, *self.cell_encoder.token_shape))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(n_parts * self.cell_encoder.cell_dim, embed_dim), nn.LayerNorm(embed_dim)
        )
        self.others = rest

    beam_angles: th.Tensor
    # NaN is no point
    takes_nan = True
    # What an encoder file may lack: each model has other keys
    own_parts = ("others.",)

    def _set_beams(
        self, space: spaces.Space, angles: Sequence[float] | None, no_return: float | None, n_beams: int
    ) -> None:
        if angles is None:
            raise ValueError(f"`angles` must be given for laser scans, (first, last) in radians, got None for {space}")
        given = np.asarray(angles, dtype=np.float64)
        if given.ndim != 1 or not np.isfinite(given).all() or len(given) not in (2, n_beams):
            raise ValueError(
                f"`angles` must be (first, last) or one for each of the {n_beams} beams, in radians, got "
                f"{given.size} numbers"
            )
        spaced = given if len(given) == n_beams else np.linspace(given[0], given[1], n_beams)
        self.register_buffer("beam_angles", th.as_tensor(spaced, dtype=th.float32), persistent=False)
        highest = float(np.max(space.high))  # type: ignore[attr-defined]
        self.no_return = highest if no_return is None else checks.number("no_return", no_return, above=0)

    def bev(self, observations: PyTorchObs) -> BevMap:
        """
        :param observations: Preprocessed observations
        :return: The bird's-eye view
        """
        sweeps = by_key(observations)[self.key].float()
        batch, n_sweeps = len(sweeps), self.sweep_shape[0]
        if self.kind == "grid":
            cells = sweeps.reshape(batch, *self.sweep_shape)
            missing = [full - given for full, given in zip(self.map_shape, cells.shape[2:], strict=True)]
            cells = nn.functional.pad(cells.nan_to_num(0.0), (0, missing[1], 0, missing[0]))
            return BevMap(cells, (cells != 0).any(dim=1, keepdim=True).to(cells.dtype))
        assert self.grid is not None
        points = sweeps.reshape(batch * n_sweeps, *self.sweep_shape[1:])
        if self.kind == "scan":
            points = scan_points(points.squeeze(2), self.beam_angles, self.no_return)
        bev = self.grid(points)
        if n_sweeps == 1:
            return bev
        return BevMap(
            bev.cells.unflatten(0, (batch, n_sweeps)).flatten(1, 2),
            bev.occupied.unflatten(0, (batch, n_sweeps)).amax(dim=1),
        )

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Preprocessed observations
        :return: Embedding ``(batch, features_dim)``
        """
        features = self.head(self.pool(self.cell_encoder(self.bev(observations)).cells))
        if self.others is None:
            return features
        rest = {name: one for name, one in by_key(observations).items() if name != self.key}
        return th.cat((features, self.others(rest)), dim=1)

    def token_inputs(self, observations: PyTorchObs) -> th.Tensor:
        """
        What the embedded cells are made of.

        :param observations: Preprocessed observations
        :return: ``(batch, cells, channels)``, the means of what is joined
        """
        cells = nn.functional.avg_pool2d(self.bev(observations).cells, self.cell_encoder.factor)
        return cells.flatten(2).transpose(1, 2)

    @property
    def n_inputs_to_measure(self) -> int:
        """Number of observations that the input statistics of all other keys still lack."""
        return getattr(self.others, "n_inputs_to_measure", 0)

    def measure_inputs(self, observations: PyTorchObs) -> None:
        """
        Merge observations into the statistics that standardise the other keys.

        :param observations: Preprocessed observations
        """
        if self.n_inputs_to_measure > 0:
            rest = {name: one for name, one in by_key(observations).items() if name != self.key}
            self.others.measure_inputs(as_observations(rest))  # type: ignore[union-attr,operator]


def _find_key(keyed: Any, key: str | None) -> str:
    if NO_KEY in keyed:
        if key is not None:
            raise ValueError(f"`key` must be None for observations that are no Dict, got {key!r}")
        return NO_KEY
    if key is None:
        found = [name for name, space in keyed.items() if _can_be_points(space)]
        if len(found) != 1:
            raise ValueError(f"`key` must name the LiDAR among the keys {sorted(keyed)}, got None")
        return found[0]
    if key not in keyed:
        raise ValueError(f"`key` must be one of {sorted(keyed)}, got {key!r}")
    return key


def _can_be_points(space: spaces.Space) -> bool:
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return False
    return len(space.shape) in (2, 3) and space.shape[-1] in POINT_WIDTHS


def _kind_of(space: spaces.Space) -> str:
    if _can_be_points(space):
        return "points"
    return "scan" if isinstance(space, spaces.Box) and len(space.shape) == 1 else "grid"


def _sweep_shape(space: spaces.Space, kind: str) -> tuple[int, ...]:
    """``(sweeps, points, numbers)``, ``(scans, beams, 1)`` or ``(channels, rows, columns)``."""
    shape = space.shape if isinstance(space, spaces.Box) else ()
    assert shape is not None
    if kind == "points" and len(shape) in (2, 3) and shape[-1] in POINT_WIDTHS:
        return (1, *shape)[-3:]
    if kind == "scan" and len(shape) in (1, 2):
        return (*(1, *shape)[-2:], 1)
    if kind == "grid" and len(shape) in (2, 3):
        return (1, *shape)[-3:]
    wanted = dict(
        points=f"(points, width) or (sweeps, points, width), with a width of {', '.join(map(str, POINT_WIDTHS))}",
        scan="(beams,) or (scans, beams)",
        grid="(rows, columns) or (channels, rows, columns)",
    )
    raise ValueError(f"`observation_space` must have LiDAR of shape {wanted[kind]} for `kind={kind!r}`, got {space}")


def _multiples(sides: Sequence[int], factor: int) -> tuple[int, ...]:
    return tuple(-(-side // factor) * factor for side in sides)
