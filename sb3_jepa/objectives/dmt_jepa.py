"""DMT-JEPA: the target of a patch is an aggregate of its most similar neighbours."""

from typing import Any

from torch import nn

from sb3_jepa.objectives.masked import MaskedPrediction
from sb3_jepa.parts.neighbors import NeighborAggregation


class DmtJepa(MaskedPrediction):
    """
    *DMT-JEPA* (Mo and Yun 2024, arXiv 2405.17995), for images: what is predicted of a hidden patch is an aggregate of
    those patches around it that are most similar to it, see :class:`~sb3_jepa.parts.NeighborAggregation`, so that
    targets tell apart patches that are close to each other::

        from sb3_jepa import PPO, DmtJepa
        from sb3_jepa.envs import make_pixel_vec_env

        PPO("JepaPolicy", make_pixel_vec_env("CartPole-v1"), policy_kwargs=dict(objective_class=DmtJepa)).learn(10_000)

    What differs from the paper: where each frame has patches of its own, those of the frames before and after are
    neighbours too. The loss is the smooth L1 of its code; its text has an L2.

    :param encoder: The context encoder
    :param embed_dim: Width of the embedding
    :param kwargs: Those of :class:`MaskedPrediction`; ``target_transform_kwargs`` has the choices of the aggregation,
        such as ``window``, ``k`` and ``num_heads``
    :raises ValueError: If an argument is not among those accepted, or the observations are no images
    """

    def __init__(self, encoder: nn.Module, embed_dim: int, **kwargs: Any):
        defaults = dict(target_transform_class=NeighborAggregation, prediction_loss="smooth_l1")
        super().__init__(encoder, embed_dim, **{**defaults, **kwargs})
