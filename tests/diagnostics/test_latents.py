import numpy as np
import pytest
import torch as th

from sb3_jepa.diagnostics import Trajectory, principal_components, spectrum, unrolled_errors
from sb3_jepa.parts import embedding_variance


def correlated(n_samples: int = 50, embed_dim: int = 6) -> th.Tensor:
    """Embeddings whose dimensions are correlated, and whose mean is far from zero."""
    th.manual_seed(0)
    return th.randn(n_samples, embed_dim) @ th.randn(embed_dim, embed_dim) + 5.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spectrum_of_fewer_samples_than_dimensions(seed):
    # As of a NatureCNN: single precision does not converge for some of these
    th.manual_seed(seed)
    embeddings = th.relu(th.randn(63, 4) @ th.randn(4, 512) * 0.03 + 1.5 * th.randn(512) - 0.5)
    eigenvalues = spectrum(embeddings)
    assert eigenvalues.dtype == embeddings.dtype
    assert float(eigenvalues.sum()) == pytest.approx(512 * float(embedding_variance(embeddings)), rel=1e-4)
    assert float(eigenvalues[62:].max()) < 1e-6 * float(eigenvalues[0])


def test_spectrum_sums_to_the_variance_of_all_dimensions():
    embeddings = correlated()
    eigenvalues = spectrum(embeddings)
    assert float(eigenvalues.sum()) == pytest.approx(6 * float(embedding_variance(embeddings)), rel=1e-4)
    assert (eigenvalues.diff() <= 0).all()
    by_numpy = np.linalg.eigvalsh(np.cov(embeddings.numpy().T, ddof=0))[::-1]
    assert np.allclose(eigenvalues.numpy(), by_numpy, rtol=1e-3, atol=1e-4)


def test_spectrum_of_what_does_not_vary_is_zero_and_never_negative():
    assert (spectrum(th.full((20, 4), 0.1)) < 1e-12).all()
    # Fewer samples than dimensions: rounding makes some of the eigenvalues of a covariance negative
    assert (spectrum(correlated(3)) >= 0).all()
    assert spectrum(th.ones(4, 1)).shape == (1,)


def test_principal_components_are_those_of_numpy():
    embeddings = correlated()
    components, shares = principal_components(embeddings)
    centered = embeddings.numpy() - embeddings.numpy().mean(axis=0)
    _, singular_values, directions = np.linalg.svd(centered)
    by_numpy = centered @ directions[:3].T
    for own, other in zip(components.T.numpy(), by_numpy.T, strict=True):
        assert np.allclose(own, other, atol=1e-3) or np.allclose(own, -other, atol=1e-3)
    expected = singular_values**2 / (singular_values**2).sum()
    assert np.allclose(shares.numpy(), expected[:3], atol=1e-5)
    assert float(components.mean(dim=0).abs().max()) < 1e-4
    assert float(principal_components(embeddings, 6)[1].sum()) == pytest.approx(1.0, rel=1e-5)


def test_the_sign_of_a_component_does_not_depend_on_the_order_of_the_samples():
    embeddings = correlated()
    order = th.randperm(len(embeddings))
    components, _ = principal_components(embeddings)
    assert th.allclose(principal_components(embeddings[order])[0], components[order], atol=1e-3)


@pytest.mark.parametrize("shape", [(20, 1), (2, 8)])
def test_components_that_the_embeddings_do_not_have_are_zero(shape):
    th.manual_seed(0)
    components, shares = principal_components(th.randn(shape))
    assert components.shape == (shape[0], 3)
    assert float(components[:, 0].abs().max()) > 0.1
    # Two samples lie on a line
    assert float(components[:, 1:].abs().max()) < 1e-5
    assert shares.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)


def test_components_of_collapsed_embeddings_are_zero():
    components, shares = principal_components(th.ones(10, 4))
    assert components.abs().max() == 0.0
    assert shares.tolist() == [0.0, 0.0, 0.0]


# A linear system: s' = A s + B a
A = th.tensor([[0.9, 0.2], [-0.2, 0.9]])
B = th.tensor([[0.5], [-0.3]])


def linear_trajectory(n_steps: int, seed: int) -> Trajectory:
    generator = th.Generator().manual_seed(seed)
    actions = th.randn(n_steps, 1, generator=generator)
    states = [th.randn(2, generator=generator)]
    for action in actions:
        states.append(A @ states[-1] + B @ action)
    return Trajectory(th.stack(states), th.stack(states), actions)


def predict_linear(embeddings: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return embeddings @ A.T + actions @ B.T


def test_an_exact_predictor_has_no_error_at_any_horizon():
    trajectories = [linear_trajectory(12, 0), linear_trajectory(7, 1)]
    errors = unrolled_errors(predict_linear, trajectories, horizon=10)
    assert errors.predictor.shape == errors.copy.shape == (10,)
    assert float(errors.predictor.max()) < 1e-10
    assert float(errors.copy.min()) > 1e-2


def test_errors_by_hand():
    # One number that counts its steps, in two episodes of 3 steps and 1; the target encoder sees it 0.5 higher
    long, short = (th.arange(n, dtype=th.float32)[:, None] for n in (4, 2))
    trajectories = [Trajectory(one, one + 0.5, th.zeros(len(one) - 1, 1)) for one in (long, short)]
    variance = np.var([0.5, 1.5, 2.5, 3.5, 0.5, 1.5])

    # A predictor that always adds 2 is h too far after h steps, but for the 0.5
    errors = unrolled_errors(lambda embeddings, actions: embeddings + 2.0, trajectories, horizon=3)
    assert errors.predictor.tolist() == pytest.approx([(h - 0.5) ** 2 / variance for h in (1, 2, 3)])
    assert errors.copy.tolist() == pytest.approx([(h + 0.5) ** 2 / variance for h in (1, 2, 3)])


def test_each_step_is_unrolled_with_its_own_action():
    # The actions are what the number grows by
    steps = th.tensor([1.0, 10.0, 100.0, 1000.0])[:, None]
    states = th.cat((th.zeros(1, 1), steps.cumsum(dim=0)))
    trajectory = Trajectory(states, states, steps)
    errors = unrolled_errors(lambda embeddings, actions: embeddings + actions, [trajectory], horizon=4)
    assert errors.predictor.tolist() == [0.0] * 4
    doubled = unrolled_errors(lambda embeddings, actions: embeddings + 2 * actions, [trajectory], horizon=4)
    # After four steps there is one start only
    assert float(doubled.predictor[3]) == pytest.approx(1111.0**2 / float(states.var(correction=0)))
    variance = float(states.var(correction=0))
    assert float(doubled.predictor[2]) == pytest.approx((111.0**2 + 1110.0**2) / 2 / variance)


def test_to_guess_the_mean_is_an_error_of_one():
    trajectory = linear_trajectory(4000, 0)
    mean = trajectory.targets.mean(dim=0)
    errors = unrolled_errors(lambda embeddings, actions: mean.expand_as(embeddings), [trajectory], horizon=3)
    assert errors.predictor.tolist() == pytest.approx([1.0] * 3, rel=0.01)


def test_the_horizon_ends_with_the_longest_episode():
    errors = unrolled_errors(predict_linear, [linear_trajectory(3, 0), linear_trajectory(5, 1)], horizon=10)
    assert len(errors.predictor) == len(errors.copy) == 5
    assert errors.copy.isfinite().all()


def test_what_cannot_be_unrolled_is_refused():
    for horizon in (0, -1):
        with pytest.raises(ValueError, match=f"`horizon` must be a positive whole number, got {horizon}"):
            unrolled_errors(predict_linear, [linear_trajectory(3, 0)], horizon=horizon)
    for trajectories in ([], [linear_trajectory(0, 0)]):
        with pytest.raises(ValueError, match="at least one step"):
            unrolled_errors(predict_linear, trajectories)


def test_collapsed_targets_give_no_nan():
    states = th.ones(5, 2)
    trajectory = Trajectory(states, states, th.zeros(4, 1))
    errors = unrolled_errors(lambda embeddings, actions: embeddings + 1.0, [trajectory])
    assert (errors.predictor > 1e30).all()
    assert errors.copy.tolist() == [0.0] * 4
