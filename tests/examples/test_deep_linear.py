"""The order in which deep linear networks learn, arXiv 2407.03475."""

import csv
import importlib.util
from itertools import islice, pairwise

import numpy as np
import pytest
import torch as th

from tests.conftest import EXAMPLES, run_example

spec = importlib.util.spec_from_file_location("deep_linear", EXAMPLES / "deep_linear.py")
deep_linear = importlib.util.module_from_spec(spec)
spec.loader.exec_module(deep_linear)

LAMBDA, RHO = deep_linear.LAMBDA, deep_linear.RHO


@pytest.mark.parametrize("objective", deep_linear.OBJECTIVES)
def test_steps_are_those_of_autograd(objective):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    y = x @ rng.standard_normal((3, 3)) + rng.standard_normal((20, 3))
    scale, step_size, depth = 0.3, 0.1, 3
    moments = x.T @ x / len(x), y.T @ x / len(x)
    found = list(islice(deep_linear.strengths(*moments, depth, objective, scale, step_size), 5))

    # The same start, drawn anew: each layer takes one basis to the next
    rng = np.random.default_rng(0)
    bases = [np.eye(3), *(np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(depth))]
    starts = [after @ before.T for before, after in pairwise(bases)]
    starts.append(np.eye(3) if objective == "jepa" else bases[-1].T)
    weights = [th.tensor(scale ** (1 / depth) * start, requires_grad=True) for start in starts]
    x, y = th.tensor(x), th.tensor(y)
    for strengths in found:
        encoder = weights[2] @ weights[1] @ weights[0]
        target = (y @ encoder.T).detach() if objective == "jepa" else y
        loss = 0.5 * (x @ encoder.T @ weights[3].T - target).square().sum(dim=1).mean()
        gradients = th.autograd.grad(loss, weights)
        with th.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= step_size * gradient
            encoder = weights[2] @ weights[1] @ weights[0]
        np.testing.assert_allclose(strengths, encoder.norm(dim=0).numpy(), rtol=1e-10)


def test_a_jepa_avoids_noisy_features_when_it_is_deep():
    times = {
        (objective, depth): deep_linear.learning_times(LAMBDA, RHO, depth, objective)
        for objective in deep_linear.OBJECTIVES
        for depth in (1, 5)
    }
    # Later what is easier to predict: the order of lambda
    assert deep_linear.spearman(times["jepa", 1], RHO) > 0.9
    assert deep_linear.spearman(times["mae", 1], RHO) > 0.9
    assert deep_linear.spearman(times["mae", 5], RHO) > 0.9
    # Sooner what is easier to predict: the order of rho
    assert deep_linear.spearman(times["jepa", 5], RHO) < -0.9


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_learning_times_are_those_of_the_theorem(depth):
    # Where the expansion is one: what it leaves out is small
    converges = deep_linear.SCALE ** (1 / depth) / RHO < 0.4
    assert converges.any()
    lambda_, rho = LAMBDA[converges], RHO[converges]
    times = deep_linear.learning_times(lambda_, rho, depth, "jepa", step_size=0.1)
    np.testing.assert_allclose(times, deep_linear.predicted_times(lambda_, rho, depth, "jepa"), rtol=0.05)


@pytest.mark.parametrize(("objective", "time"), [("jepa", 1500.0), ("mae", 60.0)])
def test_fixed_points(objective, time):
    lambda_, rho, depth = np.linspace(1.0, 1.2, 4), np.linspace(1.0, 0.7, 4), 3
    training = deep_linear.strengths(np.diag(lambda_ / rho), np.diag(lambda_), depth, objective, step_size=0.1)
    final = next(islice(training, round(time / 0.1), None))
    expected = rho**3 if objective == "jepa" else rho**0.75
    np.testing.assert_allclose(final, expected, rtol=1e-3)
    np.testing.assert_allclose(deep_linear.fixed_points(rho, depth, objective), expected)


def test_times_do_not_depend_on_the_seed():
    times = [deep_linear.learning_times(LAMBDA, RHO, 2, "mae", seed=seed) for seed in range(2)]
    np.testing.assert_allclose(*times, atol=0.051)


def test_spearman_by_hand():
    assert deep_linear.spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert deep_linear.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Ranks (0.5, 0.5, 2) against (0, 1, 2)
    assert deep_linear.spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / 3**0.5)


def test_errors():
    with pytest.raises(ValueError, match=r"objective must be one of .* got 'vae'"):
        deep_linear.learning_times(LAMBDA, RHO, 1, "vae")
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        deep_linear.learning_times(LAMBDA, RHO, 0, "mae")
    # Half of 0.45^5 is less than the scale
    with pytest.raises(ValueError, match="rho must be so large"):
        deep_linear.learning_times([1.0], [0.45], 5, "jepa")


def test_script(tmp_path):
    arguments = ("--depths", "1", "2", "--seeds", "0", "--source-depths", "1", "--out", str(tmp_path / "times.csv"))
    printed = run_example("deep_linear.py", *arguments)
    assert "depth 2" in printed
    assert "chases, and a deep JEPA skips: noisy 1, noisy 2" in printed
    with (tmp_path / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(RHO)
    assert float(rows[0]["time"]) == pytest.approx(102.8, abs=0.1)


def test_networks_learn_what_the_diagnostic_says():
    observations = deep_linear.sample_sources(n_samples=20_000)
    x, y = observations[:-1], observations[1:]
    noise = deep_linear.feature_noise(x, y, names=list(deep_linear.SOURCES))
    assert noise.distractors == ("noisy 1", "noisy 2")
    moments = x.T @ x / len(x), y.T @ x / len(x)
    for objective, distractors_are_first in (("jepa", False), ("mae", True)):
        times = deep_linear.learning_times(noise.lambda_, noise.rho, 4, objective, moments, step_size=0.1)
        clean, noisy = times[:2], times[2:]
        assert (noisy.max() < clean.min()) == distractors_are_first
        assert (clean.max() < noisy.min()) != distractors_are_first
