import torch as th

from sb3_jepa.parts import InputStandardization


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
