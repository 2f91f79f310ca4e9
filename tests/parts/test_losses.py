import numpy as np
import pytest
import torch as th

from sb3_jepa.parts import (
    attach_loss,
    covariance_loss,
    deviation_loss,
    embedding_variance,
    prediction_loss,
    variance_loss,
    weighted_mean,
)


def test_prediction_loss_is_the_squared_distance_averaged_over_the_batch():
    prediction = th.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    target = th.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # (4 + 9) and 1: summed over dimensions, averaged over the batch
    assert prediction_loss(prediction, target).item() == pytest.approx((13.0 + 1.0) / 2)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, 10.0 / 4),
        ([1.0, 0.0], (1.0 + 2.0) / 2),
        ([[1.0, 0.0], [1.0, 1.0]], (1.0 + 3.0 + 4.0) / 3),
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    ],
)
def test_weights_of_samples_and_of_steps(weights, expected):
    weights = None if weights is None else th.tensor(weights)
    values = th.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert weighted_mean(values, weights).item() == pytest.approx(expected)
    # Of a window of two steps, each with one dimension; and of one step with two dimensions, which are summed
    assert prediction_loss(values.sqrt()[..., None], th.zeros(2, 2, 1), weights).item() == pytest.approx(expected)
    if weights is None or weights.ndim == 1:
        assert prediction_loss(values.sqrt(), th.zeros(2, 2), weights).item() == pytest.approx(2 * expected)


def test_prediction_loss_has_no_gradient_into_the_target():
    prediction, target = th.randn(4, 3, requires_grad=True), th.randn(4, 3, requires_grad=True)
    prediction_loss(prediction, target).backward()
    assert target.grad is None
    assert th.allclose(prediction.grad, 2 * (prediction - target).detach() / 4)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4,), (4,)), ((3, 3), (4, 3)), ((4, 1, 3), (4, 3))])
def test_prediction_loss_rejects_other_shapes(shapes):
    with pytest.raises(ValueError, match="batch, embed_dim"):
        prediction_loss(th.zeros(shapes[0]), th.zeros(shapes[1]))
    for shape, valid in (((4, 3), (5,)), ((4, 2, 3), (4, 3))):
        with pytest.raises(ValueError, match="valid"):
            prediction_loss(th.zeros(shape), th.zeros(shape), th.zeros(valid))


def test_variance_loss_by_hand():
    # Variances 0.25 and 1 over the batch: the mean over the two dimensions is 0.625. Dividing by the number of
    # dimensions a second time, or scaling by 0.1, is the third known mistake of the public re-implementation.
    embedding = th.tensor([[0.0, 1.0], [1.0, 3.0]], requires_grad=True)
    variance = embedding_variance(embedding)
    assert variance.item() == pytest.approx(0.625)
    loss = variance_loss(variance)
    assert loss.item() == pytest.approx(-0.625)
    loss.backward()
    # d/ds_bi of -(1/d) (1/B) sum_b (s_bi - mean_i)^2 is -2 (s_bi - mean_i) / (d B)
    assert th.allclose(embedding.grad, -2 * th.tensor([[-0.5, -1.0], [0.5, 1.0]]) / 4)


def test_variance_loss_asks_for_no_more_than_one():
    embedding = (10 * th.randn(64, 8)).requires_grad_()
    loss = variance_loss(embedding_variance(embedding))
    assert loss.item() == -1.0
    loss.backward()
    assert not embedding.grad.any()


def test_embedding_variance_of_a_single_sample_is_zero():
    assert embedding_variance(th.randn(1, 8)).item() == 0.0
    with pytest.raises(ValueError, match="embed_dim"):
        embedding_variance(th.randn(8))


def test_deviation_loss_is_a_hinge_on_every_dimension():
    # Deviations 0.5, 2 and 0: one lacks a half, one nothing, one everything
    embedding = th.tensor([[0.0, 1.0, 3.0], [1.0, 5.0, 3.0]])
    assert deviation_loss(embedding, epsilon=0.0).item() == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    collapsed = th.ones(4, 3, requires_grad=True)
    deviation_loss(collapsed).backward()
    assert th.isfinite(collapsed.grad).all()


def test_deviation_loss_lifts_a_nearly_collapsed_embedding_where_the_papers_term_hardly_does():
    th.manual_seed(0)
    embedding = (0.01 * th.randn(64, 8)).requires_grad_()
    deviation_gradient = th.autograd.grad(deviation_loss(embedding), embedding)[0].norm()
    variance_gradient = th.autograd.grad(variance_loss(embedding_variance(embedding)), embedding)[0].norm()
    assert deviation_gradient > 20 * variance_gradient


def test_covariance_loss_agrees_with_numpy():
    th.manual_seed(0)
    embedding = th.randn(50, 4) @ th.randn(4, 4)
    covariance = np.cov(embedding.numpy().T)
    expected = (covariance**2).sum() - (np.diag(covariance) ** 2).sum()
    assert covariance_loss(embedding).item() == pytest.approx(expected / 4, rel=1e-4)
    assert covariance_loss(embedding[:1]).item() == 0.0


def test_attached_loss_is_trained_by_the_other_backward_pass():
    weight = th.tensor(2.0, requires_grad=True)
    x = th.randn(5, requires_grad=True)
    attached = attach_loss(x, weight**3)
    assert th.equal(attached, x)
    attached.sum().backward()
    assert th.equal(x.grad, th.ones(5))
    assert weight.grad.item() == pytest.approx(12.0)


def test_attached_loss_reaches_its_graph_through_a_detached_tensor():
    weight = th.tensor(2.0, requires_grad=True)
    (attach_loss(th.randn(5), weight * 3) * 0.0).sum().backward()
    assert weight.grad.item() == pytest.approx(3.0)


@pytest.mark.parametrize("scale", [0.25, 65536.0, th.tensor(0.25, dtype=th.float64)], ids=str)
def test_attached_loss_is_scaled_as_the_other_one(scale):
    def gradients(loss: th.Tensor, *parameters: th.Tensor) -> list[float]:
        return [gradient.item() for gradient in th.autograd.grad(loss, parameters)]

    weight, x = (th.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    expected = gradients((x**2 + weight**3 * x) * scale, weight, x)
    # The attached loss has a gradient into the tensor that it is attached to, as that of an embedding has
    assert gradients(attach_loss(x, weight**3 * x, scale) ** 2 * scale, weight, x) == pytest.approx(expected)


def test_attached_loss_must_be_a_scalar():
    with pytest.raises(ValueError, match="scalar"):
        attach_loss(th.zeros(3), th.zeros(2))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), th.ones(1)], ids=str)
def test_bad_scale_of_an_attached_loss(scale):
    with pytest.raises(
        ValueError, match="`scale` of an attached loss must be a positive number or a scalar tensor, got"
    ):
        attach_loss(th.zeros(3), th.zeros(()), scale)
