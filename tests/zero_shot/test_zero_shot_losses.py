"""The losses against values written out by hand."""

import math

import numpy as np
import pytest
import torch as th

from sb3_jepa.zero_shot.behavior import BehaviorFlow
from sb3_jepa.zero_shot.losses import (
    draw_tasks,
    fit_task,
    forward_backward_loss,
    orthonormality_loss,
    temporal_difference_loss,
)
from sb3_jepa.zero_shot.networks import SuccessorPredictor, best_action, project
from sb3_jepa.zero_shot.tasks import task_of_rewards, tasks_of_demonstration


def test_temporal_difference_loss():
    predictions, targets = th.randn(2, 5, 3, requires_grad=True), th.randn(5, 3, requires_grad=True)
    expected = sum(0.5 * float(((one - targets) ** 2).sum()) / 5 for one in predictions) / 2
    loss = temporal_difference_loss(predictions, targets)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert targets.grad is None
    only_first = temporal_difference_loss(predictions, targets, th.tensor([1.0, 0, 0, 0, 0]))
    assert float(only_first) == pytest.approx(
        float(temporal_difference_loss(predictions[:, :1], targets[:1])), rel=1e-5
    )
    assert float(temporal_difference_loss(predictions, targets, th.zeros(5))) == 0.0


def test_orthonormality_loss():
    embeddings = th.randn(6, 4, dtype=th.double)
    products = embeddings @ embeddings.T
    off_diagonal = sum(float(products[i, j]) ** 2 for i in range(6) for j in range(6) if i != j)
    expected = off_diagonal / (2 * 6 * 5) - float(products.diagonal().mean())
    assert float(orthonormality_loss(embeddings)) == pytest.approx(expected)


def test_forward_backward_loss():
    forward, following = th.randn(2, 4, 3, dtype=th.double), th.randn(4, 3, dtype=th.double)
    backward, target = th.randn(4, 3, dtype=th.double), th.randn(4, 3, dtype=th.double)
    discounts = th.tensor([0.9, 0.0, 0.9, 0.9], dtype=th.double)
    expected = 0.0
    for one in forward:
        for i in range(4):
            expected -= float(one[i] @ backward[i]) / 4 / 2
            for j in range(4):
                if i != j:
                    error = float(one[i] @ backward[j] - discounts[i] * (following[i] @ target[j]))
                    expected += error**2 / (2 * 4 * 3) / 2
    assert float(forward_backward_loss(forward, following, backward, target, discounts)) == pytest.approx(expected)


def test_task_vectors_have_the_norm_of_embeddings():
    assert th.allclose(draw_tasks(7, 9).norm(dim=1), th.full((7,), 3.0))
    assert th.allclose(project(th.tensor([3.0, 4.0])), math.sqrt(2) * th.tensor([0.6, 0.8]))


def test_rewards_that_are_linear_in_embeddings_are_found():
    embeddings, weights = project(th.randn(500, 6)), th.randn(6)
    rewards = embeddings @ weights
    assert th.allclose(fit_task(embeddings, rewards).float(), weights, atol=1e-4)
    task = task_of_rewards(embeddings, rewards.numpy())
    assert task.fit is not None
    assert task.fit.r2 > 0.999
    assert task.fit.norm == pytest.approx(float(weights.norm()), rel=1e-3)
    np.testing.assert_allclose(task.vector, project(weights), atol=1e-4)


def test_what_went_wrong_with_rewards_is_told():
    embeddings = project(th.randn(200, 6))
    with pytest.raises(ValueError, match="All 200 rewards are 0"):
        task_of_rewards(embeddings, np.zeros(200))
    with pytest.raises(ValueError, match="1 of 200 are NaN or infinite"):
        task_of_rewards(embeddings, np.array([np.nan] + [1.0] * 199))
    with pytest.warns(UserWarning, match=r"R² 0\.\d\d, 2 of 200 rewards are not 0"):
        task_of_rewards(embeddings, np.array([1.0, 1.0] + [0.0] * 198))


def test_a_demonstration_looks_ahead():
    embeddings = project(th.randn(5, 3))
    tasks = tasks_of_demonstration(embeddings, horizon=2)
    assert tasks.shape == (4, 3)
    np.testing.assert_allclose(tasks[0], project(embeddings[1] + embeddings[2]), rtol=1e-4)
    np.testing.assert_allclose(tasks[3], embeddings[4], rtol=1e-4)


def test_all_discrete_actions_are_predicted_at_once():
    predictor = SuccessorPredictor(4, 3, 5, 5, [8, 8], is_discrete=True)
    embeddings, tasks = th.randn(6, 4), th.randn(6, 5)
    outputs = predictor.of_all_actions(embeddings, tasks)
    assert outputs.shape == (2, 6, 3, 5)
    for action in range(3):
        of_one = predictor(embeddings, th.full((6,), action), tasks)
        assert th.equal(of_one, outputs[:, :, action])
    values = th.stack([(outputs[:, :, a].mean(0) * tasks).sum(1) for a in range(3)], dim=1)
    assert th.equal(best_action(outputs, tasks), values.argmax(dim=1))


def test_a_flow_learns_the_actions_of_each_state():
    th.manual_seed(0)
    flow = BehaviorFlow(1, 1, [32, 32])
    optimizer = th.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(300):
        features = th.randint(2, (128, 1)).float()
        # Where the feature is 1, the action is 0.6 or -0.6; else it is 0
        actions = features * 0.6 * (2 * th.randint(2, (128, 1)) - 1)
        optimizer.zero_grad()
        flow.loss(features, actions).backward()
        optimizer.step()
    noise = th.randn(200, 1)
    assert flow.sample(th.zeros(200, 1), noise).abs().mean() < 0.15
    at_one = flow.sample(th.ones(200, 1), noise)
    assert (at_one.abs() - 0.6).abs().mean() < 0.25
    assert 0.3 < (at_one > 0).float().mean() < 0.7
