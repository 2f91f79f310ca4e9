"""Several steps ahead, and heads on what is predicted."""

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_jepa.objectives import NextLatentPrediction, ObjectiveInput
from tests.objectives.test_next_latent import PAPER

N_ROWS, STEPS, WIDTH = 6, 3, 4
HEADS = dict(reward_coef=0.5, end_coef=2.0, inverse_coef=0.3)


def make_objective(steps_ahead: int = STEPS, **kwargs) -> tuple[nn.Module, NextLatentPrediction]:
    th.manual_seed(0)
    encoder = nn.Linear(5, WIDTH)
    return encoder, NextLatentPrediction(encoder, WIDTH, 2, steps_ahead=steps_ahead, **{**PAPER, **kwargs})


def make_batch(encoder: nn.Module, steps: int = STEPS) -> ObjectiveInput:
    """Of the last rows, the episode ends within the window."""
    generator = th.Generator().manual_seed(1)
    observations = th.randn(N_ROWS, 5, generator=generator)
    shape = (N_ROWS, steps) if steps > 1 else (N_ROWS,)
    valid, ends = th.ones(shape), th.zeros(shape)
    if steps > 1:
        valid[3, 1:], valid[5, 2:] = 0.0, 0.0
        ends[3, 0], ends[5, 1] = 1.0, 1.0
    return ObjectiveInput(
        encoder,
        observations,
        encoder(observations),
        F.one_hot(th.randint(0, 2, shape, generator=generator), 2).float(),
        th.randn(N_ROWS * steps, 5, generator=generator),
        valid,
        rewards=th.randn(shape, generator=generator),
        ends=ends,
    )


def test_the_loss_of_several_steps_is_that_of_a_loop():
    encoder, objective = make_objective(**HEADS)
    batch = make_batch(encoder)
    loss, terms, prediction, target, valid = objective(batch)

    distances, rewards, ends = [], [], []
    for row in range(N_ROWS):
        guess = batch.embedding[row]
        for step in range(STEPS):
            guess = objective.predictor(guess, batch.actions[row, step])
            goal = objective.target_encoder(batch.next_observations[row * STEPS + step])
            if batch.valid[row, step]:
                distances.append((guess - goal).square().sum())
                rewards.append((objective.reward_head(guess) - batch.rewards[row, step]).square())
                logit = objective.end_head(guess)
                ends.append(F.binary_cross_entropy_with_logits(logit, batch.ends[row, step : step + 1]))
    goals = objective.target_encoder(batch.next_observations).view(N_ROWS, STEPS, WIDTH)
    inverse = (objective.inverse_head(batch.embedding, goals[:, 0]) - batch.actions[:, 0]).square().sum(dim=1).mean()
    means = [th.stack([one.squeeze() for one in losses]).mean() for losses in (distances, rewards, ends)]
    expected = means[0] + 0.5 * means[1] + 2.0 * means[2] + 0.3 * inverse
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, mean in zip(("prediction_loss", "reward_loss", "end_loss"), means, strict=True):
        assert terms[name].item() == pytest.approx(mean.item(), rel=1e-5)
    assert terms["inverse_loss"].item() == pytest.approx(inverse.item(), rel=1e-5)
    # What diagnostics compare is the first step
    assert th.equal(prediction, objective.predictor(batch.embedding, batch.actions[:, 0]))
    assert th.equal(target, goals[:, 0])
    assert th.equal(valid, batch.valid[:, 0])


def test_each_step_is_logged():
    encoder, objective = make_objective()
    terms = objective(make_batch(encoder)).terms
    of_steps = [terms[f"prediction_loss_step_{k}"] for k in (1, 2, 3)]
    # Six rows have the first step, five the second and four the third
    mean = (6 * of_steps[0] + 5 * of_steps[1] + 4 * of_steps[2]) / 15
    assert mean.item() == pytest.approx(terms["prediction_loss"].item(), rel=1e-5)


def test_one_pass_gives_the_targets_of_all_steps():
    encoder, objective = make_objective()
    sizes = []
    objective.target_encoder.encoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    objective(make_batch(encoder))
    assert sizes == [N_ROWS * STEPS]


def test_targets_that_are_known_are_not_computed_again():
    encoder, objective = make_objective()
    batch = make_batch(encoder)
    target = objective.target_encoder(batch.next_observations).view(N_ROWS, STEPS, WIDTH)
    known = objective(batch._replace(next_observations=None, target=target))
    assert known.loss.item() == objective(batch).loss.item()


def test_all_steps_reach_encoder_and_predictor():
    encoder, objective = make_objective(**HEADS)
    batch = make_batch(encoder)
    # Nothing but the last step counts
    only_last = th.zeros_like(batch.valid)
    only_last[:3, 2] = 1.0
    objective(batch._replace(valid=only_last, ends=th.zeros_like(only_last))).loss.backward()
    assert encoder.weight.grad.abs().sum() > 0
    assert objective.predictor.action.weight.grad.abs().sum() > 0
    assert objective.reward_head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in objective.target_encoder.parameters())


def test_one_step_is_what_it_was():
    # The heads do not change what the predictor begins with, nor the loss without their terms
    encoder, plain = make_objective(1)
    _, with_heads = make_objective(1, **HEADS)
    for one, other in zip(plain.predictor.parameters(), with_heads.predictor.parameters(), strict=True):
        assert th.equal(one, other)
    batch = make_batch(encoder, 1)
    of_plain, of_heads = plain(batch), with_heads(batch)
    assert of_plain.terms["prediction_loss"] == of_heads.terms["prediction_loss"]
    assert "prediction_loss_step_1" not in of_plain.terms
    assert of_heads.loss > of_plain.loss


def test_a_step_that_ends_the_episode_counts_for_the_heads_though_its_observation_is_unknown():
    encoder, objective = make_objective(1, end_coef=1.0)
    batch = make_batch(encoder, 1)
    unknown, ends = th.ones(N_ROWS), th.zeros(N_ROWS)
    unknown[2], ends[2] = 0.0, 1.0
    logits = objective.end_head(objective.predictor(batch.embedding, batch.actions)).squeeze(-1)
    expected = F.binary_cross_entropy_with_logits(logits, ends)
    terms = objective(batch._replace(valid=unknown, ends=ends)).terms
    assert terms["end_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_rewards_that_are_missing_are_asked_for():
    encoder, objective = make_objective(1, reward_coef=1.0)
    with pytest.raises(ValueError, match="`reward_coef` and `end_coef` need rewards"):
        objective(make_batch(encoder, 1)._replace(rewards=None))


def test_windows_that_are_missing_are_asked_for():
    encoder, objective = make_objective()
    with pytest.raises(ValueError, match="`steps_ahead=3` needs windows of actions"):
        objective(make_batch(encoder, 1))


def test_heads_need_a_prediction():
    with pytest.raises(ValueError, match="`reward_coef` must be 0 without a prediction"):
        make_objective(1, prediction_coef=0.0, reward_coef=1.0)


def test_the_inverse_dynamics_learn_which_action_was_taken():
    # Each action moves the observation in its own direction
    encoder, objective = make_objective(1, inverse_coef=1.0, deviation_coef=1.0)
    optimizer = th.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=1e-2)
    directions = th.randn(2, 5, generator=th.Generator().manual_seed(2))

    def loss() -> th.Tensor:
        observations, actions = th.randn(256, 5), F.one_hot(th.randint(0, 2, (256,)), 2).float()
        output = objective(
            ObjectiveInput(encoder, observations, encoder(observations), actions, observations + actions @ directions)
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.update_target(encoder)
        return output.terms["inverse_loss"]

    first = loss()
    for _ in range(300):
        last = loss()
    assert last < 0.2 * first
