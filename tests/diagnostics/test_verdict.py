import pytest

from sb3_jepa.diagnostics import assess


@pytest.mark.parametrize(
    ("first", "later", "label"),
    [(1.0, 2e-3, "healthy"), (1.0, 0.9e-3, "collapsed"), (1e-6, 0.9e-7, "collapsed"), (1e-8, 1e-8, "collapsed")],
)
def test_collapse_is_a_fraction_of_the_start_or_below_the_papers_threshold(first, later, label):
    verdict = assess(later, rank=30.0, participation=9.0, embed_dim=64, first_variance=first)
    assert verdict.label == label
    assert f"{later:.1e}" in verdict.reason
    assert f"{first:.1e}" in verdict.reason


@pytest.mark.parametrize(
    ("rank", "participation", "label"),
    [(6.0, 1.9, "low rank"), (7.0, 1.9, "healthy"), (6.0, 2.1, "healthy"), (30.0, 9.0, "healthy")],
)
def test_low_rank_is_variance_in_hardly_more_than_one_direction(rank, participation, label):
    verdict = assess(1.0, rank, participation, 64)
    assert verdict.label == label
    assert f"{rank:.1f} of 64" in verdict.reason


def test_collapse_comes_before_low_rank():
    assert assess(1e-9, 1.0, 1.0, 64, 0.1).label == "collapsed"


@pytest.mark.parametrize("variance", [float("nan"), float("inf")])
def test_what_is_not_finite_has_diverged(variance):
    assert assess(variance, float("nan"), float("nan"), 64, 0.1).label == "diverged"
