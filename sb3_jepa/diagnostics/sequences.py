"""What can be read from the views of a history, and from their aggregate (*seq-JEPA*, arXiv 2505.03176, section 4)."""

import numpy as np
import torch as th
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.diagnostics.probes import probe_r2

HIDDEN_DIM, MLP_STEPS, MLP_BATCH_SIZE = 256, 1_000, 256


def mlp_probe_r2(
    inputs: np.ndarray, targets: np.ndarray, is_held_out: np.ndarray, n_steps: int = MLP_STEPS
) -> np.ndarray:
    """
    As :func:`probe_r2`, of a multi-layer perceptron with two hidden layers instead of a linear regression.

    :param inputs: ``(rows, inputs)``
    :param targets: ``(rows, variables)``
    :param is_held_out: ``(rows,)``, which rows it is measured on
    :param n_steps: How many steps of Adam, of 256 rows each
    :return: ``(variables,)``
    :raises ValueError: If the arguments do not have one number of rows, or either group has none
    """
    n_steps = checks.whole_number("n_steps", n_steps)
    # Refuse what does not fit, with the same words
    probe_r2(inputs, targets, is_held_out)
    is_fitted = ~is_held_out
    scaled = [(one - one[is_fitted].mean(axis=0)) / (one[is_fitted].std(axis=0) + 1e-6) for one in (inputs, targets)]
    rows, wanted = (th.as_tensor(one, dtype=th.float32) for one in scaled)
    fitted = th.as_tensor(np.flatnonzero(is_fitted))
    with isolated_random_numbers(0), th.enable_grad():
        layers = [nn.Linear(rows.shape[1], HIDDEN_DIM), nn.ReLU(), nn.Linear(HIDDEN_DIM, HIDDEN_DIM), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Linear(HIDDEN_DIM, wanted.shape[1]))
        optimizer = th.optim.AdamW(network.parameters(), lr=1e-3)
        schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        for _ in range(n_steps):
            batch = fitted[th.randint(len(fitted), (MLP_BATCH_SIZE,))]
            loss = (network(rows[batch]) - wanted[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        errors = (network(rows[is_held_out]) - wanted[is_held_out]).detach().double().numpy()
    held_out = wanted[is_held_out].double().numpy()
    spread = np.square(held_out - held_out.mean(axis=0)).sum(axis=0)
    return np.where(spread > 0, 1.0 - np.square(errors).sum(axis=0) / np.where(spread > 0, spread, 1.0), np.nan)


def sequence_probes(
    views: np.ndarray,
    aggregates: np.ndarray,
    actions: np.ndarray,
    displacements: np.ndarray,
    is_held_out: np.ndarray,
    with_mlp: bool = False,
) -> dict[str, float]:
    """
    What an encoder of histories knows of actions, as the mean R² of linear probes over the variables:

    - ``relative_action``: the action between the two newest views, from their embeddings. A view that is *equivariant*
      to actions tells how it was changed.
    - ``path_integration``: what all the actions of the history together have done, from the aggregate

    :param views: Embeddings of the views, ``(histories, length, embed_dim)``
    :param aggregates: ``(histories, aggregate dim)``
    :param actions: Encoded actions between the views, ``(histories, length - 1, action dim)``
    :param displacements: What the path was, ``(histories, variables)``
    :param is_held_out: ``(histories,)``, which ones the probes are measured on
    :param with_mlp: Whether to fit an MLP to the relative action too, ``relative_action_mlp``
    :return: R² by these names, NaN where nothing varies
    :raises ValueError: If the arguments do not have one number of rows, or either group has none
    """
    pairs, newest_actions = np.concatenate([views[:, -2], views[:, -1]], axis=1), actions[:, -1]
    with_mlp = checks.flag("with_mlp", with_mlp)
    found = dict(
        relative_action=probe_r2(pairs, newest_actions, is_held_out),
        path_integration=probe_r2(aggregates, displacements, is_held_out),
    )
    if with_mlp:
        found["relative_action_mlp"] = mlp_probe_r2(pairs, newest_actions, is_held_out)
    return {name: float(np.nanmean(r2)) if np.isfinite(r2).any() else float("nan") for name, r2 in found.items()}
