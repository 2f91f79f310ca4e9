"""Numbers that are missing: NaN in an observation, as if a sensor had failed."""

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaCallback, JepaExtractor, TJepa, load_encoder, pretrain
from sb3_jepa.objectives import MaskedPrediction, ObjectiveInput
from sb3_jepa.parts import InputStandardization
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO, FakeEnv

VECTOR = spaces.Box(-10, 10, (5,))
SMALL_MISSING = dict(SMALL_POLICY, features_extractor_kwargs=dict(SMALL_EXTRACTOR, missing_as_nan=True))
# Which of five numbers are missing
PATTERNS = th.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 1, 0], [0, 1, 1, 1, 1]], dtype=th.bool)


class BadNumbersEnv(FakeEnv):
    """Random vectors in which some numbers are replaced: the first one, and in the last observation the second."""

    def __init__(self, first: float = np.nan, last: float = np.nan):
        super().__init__(VECTOR)
        self.first, self.last = first, last

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        observation[0] = self.first
        return observation, info

    def step(self, action):
        observation, reward, over, truncated, info = super().step(action)
        observation[1 if over else 0] = self.last if over else self.first
        return observation, reward, over, truncated, info


def make_env(**kwargs: float):
    return make_vec_env(lambda: BadNumbersEnv(**kwargs), n_envs=2, seed=0)


def make_extractor(**kwargs) -> JepaExtractor:
    th.manual_seed(0)
    return JepaExtractor(VECTOR, embed_dim=16, num_heads=2, standardize_frames=0, missing_as_nan=True, **kwargs)


def by_hand(extractor: JepaExtractor, vector: th.Tensor) -> th.Tensor:
    """The features of one vector, from a transformer over the tokens that there are."""
    encoder = extractor.encoder
    present = ~vector.isnan()
    columns = encoder.tokenizer[-1]
    tokens = columns.code[present] + vector[present, None] * columns.direction[present]
    tokens = th.cat((encoder.class_token[0], tokens))[None]
    for block in encoder.blocks:
        tokens = block(tokens)
    tokens = encoder.norm(tokens)[0]
    n = encoder.class_tokens
    if encoder.output == "class_token":
        return tokens[0]
    if encoder.output == "mean":
        return tokens[n:].mean(dim=0)
    # What is missing is zero
    all_tokens = th.zeros(n + 5, 16)
    all_tokens[:n], all_tokens[n:][present] = tokens[:n], tokens[n:]
    if encoder.output == "flat":
        return all_tokens.flatten()
    return (all_tokens * encoder.readout.weight).sum(dim=1) + encoder.readout.bias


@pytest.mark.parametrize(
    ("output", "class_tokens"),
    [("class_token", 1), ("class_token", 3), ("mean", 0), ("mean", 2), ("per_token", 1), ("flat", 0), ("flat", 3)],
)
def test_what_is_missing_is_as_if_it_were_not_there(output, class_tokens):
    extractor = make_extractor(output=output, class_tokens=class_tokens)
    vectors = th.randn(3, 5).masked_fill(PATTERNS, th.nan)
    features, expected = extractor(vectors), th.stack([by_hand(extractor, vector) for vector in vectors])
    assert th.allclose(features, expected, atol=1e-5)
    # Without gradients, attention may be computed in another way
    with th.no_grad():
        assert th.allclose(features, extractor(vectors), atol=1e-6)
    # What is missing has no part in what is learned
    weights = th.randn_like(features)
    gradients, expected_gradients = (
        th.autograd.grad((one * weights).sum(), list(extractor.parameters())) for one in (features, expected)
    )
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert th.allclose(gradient, expected_gradient, atol=1e-4)


@pytest.mark.parametrize(("output", "class_tokens"), [("class_token", 1), ("mean", 0), ("flat", 0)])
def test_where_all_is_missing_nothing_breaks(output, class_tokens):
    extractor = make_extractor(output=output, class_tokens=class_tokens)
    features = extractor(th.full((2, 5), th.nan))
    assert features.isfinite().all()
    features.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in extractor.parameters())


def test_hidden_tokens_and_missing_numbers_are_the_same():
    extractor = make_extractor()
    vectors = th.randn(3, 5)
    places = th.tensor([[0, 2, 3]]).expand(3, -1)
    hidden = extractor.encode_tokens(vectors, places)
    is_missing = th.tensor([False, True, False, False, True])
    missing = extractor.encode_tokens(vectors.masked_fill(is_missing, th.nan))
    assert th.allclose(hidden, missing[:, [0, 1, 3, 4]], atol=1e-5)


def test_missing_numbers_are_no_targets():
    class Filled(TJepa):
        """Something else stands in the place of the missing number."""

        filling = 0.0

        def targets(self, batch):
            return super().targets(batch).index_fill(1, th.tensor([4]), self.filling)

    extractor = make_extractor()
    objective = Filled(extractor, extractor.features_dim, mask_kwargs=dict(context_scale=(0.4, 0.4)))
    vectors = th.randn(32, 5)
    vectors[:, 4] = th.nan
    found = []
    for objective.filling in (0.0, 100.0):
        th.manual_seed(0)
        loss = objective(ObjectiveInput(extractor, vectors)).loss
        found.append((loss, *th.autograd.grad(loss, extractor.encoder.blocks[0].mlp[0].weight)))
    assert found[0][0].isfinite()
    assert all(th.equal(one, other) for one, other in zip(*found, strict=True))


def test_statistics_are_those_of_the_numbers_that_there_are():
    th.manual_seed(0)
    inputs = 3 * th.randn(100, 4) + th.tensor([0.0, 5.0, -5.0, 100.0])
    inputs = inputs.masked_fill(th.rand(100, 4) < th.tensor([0.0, 0.5, 0.9, 0.2]), th.nan)
    # One is missing in a whole batch, as the sensor of an episode is
    inputs[:40, 1] = th.nan
    standardization = InputStandardization((4,), per="input")
    for batch in inputs.split((40, 25, 35)):
        standardization.update(batch)
    columns = [column[~column.isnan()] for column in inputs.T]
    assert th.allclose(standardization.mean, th.stack([column.mean() for column in columns]), atol=1e-4)
    assert th.allclose(standardization.variance, th.stack([column.var(correction=0) for column in columns]), rtol=1e-3)
    assert th.equal(standardization(inputs).isnan(), inputs.isnan())
    # Statistics that were loaded can be updated
    other = InputStandardization((4,), per="input")
    other.load_state_dict(standardization.state_dict())
    other.update(inputs)
    assert th.allclose(other.mean[0], standardization.mean[0], atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "policy_kwargs", "message"),
    [
        (dict(first=np.nan), SMALL_POLICY, "observations contain NaN"),
        (dict(first=0.0), SMALL_POLICY, "last observations of episodes contain NaN"),
        (dict(first=np.inf), SMALL_MISSING, "infinite"),
        (dict(last=np.inf), SMALL_MISSING, "last observations of episodes contain"),
    ],
)
def test_numbers_that_are_not_said_to_be_missing_are_refused(bad, policy_kwargs, message):
    model = PPO("JepaPolicy", make_env(**bad), policy_kwargs=policy_kwargs, **SMALL_PPO)
    with pytest.raises(ValueError, match=message):
        model.learn(64)


@pytest.mark.parametrize("space", [spaces.Box(0, 255, (3, 16, 16), np.uint8), spaces.MultiDiscrete([2, 3])])
def test_without_numbers_nothing_can_be_missing(space):
    with pytest.raises(ValueError, match=r"`missing_as_nan` leaves out.*there is no vector in (Box|MultiDiscrete)"):
        JepaExtractor(space, missing_as_nan=True)


@pytest.mark.parametrize("output", ["class_token", "per_token"])
def test_ppo_learns_from_what_there_is(output, tmp_path):
    extractor_kwargs = dict(SMALL_MISSING["features_extractor_kwargs"], output=output)
    policy_kwargs = dict(SMALL_MISSING, features_extractor_kwargs=extractor_kwargs)
    model = PPO("JepaPolicy", make_env(), policy_kwargs=policy_kwargs, **SMALL_PPO)
    before = {name: one.detach().clone() for name, one in model.policy.named_parameters()}
    model.learn(96)
    for name, parameter in model.policy.named_parameters():
        assert parameter.isfinite().all(), name
        if parameter.requires_grad:
            assert not th.equal(parameter, before[name]), name
    (standardization,) = model.policy.features_extractor.standardizations
    assert standardization.mean.isfinite().all()
    assert np.isfinite(evaluate_policy(model, make_env(), n_eval_episodes=2)[0])

    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", make_env())
    observations = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    observations[:, 1:3] = np.nan
    tensor = th.as_tensor(observations)
    assert th.equal(loaded.policy.predict_values(tensor), model.policy.predict_values(tensor))
    loaded.learn(32)


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (stable_baselines3.PPO, dict(n_steps=16, batch_size=16, n_epochs=1)),
        (stable_baselines3.DQN, dict(learning_starts=20, batch_size=16)),
    ],
)
def test_other_algorithms_learn_from_what_there_is(algorithm, kwargs):
    policy_kwargs = dict(SMALL_MISSING, features_extractor_class=JepaExtractor)
    model = algorithm("MlpPolicy", make_env(), policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)
    model.learn(100, callback=JepaCallback())
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_running_statistics_are_refused_as_soon_as_they_are_spoiled():
    model = PPO("JepaPolicy", VecNormalize(make_env()), policy_kwargs=SMALL_MISSING, **SMALL_PPO)
    with pytest.raises(ValueError, match="norm_obs=False"):
        model.learn(64)
    assert model._n_updates == 0
    # Rewards may be normalised
    env = VecNormalize(make_env(), norm_obs=False)
    PPO("JepaPolicy", env, policy_kwargs=SMALL_MISSING, **SMALL_PPO).learn(64)


def test_an_encoder_is_pretrained_on_what_there_is(tmp_path):
    class Sometimes(BadNumbersEnv):
        def reset(self, *, seed=None, options=None):
            observation, info = super().reset(seed=seed)
            self.first = np.nan if self.np_random.random() < 0.5 else 1.0
            return observation, info

    extractor_kwargs = dict(SMALL_EXTRACTOR, missing_as_nan=True)
    path = pretrain(
        Sometimes(last=0.0),
        tmp_path,
        TJepa,
        features_extractor_kwargs=extractor_kwargs,
        n_updates=6,
        eval_freq=3,
        n_steps=200,
        device="cpu",
    )
    model = PPO("JepaPolicy", make_env(), policy_kwargs=SMALL_MISSING, **SMALL_PPO)
    load_encoder(model, path)
    assert model.learn(32).policy.features_extractor.n_inputs_to_measure == 0
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("target", ["momentum", "input"])
def test_numbers_that_share_a_token_are_missing_alone(target):
    """What stands in the place of a number that is missing has no effect, also if others of its token are there."""
    th.manual_seed(0)
    space = spaces.Box(-3, 3, (7,))
    kwargs = dict(embed_dim=8, num_heads=2, standardize_frames=0, missing_as_nan=True, numbers_per_token=3)
    encoder = JepaExtractor(space, **kwargs)
    objective = MaskedPrediction(encoder, embed_dim=8, target=target)
    vectors = th.randn(16, 7)
    vectors[:, [0, 3, 4, 5]] = th.nan
    assert encoder.encoder.tokenizer(vectors).isnan().all(dim=2).tolist() == [[False, True, False]] * 16
    assert encoder(vectors).isfinite().all()
    for _ in range(5):
        loss = objective(ObjectiveInput(encoder, vectors)).loss
        assert loss.isfinite()
        gradients = th.autograd.grad(loss, list(encoder.parameters()), allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
