import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_jepa import JepaExtractor, MaskedPrediction, Recordings
from sb3_jepa.parts.masks import Masks
from sb3_jepa.pretrain.loading import Loader
from sb3_jepa.pretrain.validation import N_COMPONENTS, Validation, result_of

N_COLUMNS = 20
VECTORS = th.as_tensor(
    np.random.default_rng(0).normal(size=(90, 3)) @ np.random.default_rng(1).normal(size=(3, N_COLUMNS))
)
VECTORS = VECTORS.float() + 0.5
SPACE = spaces.Box(-9, 9, (N_COLUMNS,))
TRAINING, VALIDATION = np.arange(60), np.arange(60, 90)


class FixedMasks:
    def sample(self, batch_size: int) -> Masks:
        return Masks(th.arange(10).expand(batch_size, -1), th.arange(10, N_COLUMNS).expand(batch_size, 1, -1))


def make(target: str = "input") -> tuple[JepaExtractor, MaskedPrediction]:
    th.manual_seed(0)
    encoder = JepaExtractor(SPACE, embed_dim=8, num_heads=2, depth=1, standardize_frames=0)
    return encoder, MaskedPrediction(encoder, 8, target=target, predictor_dim=8, predictor_depth=1)


def make_validation(batch_size: int = 16, labels: np.ndarray | None = None) -> Validation:
    recordings = Recordings(SPACE, VECTORS.numpy(), np.arange(len(VECTORS)))
    load = Loader(recordings, MaskedPrediction, th.device("cpu"))
    return Validation(load, TRAINING, VALIDATION, labels, batch_size, seed=0)


def test_each_observation_counts_the_same():
    encoder, objective = make()
    objective.masks = [FixedMasks()]
    # 16 and 14, 29 and 1, and all at once
    losses = [make_validation(size).measure(encoder, objective, encoder)["validation_loss"] for size in (16, 29, 90)]
    assert losses == pytest.approx([losses[-1]] * 3, rel=1e-5)


def test_the_probe_reads_principal_components():
    encoder, objective = make()
    validation = make_validation()
    validation.measure(encoder, objective, encoder)
    found = validation._probe_targets
    assert found.shape == (90, N_COMPONENTS)
    centered = (VECTORS - VECTORS[TRAINING].mean(dim=0)).double().numpy()
    _, _, directions = np.linalg.svd(centered[TRAINING], full_matrices=False)
    expected = centered @ directions.T
    # Up to their signs. There are three, and then nothing but rounding
    assert np.allclose(np.abs(found[:, :3]), np.abs(expected[:, :3]), atol=1e-3)
    assert np.abs(found[:, 3:]).max() < 1e-3


def test_measuring_changes_nothing():
    encoder, objective = make("momentum")
    encoder.train()
    validation, result = make_validation(), result_of(encoder, objective)
    assert result is objective.target_encoder.encoder
    before = th.get_rng_state()
    first = validation.measure(encoder, objective, result)
    assert th.equal(th.get_rng_state(), before)
    assert encoder.training
    th.rand(3)
    assert validation.measure(encoder, objective, result) == first
    # Another encoder: other numbers
    with th.no_grad():
        for parameter in result.parameters():
            parameter += 0.1 * th.randn_like(parameter)
    changed = validation.measure(encoder, objective, result)
    assert all(changed[name] != first[name] for name in first)


def test_labels_of_the_rows_that_are_looked_at():
    encoder, objective = make()
    # Row by row, what is a linear map of the embedding can be read whole
    labels = encoder.eval()(VECTORS)[:, :2].detach().double().numpy()
    for given, is_read in ((labels, True), (labels[::-1], False)):
        r2 = make_validation(labels=given).measure(encoder, objective, encoder)["probe_r2"]
        assert (r2 > 0.99) == is_read
