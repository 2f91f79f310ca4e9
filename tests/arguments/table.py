"""Every public argument: what is legal for it, and how to call what takes it. For test_bad_arguments.py."""

import importlib
from collections.abc import Callable
from typing import Any

import sb3_jepa
from sb3_jepa import data, diagnostics, parts
from tests.arguments.cases import OF_SB3, RECORD, TENSORS
from tests.arguments.imitation import IMITATION, IMITATION_RECORDS
from tests.arguments.learning import OBJECTIVES, PRETRAINING
from tests.arguments.lidar import LIDAR
from tests.arguments.pure_torch import DIAGNOSTICS, PARTS
from tests.arguments.sb3_face import FACE, SHOWN
from tests.arguments.sequences import SEQUENCES
from tests.arguments.zero_shot import RECORDS, ZERO_SHOT

pretrain: Any = importlib.import_module("sb3_jepa.pretrain")

CALLS = [*FACE, *OBJECTIVES, *SHOWN, *DIAGNOSTICS, *IMITATION, *LIDAR, *PRETRAINING, *PARTS, *SEQUENCES, *ZERO_SHOT]

# Classes and functions of which no argument is tried, and why
UNTRIED: dict[Callable[..., Any], str] = {
    sb3_jepa.JepaRolloutBuffer: OF_SB3,
    sb3_jepa.JepaDictRolloutBuffer: OF_SB3,
    sb3_jepa.ObjectiveInput: RECORD,
    sb3_jepa.ObjectiveOutput: RECORD,
    sb3_jepa.Transitions: RECORD,
    **RECORDS,
    **IMITATION_RECORDS,
    data.Windows: RECORD,
    parts.Masks: RECORD,
    diagnostics.Trajectory: RECORD,
    diagnostics.UnrolledErrors: RECORD,
    diagnostics.FeatureNoise: RECORD,
    diagnostics.Verdict: RECORD,
    diagnostics.assess: "measured numbers, and NaN is one of them",
    parts.MaskSampler: "abstract: BlockMasks and SubsetMasks are tried",
    parts.TokenEncoder: "a protocol, of which nothing is made",
    parts.measuring: "modules, which it puts into another mode",
    **dict.fromkeys(
        (
            parts.attach_loss,
            parts.covariance_loss,
            parts.embedding_variance,
            parts.prediction_loss,
            parts.variance_loss,
            parts.weighted_mean,
            diagnostics.area_under_curve,
            diagnostics.effective_rank,
            diagnostics.participation_ratio,
            diagnostics.spectrum,
        ),
        TENSORS,
    ),
    pretrain.read_minari: "needs a package that the tests do without",
    data.read_lerobot: "needs a package that the tests do without",
    data.read_robomimic: "needs a package that the tests do without",
}
