import pytest
import torch as th

from sb3_jepa.diagnostics import effective_rank


def test_effective_rank_counts_equal_directions():
    th.manual_seed(0)
    orthonormal = th.linalg.qr(th.randn(100, 8)).Q
    assert effective_rank(orthonormal).item() == pytest.approx(8.0, rel=1e-4)
    assert effective_rank(orthonormal[:, :3] @ th.randn(3, 8)).item() <= 3.0 + 1e-3


def test_effective_rank_by_hand():
    # Singular values 3 and 1: exp of the entropy of (3/4, 1/4)
    embeddings = th.diag(th.tensor([3.0, 1.0]))
    expected = th.exp(-0.75 * th.log(th.tensor(0.75)) - 0.25 * th.log(th.tensor(0.25)))
    assert effective_rank(embeddings).item() == pytest.approx(expected.item(), rel=1e-5)


def test_effective_rank_of_collapsed_embeddings_is_one():
    assert effective_rank(th.ones(50, 8)).item() == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(th.zeros(50, 8)).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="embed_dim"):
        effective_rank(th.zeros(8))
