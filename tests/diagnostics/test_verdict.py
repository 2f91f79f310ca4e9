import pytest

from sb3_jepa.diagnostics import assess


@pytest.mark.parametrize(
    ("first", "later", "label"),
    [(1.0, 2e-3, "healthy"), (1.0, 0.9e-3, "collapsed"), (1e-6, 0.9e-7, "collapsed"), (1e-8, 1e-8, "collapsed")],
)
def test_collapse_is_a_fraction_of_the_start_or_below_the_papers_threshold(first, later, label):
    verdict = assess(later, rank=30.0, embed_dim=64, first_variance=first)
    assert verdict.label == label
    assert f"{later:.1e}" in verdict.reason
    assert f"{first:.1e}" in verdict.reason


@pytest.mark.parametrize(
    ("rank", "embed_dim", "label"), [(7, 64, "healthy"), (6, 64, "low rank"), (2.1, 8, "healthy"), (1.9, 8, "low rank")]
)
def test_low_rank_is_a_tenth_of_the_dimensions_and_two_at_least(rank, embed_dim, label):
    assert assess(1.0, rank, embed_dim, first_variance=0.0).label == label


def test_collapse_comes_before_low_rank():
    assert assess(1e-9, 1.0, 64, 0.1).label == "collapsed"
