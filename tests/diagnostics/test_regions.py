import pytest
import torch as th

from sb3_jepa.diagnostics import similarity_gap

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def test_gap_by_hand():
    # Two rows of three tokens. The first two columns are one region, the third is another
    tokens = th.tensor([[EAST, EAST, NORTH, [3.0, 0.0], [5.0, 0.0], [0.8, 0.6]]])
    regions = th.tensor([[0, 0, 1, 0, 0, 1]])
    # Within: EAST with EAST four times, NORTH with (0.8, 0.6). Across: EAST with NORTH, (5, 0) with (0.8, 0.6)
    expected = (4 * 1.0 + 0.6) / 5 - (0.0 + 0.8) / 2
    assert similarity_gap(tokens, regions, (2, 3)).item() == pytest.approx(expected)
    # In one row, there are other pairs
    expected = (1.0 + 1.0) / 2 - (0.0 + 0.0 + 0.8) / 3
    assert similarity_gap(tokens, regions, (6,)).item() == pytest.approx(expected)


def test_pairs_of_all_images_and_axes_count_alike():
    # Two frames of one row of two tokens: one pair from column to column in each, two from frame to frame
    tokens = th.tensor([[EAST, NORTH, EAST, EAST], [EAST, EAST, EAST, EAST]])
    regions = th.tensor([[0, 1, 0, 1], [7, 7, 7, 7]])
    expected = (1.0 + 0.0 + 4 * 1.0) / 6 - (0.0 + 1.0) / 2
    assert similarity_gap(tokens, regions, (2, 1, 2)).item() == pytest.approx(expected)


def test_diagonal_tokens_are_not_adjacent():
    tokens = th.tensor([[EAST, NORTH, NORTH, EAST]])
    regions = th.tensor([[0, 0, 1, 1]])
    assert similarity_gap(tokens, regions, (2, 2)).item() == pytest.approx(0.0)


@pytest.mark.parametrize("regions", [[[2, 2, 2, 2]], [[0, 1, 1, 0]]])
def test_one_kind_of_pair_has_no_gap(regions):
    assert similarity_gap(th.randn(1, 4, 3), th.tensor(regions), (2, 2)).isnan()


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"regions.*got \(2, 4, 3\) and \(2, 5\)"):
        similarity_gap(th.zeros(2, 4, 3), th.zeros(2, 5), (2, 2))
    with pytest.raises(ValueError, match=r"grid.*4, got \(2, 3\)"):
        similarity_gap(th.zeros(2, 4, 3), th.zeros(2, 4), (2, 3))
