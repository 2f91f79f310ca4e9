import pytest
import torch as th

from sb3_jepa.parts import (
    ColumnTokenizer,
    InputStandardization,
    PatchTokenizer,
    StandardizedColumnTokenizer,
    StandardizedGridTokenizer,
)


def test_unmeasured_inputs_pass_unchanged():
    inputs = th.rand(4, 3, 2, 2)
    assert th.equal(InputStandardization((3, 2, 2))(inputs), inputs)


def test_batches_of_any_size_give_the_statistics_of_the_whole():
    th.manual_seed(0)
    inputs = th.rand(100, 3, 4, 4) * th.rand(3, 4, 4) * 5 - 2
    standardization = InputStandardization((3, 4, 4))
    for batch in inputs.split((1, 30, 69)):
        standardization.update(batch)
    assert th.allclose(standardization.mean, inputs.mean(0), atol=1e-6)
    assert th.allclose(standardization.variance, inputs.var(0, correction=0), atol=1e-5)
    assert standardization.n_seen == 100
    standardized = standardization(inputs)
    assert th.allclose(standardized.mean(0), th.zeros(3, 4, 4), atol=1e-5)
    assert th.allclose(standardized.var(0, correction=0).mean(), th.ones(()), atol=1e-5)


def test_inputs_that_never_change_are_not_divided_by_zero():
    standardization = InputStandardization((2,))
    standardization.update(th.ones(10, 2))
    assert th.equal(standardization(th.ones(3, 2)), th.zeros(3, 2))
    assert th.equal(standardization(th.full((3, 2), 1.5)), th.full((3, 2), 0.5))


def test_statistics_travel_in_the_state_dict():
    standardization, other = InputStandardization((2,)), InputStandardization((2,))
    standardization.update(th.randn(10, 2))
    other.load_state_dict(standardization.state_dict())
    inputs = th.randn(3, 2)
    assert th.equal(other(inputs), standardization(inputs))
    assert other.n_seen == 10


def test_changes_from_frame_to_frame_have_deviations_of_their_own():
    th.manual_seed(0)
    oldest = th.randn(200, 2, 4, 4)
    inputs = th.cat((oldest, oldest + 0.1 * th.randn(200, 2, 4, 4), 5 * th.randn(200, 2, 4, 4)), dim=1)
    standardization = InputStandardization((6, 4, 4), changes_of=3)
    for batch in inputs.split((30, 170)):
        standardization.update(batch)
    first, second, third = inputs.split(2, dim=1)
    standardized = standardization(inputs)
    for part, expected in zip(standardized.split(2, dim=1), (third, second - first, third - second), strict=True):
        expected = expected - expected.mean(0)
        deviation = expected.square().mean().sqrt()
        assert th.allclose(part, expected / deviation, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1024, 40, 5])
def test_one_outlier_silences_no_input(batch_size):
    th.manual_seed(0)
    signs = th.randint(2, (1024, 1)) * 2.0 - 1.0
    inputs = signs.clone()
    inputs[517] = 1e3
    standardization = InputStandardization((1,), per="input")
    for batch in inputs.split(batch_size):
        standardization.update(batch)
    assert th.allclose(standardization(signs), signs, atol=0.1)


def test_what_is_seldom_is_no_outlier():
    th.manual_seed(0)
    # Of every 500 values one differs
    inputs = (th.rand(5000, 1) < 0.002).float()
    standardization = InputStandardization((1,), per="input")
    standardization.update(inputs)
    assert th.allclose(standardization.variance, inputs.var(0, correction=0))
    assert standardization.largest == 0.0


def test_normal_values_are_no_outliers():
    th.manual_seed(0)
    inputs = 3 * th.randn(1024, 20) - 5
    standardization = InputStandardization((20,), per="input")
    standardization.update(inputs)
    assert th.allclose(standardization.variance, inputs.var(0, correction=0), rtol=1e-4)
    assert standardization.largest.max() < 6


def test_how_far_away_an_input_was_is_known():
    inputs = th.randn(1024, 3)
    inputs[3, 1] = 500.0
    standardization = InputStandardization((3,), per="input")
    standardization.update(inputs)
    assert (standardization.largest > 30).tolist() == [False, True, False]


def test_channels_have_means_and_deviations_of_their_own():
    th.manual_seed(0)
    grids = th.randn(50, 3, 4, 5) * th.tensor([1.0, 100.0, 0.01])[:, None, None] + 7
    standardization = InputStandardization((3, 4, 5), per="channel")
    for batch in grids.split((20, 30)):
        standardization.update(batch)
    standardized = standardization(grids)
    assert standardization.mean.shape == standardization.deviation.shape == (3, 1, 1)
    assert th.allclose(standardized.mean((0, 2, 3)), th.zeros(3), atol=1e-2)
    assert th.allclose(standardized.std((0, 2, 3)), th.ones(3), atol=1e-2)


def make_columns(n_columns: int = 7, **kwargs) -> StandardizedColumnTokenizer:
    th.manual_seed(0)
    return StandardizedColumnTokenizer(
        InputStandardization((n_columns,), per="input"), ColumnTokenizer(n_columns, 16, **kwargs)
    )


@pytest.mark.parametrize("kwargs", [{}, dict(numbers_per_token=3), dict(missing_as_nan=True)])
def test_statistics_follow_the_data_and_tokens_stay_as_they_are(kwargs):
    tokenizer = make_columns(**kwargs)
    standardization, columns = tokenizer
    first = th.randn(1024, 7)
    standardization.update(first)
    weights = columns.direction.clone()
    # Three times as wide, and elsewhere
    later = 3 * th.randn(1024, 7) + th.linspace(-0.9, 0.9, 7)
    probe = th.cat((first[:20].clamp(-2, 2), later[:20].clamp(-8, 8)))
    if "missing_as_nan" in kwargs:
        probe[::3, 2] = th.nan
        later[::2, 2] = th.nan
    before = tokenizer(probe)
    for _ in range(80):
        tokenizer.follow(later)
    assert th.allclose(standardization.mean, later.nanmean(0), atol=0.2)
    assert th.allclose(standardization.deviation, th.full((7,), 3.0), rtol=0.1)
    assert th.allclose(tokenizer(probe), before, atol=1e-3, equal_nan=True)
    assert not th.allclose(columns.direction, weights, rtol=0.5)


def test_grids_of_patches_that_do_not_fit_stay_as_they_are():
    th.manual_seed(0)
    standardization = InputStandardization((2, 5, 5), per="channel")
    tokenizer = StandardizedGridTokenizer(standardization, PatchTokenizer(1, 2, 5, 5, 2, 16))
    standardization.update(th.randn(200, 2, 5, 5))
    later = th.randn(1000, 2, 5, 5) * th.tensor([5.0, 0.4])[:, None, None] + 0.5
    probe = later[:20].clamp(-8, 8)
    before = tokenizer(probe)
    for _ in range(80):
        tokenizer.follow(later)
    expected = later.square().mean((0, 2, 3)).sqrt()
    assert th.allclose(standardization.deviation.flatten(), expected, rtol=0.1)
    assert th.allclose(tokenizer(probe), before, atol=1e-4)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_column_that_first_moves_later_is_seen(size):
    tokenizer = make_columns(1)
    standardization, columns = tokenizer
    standardization.update(th.full((1024, 1), 5.0))
    at_rest, norm = tokenizer(th.full((1, 1), 5.0)), columns.direction.norm()
    moving = 5.0 + size * th.randn(4000, 1)
    for batch in moving.split(100):
        tokenizer.follow(batch)
    # What it computes for the only value that it knew is the same ...
    assert th.allclose(tokenizer(th.full((1, 1), 5.0)), at_rest, atol=1e-4)
    # ... and those that it did not know are neither clipped nor all alike
    standardized = standardization(moving[-1000:])
    assert 0.5 < standardized.std() < 1.5
    assert columns.direction.norm() <= 10.001 * norm


def test_what_moves_a_thousand_times_more_blows_up_no_weights():
    tokenizer = make_columns(1)
    standardization, columns = tokenizer
    standardization.update(th.randn(1024, 1))
    norm = columns.direction.norm()
    for scale in (1e3, 1.0, 1e-3):
        for _ in range(400):
            tokenizer.follow(scale * th.randn(1024, 1))
        assert standardization.deviation == pytest.approx(scale, rel=0.1)
        assert 0.09 < columns.direction.norm() / norm < 11
    # It has come back to where it began
    for _ in range(200):
        tokenizer.follow(th.randn(1024, 1))
    assert float((columns.direction.norm() / norm).detach()) == pytest.approx(1.0, rel=0.1)


def test_a_number_that_moves_away_is_seen_where_it_is():
    tokenizer = make_columns(1)
    standardization, columns = tokenizer
    standardization.update(th.randn(1024, 1))
    code = columns.code.norm()
    spread = []
    for level in (0.0, 30.0, 1000.0):
        for _ in range(200):
            tokenizer.follow(level + th.randn(1024, 1))
        tokens = tokenizer(level + th.tensor([[-1.0], [1.0]]))
        # As a transformer's first norm lets it through
        spread.append(float(th.nn.functional.layer_norm(tokens, (16,)).std(dim=0).mean()))
        # A bias that grew with the level would leave nothing to see of the number
        assert columns.code.norm() < code + 4 * columns.direction.norm() / standardization.deviation
    assert min(spread) > 0.3 * spread[0]


def test_large_grids_are_followed_by_some_of_their_cells():
    th.manual_seed(0)
    standardization = InputStandardization((2, 40, 40), per="channel")
    standardization.update(th.randn(64, 2, 40, 40))
    for _ in range(100):
        standardization.follow(3 * th.randn(100, 2, 40, 40), mean_stays=True)
    assert th.allclose(standardization.deviation, th.tensor(3.0), rtol=0.05)
    # Cells are counted as if all had been looked at
    assert int(standardization.n_present.min()) == pytest.approx(64 * 1600 + 100 * 100 * 1600, rel=0.01)


def test_how_often_numbers_were_there_travels_in_the_state_dict():
    standardization, other = (InputStandardization((2,), per="input") for _ in range(2))
    inputs = th.randn(100, 2)
    inputs[:90, 1] = th.nan
    standardization.update(inputs)
    other.load_state_dict(standardization.state_dict())
    assert other.n_present.tolist() == [100, 10]
    # Files of before do not tell
    state = {name: value for name, value in standardization.state_dict().items() if name != "n_present"}
    del state["first_deviation"]
    other.load_state_dict(state)
    assert other.n_present.tolist() == [100, 100]
    assert th.equal(other.first_deviation, standardization.deviation)
