import copy
import gc
import json
import weakref

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from torch.nn import functional as F

from sb3_jepa import (
    A2C,
    PPO,
    JepaCallback,
    JepaExtractor,
    JepaPolicy,
    NextLatentPrediction,
    RecurrentPPO,
    load_encoder,
    save_encoder,
)
from sb3_jepa.diagnostics import ObjectiveGauge, effective_rank
from sb3_jepa.diagnostics.gauges import N_RECENT_GRADIENTS
from sb3_jepa.objectives.output import ObjectiveOutput
from sb3_jepa.parts import covariance_loss, deviation_loss
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO, FakeEnv, make_counting_env
from tests.policies.test_joint import NO_OBJECTIVE, ONE_BATCH, collect_rollout, explicit_loss

GRADIENTS = {"rl_gradient_norm", "jepa_gradient_norm", "gradient_cosine"}
COEFFICIENTS = dict(prediction_coef=0.7, variance_coef=0.5, deviation_coef=1.0, covariance_coef=0.5)


def test_effective_rank_counts_equal_directions():
    th.manual_seed(0)
    orthonormal = th.linalg.qr(th.randn(100, 8)).Q
    assert effective_rank(orthonormal).item() == pytest.approx(8.0, rel=1e-4)
    assert effective_rank(orthonormal[:, :3] @ th.randn(3, 8)).item() <= 3.0 + 1e-3


def test_effective_rank_by_hand():
    # Singular values 3 and 1: exp of the entropy of (3/4, 1/4)
    embeddings = th.diag(th.tensor([3.0, 1.0]))
    expected = th.exp(-0.75 * th.log(th.tensor(0.75)) - 0.25 * th.log(th.tensor(0.25)))
    assert effective_rank(embeddings).item() == pytest.approx(expected.item(), rel=1e-5)


def test_effective_rank_of_collapsed_embeddings_is_one():
    assert effective_rank(th.ones(50, 8)).item() == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(th.zeros(50, 8)).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="embed_dim"):
        effective_rank(th.zeros(8))


def make_output(prediction=None, target=None, valid=None, **terms: float) -> ObjectiveOutput:
    terms = {name: th.tensor(value) for name, value in {"embedding_variance": 1.0, **terms}.items()}
    return ObjectiveOutput(th.zeros(()), terms, prediction, target, valid)


def test_predictions_by_hand():
    gauge = ObjectiveGauge()
    embedding = th.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    target = th.tensor([[0.0, 1.0], [0.0, 5.0], [4.0, 3.0]])
    prediction = th.tensor([[0.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
    gauge.add(embedding, make_output(prediction, target))
    scalars = gauge.scalars()
    # Squared distances of the targets from the prediction: 1, 1, 61. From the embedding: 2, 9, 2
    assert scalars["prediction_to_copy_ratio"] == pytest.approx(63 / 13)
    assert scalars["target_cosine"] == pytest.approx((0 + 1 + 24 / 25) / 3)

    # The last pair does not count
    gauge.reset()
    gauge.add(embedding, make_output(prediction, target, th.tensor([1.0, 1.0, 0.0])))
    scalars = gauge.scalars()
    assert scalars["prediction_to_copy_ratio"] == pytest.approx(2 / 11)
    assert scalars["target_cosine"] == pytest.approx(1 / 2)


def test_a_predictor_that_copies_has_a_ratio_of_one():
    gauge = ObjectiveGauge()
    embedding, target = th.randn(2, 10, 4)
    gauge.add(embedding, make_output(embedding, target))
    assert gauge.scalars()["prediction_to_copy_ratio"] == pytest.approx(1.0)


def test_without_a_pair_that_counts_there_is_no_ratio():
    gauge = ObjectiveGauge()
    embedding, target = th.randn(2, 10, 4)
    gauge.add(embedding, make_output(embedding, target, th.zeros(10)))
    scalars = gauge.scalars()
    assert "prediction_to_copy_ratio" not in scalars
    assert scalars["target_cosine"] == 0.0
    # ... nor if all embeddings are one
    gauge.reset()
    gauge.add(th.ones(10, 4), make_output(target, th.ones(10, 4)))
    assert "prediction_to_copy_ratio" not in gauge.scalars()


@pytest.mark.parametrize("prediction", [None, th.zeros(10, 2), th.zeros(5, 4)])
def test_an_objective_may_predict_nothing_or_something_else(prediction):
    gauge = ObjectiveGauge()
    gauge.add(th.randn(10, 4), make_output(prediction, prediction))
    assert not gauge.scalars().keys() & {"prediction_to_copy_ratio", "target_cosine"}


def test_deviations_and_losses_of_all_recent_embeddings():
    gauge = ObjectiveGauge()
    embeddings = th.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 1.0], [0.0, 3.0, 5.0], [2.0, 3.0, 1.0]])
    for minibatch in embeddings.split(2):
        gauge.add(minibatch, make_output())
    scalars = gauge.scalars()
    # Deviations 1, 1 and 2; within a minibatch the second one does not vary at all
    assert scalars["smallest_deviation"] == pytest.approx(1.0)
    assert scalars["largest_deviation"] == pytest.approx(2.0)
    # A hinge at one: all of them deviate enough
    assert scalars["deviation_loss"] == pytest.approx(0.0, abs=1e-6)
    # Of the unbiased covariances only that of the first and the last is not zero: -2 * 4 / 3, twice, over 3 dimensions
    assert scalars["covariance_loss"] == pytest.approx(2 * (8 / 3) ** 2 / 3)
    assert scalars["effective_rank"] == pytest.approx(float(effective_rank(embeddings)))


def test_losses_that_the_objective_has_are_its_own():
    gauge = ObjectiveGauge()
    embeddings = th.randn(20, 4)
    for value in (0.25, 0.75):
        gauge.add(embeddings, make_output(deviation_loss=value))
    scalars = gauge.scalars()
    assert scalars["deviation_loss"] == 0.5
    assert scalars["covariance_loss"] == pytest.approx(float(covariance_loss(embeddings.repeat(2, 1))))
    gauge.reset()
    gauge.add(embeddings, make_output(covariance_loss=0.25))
    scalars = gauge.scalars()
    assert scalars["deviation_loss"] == pytest.approx(float(deviation_loss(embeddings)))
    assert scalars["covariance_loss"] == 0.25


def test_one_dimension_and_one_row_are_enough():
    gauge = ObjectiveGauge()
    gauge.add(th.ones(1, 1), make_output(th.ones(1, 1), th.full((1, 1), 2.0), th.ones(1)))
    scalars = gauge.scalars()
    assert scalars["smallest_deviation"] == scalars["largest_deviation"] == 0.0
    assert scalars["prediction_to_copy_ratio"] == scalars["target_cosine"] == 1.0
    assert all(np.isfinite(value) for value in scalars.values())


def test_only_the_latest_embeddings_are_kept():
    gauge = ObjectiveGauge()
    assert gauge.scalars() == {}
    first, *others = th.randn(6, 300, 4)
    gauge.add(1e6 + first, make_output())
    for minibatch in others:
        gauge.add(minibatch, make_output())
    # As many whole minibatches as it takes for 1,024
    assert gauge.scalars()["effective_rank"] == pytest.approx(float(effective_rank(th.cat(others[1:]))))
    assert gauge.n_samples == 6 * 300
    assert gauge.embed_dim == 4
    gauge.reset()
    assert gauge.scalars() == {}
    assert gauge.n_samples == gauge.n_minibatches == 0


def test_gradients_by_hand():
    gauge = ObjectiveGauge()
    # The oldest two are forgotten
    scales = th.arange(N_RECENT_GRADIENTS + 2.0)
    for scale in scales:
        embedding = th.ones(2, 1, requires_grad=True) + 0.0
        rl = gauge.watch_gradient("rl", gauge.watch_gradient("all", embedding).view_as(embedding))
        ((rl * scale * th.tensor([[3.0], [4.0]])).sum() + (embedding * th.tensor([[5.0], [0.0]])).sum()).backward()
    gauge.add(th.ones(2, 1), make_output())
    scalars = gauge.scalars()
    assert scalars["rl_gradient_norm"] == pytest.approx(5.0 * float(scales[2:].mean()))
    assert scalars["jepa_gradient_norm"] == pytest.approx(5.0)
    assert scalars["gradient_cosine"] == pytest.approx(3 / 5)
    # Of four minibatches, only the first one is looked at
    gauge.watch_gradient("rl", th.ones(2, 1, requires_grad=True) + 0.0).sum().backward()
    assert gauge.scalars() == scalars


def test_what_needs_no_gradient_is_not_watched():
    gauge = ObjectiveGauge()
    embedding = th.ones(2, 2)
    assert gauge.watch_gradient("rl", embedding) is embedding
    # ... and what is watched may never get one
    watched = gauge.watch_gradient("all", th.ones(2, 2, requires_grad=True))
    assert watched.requires_grad
    gauge.add(embedding, make_output())
    assert not gauge.scalars().keys() & GRADIENTS


@pytest.mark.parametrize("rl_gradient", [True, False])
def test_gradients_of_an_update_equal_those_written_out_by_hand(pixel_cartpole, rl_gradient):
    kwargs = dict(SMALL_POLICY, objective_kwargs=COEFFICIENTS, rl_gradient=rl_gradient)
    model = PPO(JepaPolicy, pixel_cartpole, ent_coef=0.01, policy_kwargs=kwargs, **ONE_BATCH)
    # Something to tell the context and target encoder apart by
    model.learn(32)
    collect_rollout(model)
    policy = copy.deepcopy(model.policy)
    policy.set_training_mode(True)
    embeddings = []
    policy.features_extractor.register_forward_hook(lambda module, inputs, output: embeddings.append(output))

    def gradient_by_hand(coefficients: dict[str, float], rl_gradient: bool) -> th.Tensor:
        np.random.seed(1)
        loss = explicit_loss(model, policy, coefficients, rl_gradient)
        return th.autograd.grad(loss, embeddings[-1])[0]

    rl = gradient_by_hand(dict.fromkeys(COEFFICIENTS, 0.0), True)
    jepa = gradient_by_hand(COEFFICIENTS, False)

    np.random.seed(1)
    model.train()
    gauge = model.policy.gauges["shared"]
    scalars = gauge.scalars()
    assert scalars["jepa_gradient_norm"] == pytest.approx(float(jepa.norm()), rel=1e-3)
    if not rl_gradient:
        assert scalars.keys() & GRADIENTS == {"jepa_gradient_norm"}
        return
    assert scalars["rl_gradient_norm"] == pytest.approx(float(rl.norm()), rel=1e-3)
    cosine = F.cosine_similarity(rl.flatten(), jepa.flatten(), dim=0)
    assert scalars["gradient_cosine"] == pytest.approx(float(cosine), rel=1e-3, abs=1e-5)
    # Neither is the other, or their sum
    assert float(rl.norm()) > 1e-3
    assert float(jepa.norm()) > 1e-3
    assert abs(float(cosine)) < 0.9


class KeepScalars(BaseCallback):
    """What the gauges say after each update; to be put before the callback that resets them."""

    def __init__(self):
        super().__init__()
        self.scalars: dict[str, list[dict[str, float]]] = {}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        for name, gauge in self.model.policy.gauges.items():
            if gauge.n_minibatches:
                self.scalars.setdefault(name, []).append(gauge.scalars())


def scalars_of(model, n_steps: int = 64) -> dict[str, list[dict[str, float]]]:
    keep = KeepScalars()
    model.learn(n_steps, callback=[keep, JepaCallback()])
    return keep.scalars


@pytest.mark.parametrize("algorithm", [PPO, A2C, RecurrentPPO])
def test_each_algorithm_has_both_gradients(algorithm):
    kwargs = dict(n_steps=16, seed=0, device="cpu") if algorithm is A2C else SMALL_PPO
    model = algorithm("JepaPolicy", make_counting_env(), policy_kwargs=dict(SMALL_POLICY), **kwargs)
    (updates,) = scalars_of(model, 96).values()
    for scalars in updates:
        assert scalars["rl_gradient_norm"] > 0
        assert scalars["jepa_gradient_norm"] > 0
        assert -1 < scalars["gradient_cosine"] < 1
        assert scalars["prediction_to_copy_ratio"] > 0
        assert -1 <= scalars["target_cosine"] <= 1
        assert 0 <= scalars["smallest_deviation"] < scalars["largest_deviation"]


def test_the_padding_of_sequences_has_no_part_in_it():
    kwargs = {**SMALL_PPO, "n_epochs": 1, "batch_size": 48}
    model = RecurrentPPO("JepaPolicy", make_counting_env(), policy_kwargs=SMALL_POLICY, **kwargs).learn(33)
    gauge = model.policy.gauges["shared"]
    collect_rollout(model)
    # Where sequences are cut is random
    np.random.seed(1)
    (samples,) = model.rollout_buffer.get(48)
    mask = samples.observations.mask
    assert 48 == int(mask.sum()) < len(mask)
    np.random.seed(1)
    gradients = []

    def keep_gradient(module, inputs, output) -> None:
        output.register_hook(gradients.append)

    model.policy.features_extractor.register_forward_hook(keep_gradient)
    model.train()
    assert gauge.n_samples == 48
    assert gauge.scalars().keys() >= GRADIENTS
    (gradient,) = gradients
    assert gradient.shape == (len(mask), 16)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any(dim=1).all()


def test_separate_encoders_have_gauges_of_their_own(pixel_cartpole):
    kwargs = dict(SMALL_POLICY, share_features_extractor=False)
    scalars = scalars_of(PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO))
    assert set(scalars) == {"actor", "critic"}
    actor, critic = (scalars[name][-1] for name in ("actor", "critic"))
    for name in GRADIENTS:
        assert actor[name] != critic[name]
        assert actor[name] != 0 != critic[name]
    # One that learns nothing but from the algorithm is not gauged
    kwargs = dict(kwargs, objective_for="critic")
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO)
    scalars = scalars_of(model)
    assert set(scalars) == {"critic"}
    assert scalars["critic"][-1].keys() >= GRADIENTS


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_frozen_encoder_has_no_gradient(pixel_cartpole, tmp_path, is_loaded):
    extractor_kwargs = dict(SMALL_EXTRACTOR, frozen=not is_loaded)
    kwargs = dict(SMALL_POLICY, features_extractor_kwargs=extractor_kwargs)
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO)
    if is_loaded:
        load_encoder(model, save_encoder(model, tmp_path / "encoder"), freeze=True)
    (updates,) = scalars_of(model).values()
    assert len(updates) == 1
    assert not updates[0].keys() & GRADIENTS
    # The predictor learns
    assert updates[0]["prediction_to_copy_ratio"] > 0


def test_without_a_predictor_there_is_no_ratio(pixel_cartpole):
    kwargs = dict(SMALL_POLICY, objective_kwargs=dict(prediction_coef=0.0))
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO)
    (updates,) = scalars_of(model).values()
    assert not updates[0].keys() & {"prediction_to_copy_ratio", "target_cosine", "prediction_loss"}
    assert updates[0].keys() >= GRADIENTS


def test_without_an_objective_the_algorithms_gradient_is_left(pixel_cartpole):
    kwargs = dict(SMALL_POLICY, objective_kwargs=NO_OBJECTIVE)
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO)
    (updates,) = scalars_of(model).values()
    assert updates[0].keys() & GRADIENTS == {"rl_gradient_norm"}
    # What the objective has no terms for is gauged all the same
    assert 0 < updates[0]["deviation_loss"] < 1
    assert updates[0]["covariance_loss"] > 0


class Spied(NextLatentPrediction):
    """Keeps track of what it was given and returned."""

    graphs: list[weakref.ref]

    def forward(self, batch):
        output = super().forward(batch)
        self.graphs.extend(weakref.ref(tensor) for tensor in (batch.embedding, output.loss, output.prediction))
        return output


def test_no_graph_is_kept_alive(pixel_cartpole):
    Spied.graphs = []
    kwargs = dict(SMALL_POLICY, objective_class=Spied)
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO)
    collect_rollout(model)
    model.train()
    gc.collect()
    gauge = model.policy.gauges["shared"]
    assert gauge.n_minibatches == 4
    assert len(Spied.graphs) == 3 * 4
    assert all(reference() is None for reference in Spied.graphs)
    # A copy begins anew
    assert copy.deepcopy(gauge).scalars() == {}
    assert gauge.scalars()


def test_alternating_training_has_the_objectives_gradient_alone(tmp_path):
    env = make_vec_env(lambda: FakeEnv(spaces.Box(-1, 1, (3,))), n_envs=2, seed=0)
    kwargs = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR, net_arch=[16])
    model = stable_baselines3.PPO("MlpPolicy", env, policy_kwargs=kwargs, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(64, callback=JepaCallback())
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    rows = [
        {name.removeprefix("jepa/"): value for name, value in row.items()} for row in rows if "jepa/momentum" in row
    ]
    assert rows
    for row in rows:
        assert row.keys() & GRADIENTS == {"jepa_gradient_norm"}
        assert row["jepa_gradient_norm"] > 0
        assert row.keys() >= {"prediction_to_copy_ratio", "target_cosine", "smallest_deviation"}
