"""seq-JEPA: its loss, what it teaches, and what it refuses."""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_jepa
from sb3_jepa import JepaExtractor, SequenceExtractor, SequencePrediction
from sb3_jepa.envs import VecHistory
from sb3_jepa.objectives import ObjectiveInput, SeqJepa
from sb3_jepa.objectives.seq_jepa import cosine_momentum
from tests.envs.test_history import Counting
from tests.extractors.test_sequence_extractor import SMALL, VECTOR, histories_of


def make(objective_class=SequencePrediction, **kwargs):
    observations, space = histories_of(VECTOR, n_steps=6, episode_steps=100)
    encoder = SequenceExtractor(space, **SMALL)
    objective = objective_class(encoder, embed_dim=encoder.features_dim, action_dim=3, **kwargs)
    history, led_to = ({key: tensor.float() for key, tensor in observations[index].items()} for index in (4, 5))
    batch = ObjectiveInput(encoder, history, encoder(history), th.eye(3), led_to, th.tensor([1.0, 1.0, 0.0]))
    return encoder, objective, batch


def test_the_loss_is_one_minus_the_cosine_over_what_is_valid():
    encoder, objective, batch = make(hidden_dim=8)
    output = objective.prediction_output(batch)
    aggregate = batch.embedding[:, :24]
    hidden = th.relu(objective.hidden(aggregate) + objective.action(batch.actions))
    guess, wanted = objective.output(hidden), encoder.view_encoder.extractor(batch.next_observations["views"][:, -1])
    cosines = (guess * wanted).sum(dim=1) / (guess.norm(dim=1) * wanted.norm(dim=1))
    th.testing.assert_close(output.loss, 1.0 - cosines[:2].mean())
    th.testing.assert_close(output.target, wanted.detach())


def test_the_target_is_the_encoder_of_single_views_alone():
    encoder, objective, _ = make()
    names = {name for name, _ in objective.target_encoder.named_parameters()}
    assert names == {f"encoder.{name}" for name, _ in encoder.view_encoder.named_parameters()}
    with th.no_grad():
        for parameter in encoder.view_encoder.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in objective.target_encoder.parameters()]
    objective.update_target(encoder)
    for old, new in zip(before, objective.target_encoder.parameters(), strict=True):
        th.testing.assert_close(new, old + 0.01)


def test_the_gradient_reaches_views_aggregator_and_predictor_and_not_the_target():
    encoder, objective, batch = make(deviation_coef=0.0, covariance_coef=0.0)
    objective(batch).loss.backward()
    learning = [*encoder.view_encoder.parameters(), *encoder.aggregator.parameters(), *objective.hidden.parameters()]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learning)
    assert all(parameter.grad is None for parameter in objective.target_encoder.parameters())


def test_the_newest_action_is_told_to_the_predictor_alone():
    _, objective, batch = make()
    with_other = batch._replace(actions=batch.actions.roll(1, dims=0))
    assert not th.allclose(objective(batch).prediction, objective(with_other).prediction)
    _, objective, batch = make(predict_with_action=False)
    with_other = batch._replace(actions=batch.actions.roll(1, dims=0))
    th.testing.assert_close(objective(batch).prediction, objective(with_other).prediction)


def test_the_momentum_of_the_paper():
    assert cosine_momentum(1.0) == pytest.approx(0.996)
    assert cosine_momentum(0.0) == pytest.approx(1.0)
    assert cosine_momentum(0.5) == pytest.approx(1.0 - 0.002)
    assert cosine_momentum(0.75) == pytest.approx(1.0 - 0.004 * (math.cos(math.pi / 4) + 1) / 2)
    _, objective, _ = make(SeqJepa)
    assert (objective.prediction_coef, objective.deviation_coef, objective.covariance_coef) == (1.0, 0.0, 0.0)


def test_an_encoder_without_histories_is_refused():
    with pytest.raises(ValueError, match=r"features_extractor_class.*SequenceExtractor"):
        SequencePrediction(JepaExtractor(VECTOR), embed_dim=64, action_dim=2)
    with pytest.raises(ValueError, match=r"features_extractor_class.*SequenceExtractor"):
        sb3_jepa.PPO("JepaPolicy", "CartPole-v1", policy_kwargs=dict(objective_class=SequencePrediction))


@pytest.mark.parametrize("name", ["PPO", "A2C", "DQN"])
def test_it_learns_beside_every_algorithm(name, tmp_path):
    env = VecHistory(DummyVecEnv([Counting]), 3)
    settings = dict(PPO=dict(n_steps=32, batch_size=16), A2C=dict(n_steps=8), DQN=dict(learning_starts=16))[name]
    policy_kwargs = dict(
        features_extractor_class=SequenceExtractor, features_extractor_kwargs=SMALL, objective_class=SequencePrediction
    )
    algorithm = getattr(sb3_jepa, name)
    model = algorithm("JepaPolicy", env, policy_kwargs=policy_kwargs, seed=0, **settings)
    encoder = next(iter(model.policy.encoders.values()))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    model.learn(64)
    assert all(not th.equal(before[name], value) for name, value in encoder.named_parameters())
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    history = env.reset()
    np.testing.assert_array_equal(
        model.predict(history, deterministic=True)[0], loaded.predict(history, deterministic=True)[0]
    )


def test_a_callback_trains_it_in_turn_with_a_stock_algorithm():
    env = VecHistory(DummyVecEnv([Counting]), 3)
    policy_kwargs = dict(features_extractor_class=SequenceExtractor, features_extractor_kwargs=SMALL)
    model = PPO("MultiInputPolicy", env, n_steps=32, batch_size=16, policy_kwargs=policy_kwargs, device="cpu")
    model.learn(64, callback=sb3_jepa.JepaCallback(objective_class=SequencePrediction))
    assert model.logger.name_to_value["jepa/prediction_loss"] > 0


@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_histories_have_an_encoder_and_an_objective_of_their_own_by_default(name):
    model = getattr(sb3_jepa, name)("JepaPolicy", VecHistory(DummyVecEnv([Counting]), 3))
    (encoder,) = model.policy.encoders.values()
    assert isinstance(encoder, SequenceExtractor)
    assert isinstance(model.policy.objective, SequencePrediction)


def test_the_callback_gives_them_the_same_objective():
    policy_kwargs = dict(features_extractor_class=SequenceExtractor, features_extractor_kwargs=SMALL)
    env = VecHistory(DummyVecEnv([Counting]), 3)
    model = PPO("MultiInputPolicy", env, n_steps=32, batch_size=16, policy_kwargs=policy_kwargs, device="cpu")
    model.learn(32, callback=sb3_jepa.JepaCallback())
    assert all(
        isinstance(one["objective_class"], type) for one in model.jepa_learners.values() if isinstance(one, dict)
    )
    assert model.logger.name_to_value["jepa/prediction_loss"] > 0
