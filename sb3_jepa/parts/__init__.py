"""The parts every objective is made of. Pure PyTorch: nothing here knows Stable-Baselines3."""

from sb3_jepa.parts.heads import InverseDynamics
from sb3_jepa.parts.losses import (
    attach_loss,
    covariance_loss,
    deviation_loss,
    embedding_variance,
    prediction_loss,
    variance_loss,
    weighted_mean,
)
from sb3_jepa.parts.masks import BlockMasks, Masks, MaskSampler, SubsetMasks
from sb3_jepa.parts.neighbors import NeighborAggregation
from sb3_jepa.parts.patches import PatchTokenizer, default_patch_size
from sb3_jepa.parts.predictors import ActionConditionedPredictor, MaskedPredictor, position_code
from sb3_jepa.parts.query_decoder import QueryDecoder
from sb3_jepa.parts.random_shift import random_shift
from sb3_jepa.parts.standardization import InputStandardization, measuring
from sb3_jepa.parts.standardized_patches import StandardizedGridTokenizer, StandardizedPatchTokenizer
from sb3_jepa.parts.targets import MomentumEncoder, TargetEncoder
from sb3_jepa.parts.token_encoder import TokenEncoder
from sb3_jepa.parts.tokenizers import (
    CategoryTokenizer,
    ColumnTokenizer,
    DictTokenizer,
    StandardizedColumnTokenizer,
)
from sb3_jepa.parts.transformer import TransformerEncoder

__all__ = [
    "ActionConditionedPredictor",
    "BlockMasks",
    "CategoryTokenizer",
    "ColumnTokenizer",
    "DictTokenizer",
    "InputStandardization",
    "InverseDynamics",
    "MaskSampler",
    "MaskedPredictor",
    "Masks",
    "MomentumEncoder",
    "NeighborAggregation",
    "PatchTokenizer",
    "QueryDecoder",
    "StandardizedColumnTokenizer",
    "StandardizedGridTokenizer",
    "StandardizedPatchTokenizer",
    "SubsetMasks",
    "TargetEncoder",
    "TokenEncoder",
    "TransformerEncoder",
    "attach_loss",
    "covariance_loss",
    "default_patch_size",
    "deviation_loss",
    "embedding_variance",
    "measuring",
    "position_code",
    "prediction_loss",
    "random_shift",
    "variance_loss",
    "weighted_mean",
]
