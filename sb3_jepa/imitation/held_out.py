"""
What a low loss hides: how well a policy of chunks does on episodes that it has not learned from, beside two ways of
acting that look at nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_jepa.data.recordings import Recordings
from sb3_jepa.imitation.demonstrations import take_chunks
from sb3_jepa.parts import weighted_mean

# So many observations are decided on at once
BATCH = 256
# An action counts as near zero if none of its numbers exceeds this share of its largest one in the demonstrations
NEAR_ZERO = 0.05
# Where a policy is better than both by this factor, it has learned something
BETTER = 0.75
# Held-out errors so many times those of the training are a sign of overfitting
OVERFIT = 2.0
# Steps of a chunk with an error up to so many times that of the first one are executed, or of an error that is no error
STEADY, NEARLY_EXACT = 1.5, 0.01
# So many more still actions than in the demonstrations are too many
TOO_STILL = 0.15


@dataclass(frozen=True)
class ImitationFit:
    """
    What :class:`~sb3_jepa.ACTJEPA` measures on held-out episodes. Errors of continuous actions are in deviations of the
    demonstrations' actions; those of categories are shares of wrong ones.

    :param label: ``"learned"``, ``"little learned"``, ``"still"``, ``"copies"`` or ``"overfit"``
    :param reason: A sentence with figures
    :param cure: What to do about it; empty if there is nothing to do
    :param error: Mean over the chunk
    :param training_error: The same on observations that were learned from
    :param error_by_step: Of each step of the chunk
    :param error_of_last_action: By step, of repeating the action before the chunk
    :param error_of_mean_action: Mean over the chunk, of the mean or most frequent action
    :param near_zero: Share of the policy's actions that are near zero; None for categories
    :param near_zero_demonstrated: The same of the demonstrations
    """

    label: str
    reason: str
    cure: str
    error: float
    training_error: float
    error_by_step: list[float]
    error_of_last_action: list[float]
    error_of_mean_action: float
    near_zero: float | None
    near_zero_demonstrated: float | None

    @property
    def steady_steps(self) -> int:
        """How many steps of a chunk are nearly as exact as the first one: so many can be executed without a look."""
        limit = STEADY * max(self.error_by_step[0], NEARLY_EXACT)
        return int(np.argmax([*(error > limit for error in self.error_by_step), True]))

    def scalars(self) -> dict[str, float]:
        """:return: What is logged, by name"""
        values = dict(
            held_out_error=self.error,
            training_error=self.training_error,
            held_out_error_first_step=self.error_by_step[0],
            held_out_error_last_step=self.error_by_step[-1],
            error_of_last_action=float(np.mean(self.error_of_last_action)),
            error_of_last_action_first_step=self.error_of_last_action[0],
            error_of_mean_action=self.error_of_mean_action,
            steady_steps=self.steady_steps,
        )
        if self.near_zero is not None and self.near_zero_demonstrated is not None:
            values.update(near_zero=self.near_zero, near_zero_demonstrated=self.near_zero_demonstrated)
        return values

    def __str__(self) -> str:
        return f"{self.label}: {self.reason} {self.cure}".strip()


@th.no_grad()
def measure_fit(policy: Any, recordings: Recordings, rows: np.ndarray, training_error: float) -> ImitationFit:
    """
    :param policy: :class:`~sb3_jepa.imitation.policies.ACTJEPAPolicy`
    :param recordings: Demonstrations
    :param rows: Held-out rows at which an action was taken
    :param training_error: Error of the same kind on rows that were learned from
    :return: What was measured
    """
    head = policy.actions
    was_training = policy.training
    policy.set_training_mode(False)
    errors, copied, constant, weights, is_still, was_still, had_last = ([] for _ in range(7))
    # The action before a chunk
    before, exists = recordings.window_rows(rows, 2, 1)
    assert recordings.actions is not None
    assert recordings.has_action is not None
    last = np.asarray(recordings.actions[before[:, 0]])[:, None]
    has_last = exists[:, 0] & (np.asarray(recordings.has_action[before[:, 0]]) > 0)
    largest = _largest(head)
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        chunks = take_chunks(recordings, rows[part], policy.horizon, None)
        tensors, _ = policy.obs_to_tensor(chunks.observations)
        outputs = policy.action_decoder(policy.context(policy.inputs(tensors)))
        encoded = head.encode(chunks.actions)
        errors.append(head.distances(outputs, encoded))
        constant.append(head.distances(head.constant().expand_as(outputs), encoded))
        copied.append(_distance(head, head.encode(last[part]).expand_as(encoded), encoded))
        weights.append(th.as_tensor(chunks.has_action, device=errors[-1].device))
        had_last.append(weights[-1] * th.as_tensor(has_last[part], device=errors[-1].device)[:, None])
        if largest is not None:
            decoded = head.decode(outputs)
            true = th.as_tensor(chunks.actions, device=decoded.device).flatten(2)
            is_still.append((decoded.abs() <= NEAR_ZERO * largest).all(dim=2).float())
            was_still.append((true.abs() <= NEAR_ZERO * largest).all(dim=2).float())
    policy.set_training_mode(was_training)
    weight = th.cat(weights)
    by_step, of_last = _by_step(th.cat(errors), weight), _by_step(th.cat(copied), th.cat(had_last))
    near_zero = [float(weighted_mean(th.cat(one), weight)) if one else None for one in (is_still, was_still)]
    error, of_mean = (float(weighted_mean(th.cat(one), weight)) for one in (errors, constant))
    return ImitationFit(
        *_judge(error, training_error, float(np.mean(of_last)), of_mean, near_zero[0], near_zero[1]),
        error,
        training_error,
        by_step,
        of_last,
        of_mean,
        near_zero[0],
        near_zero[1],
    )


def _largest(head: Any) -> th.Tensor | None:
    """The size of large actions; None for categories."""
    if not isinstance(head.space, spaces.Box):
        return None
    return head.mean.abs() + 2.0 * head.deviation


def _distance(head: Any, one: th.Tensor, other: th.Tensor) -> th.Tensor:
    """Between two encoded actions."""
    if isinstance(head.space, spaces.Box):
        return head.distances(one, other)
    return (one != other).float().mean(dim=2)


def _by_step(errors: th.Tensor, weights: th.Tensor) -> list[float]:
    return ((errors * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1.0)).tolist()


def _judge(
    error: float,
    training_error: float,
    of_last: float,
    of_mean: float,
    near_zero: float | None,
    near_zero_demonstrated: float | None,
) -> tuple[str, str, str]:
    """Label, reason and cure."""
    figures = (
        f"On held-out episodes its error is {error:.3g}; repeating the last action has {of_last:.3g}, and the mean "
        f"action {of_mean:.3g}."
    )
    if near_zero is not None and near_zero_demonstrated is not None and near_zero > near_zero_demonstrated + TOO_STILL:
        return (
            "still",
            f"{near_zero:.0%} of its actions are near zero, and {near_zero_demonstrated:.0%} of the demonstrations'. "
            f"{figures}",
            "Demonstrations that wait at the same place for different times, or go different ways from it, average to "
            "standing still: leave out steps without motion, and look at whether an observation tells which way to go.",
        )
    if error > BETTER * of_mean:
        if training_error < error / OVERFIT:
            return (
                "overfit",
                f"{figures} On what it learned from it has {training_error:.3g}.",
                "It knows the demonstrations by heart: it needs more of them, fewer updates, or `random_shift`.",
            )
        return (
            "little learned",
            figures,
            "Learn for longer, and look at whether an observation tells what the expert acted on: a goal, velocities "
            "(VecHistory), an image in which things are large enough.",
        )
    if error > BETTER * of_last:
        return (
            "copies",
            figures,
            "Actions change so slowly that repeating the last one does as well, and a low loss says little: judge by "
            "returns (EvalCallback), take a longer `horizon`, or record fewer steps per second.",
        )
    if training_error < error / OVERFIT:
        return (
            "overfit",
            f"{figures} On what it learned from it has {training_error:.3g}.",
            "It does better than both, and would gain by more demonstrations, fewer updates, or `random_shift`.",
        )
    return "learned", figures, ""
