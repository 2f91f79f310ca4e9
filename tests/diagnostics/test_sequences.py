"""Probes of sequences, against what can be read by construction."""

import numpy as np
import pytest

from sb3_jepa.diagnostics import mlp_probe_r2, sequence_probes

RNG = np.random.default_rng(0)
N = 800
PLACES = RNG.normal(size=(N, 3, 2))
ACTIONS = np.diff(PLACES, axis=1)
IS_HELD_OUT = np.arange(N) >= 600


def test_views_that_know_their_place_tell_the_action_and_a_sum_tells_the_path():
    probes = sequence_probes(PLACES, ACTIONS.sum(axis=1), ACTIONS, PLACES[:, -1] - PLACES[:, 0], IS_HELD_OUT)
    assert probes["relative_action"] == pytest.approx(1.0, abs=1e-3)
    assert probes["path_integration"] == pytest.approx(1.0, abs=1e-3)


def test_noise_tells_nothing():
    noise = RNG.normal(size=(N, 3, 4))
    probes = sequence_probes(noise, noise[:, 0], ACTIONS, PLACES[:, -1] - PLACES[:, 0], IS_HELD_OUT, with_mlp=True)
    assert max(probes.values()) < 0.05


def test_an_mlp_reads_what_a_line_does_not():
    inputs = RNG.uniform(-1, 1, (4_000, 1))
    targets = np.sin(3 * np.abs(inputs))
    is_held_out = np.arange(4_000) >= 3_000
    assert mlp_probe_r2(inputs, targets, is_held_out)[0] > 0.95


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="as many rows"):
        mlp_probe_r2(np.zeros((3, 1)), np.zeros((4, 1)), np.zeros(3, bool))
