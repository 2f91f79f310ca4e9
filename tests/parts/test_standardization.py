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
