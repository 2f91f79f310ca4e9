import copy
import warnings

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import NatureCNN

from sb3_jepa import PPO, JepaCallback, JepaExtractor, LatentModel, RecurrentPPO
from sb3_jepa.alternating.learner import find_objectives
from sb3_jepa.common.actions import encode_actions
from sb3_jepa.extractors.finding import LEARNERS
from sb3_jepa.inspection.latent_model import BATCH_SIZE
from sb3_jepa.objectives import ObjectiveInput
from tests.algorithms.test_matrix import ACTIONS, EXTRACTOR, IMAGE, OBSERVATIONS, VECTOR
from tests.conftest import SMALL_POLICY, SMALL_PPO, FakeEnv

ALTERNATING = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=EXTRACTOR, net_arch=[16])
OFF_POLICY = dict(learning_starts=20, buffer_size=200, batch_size=16, seed=0, device="cpu")
# Algorithm, arguments, and action space
OFF_POLICY_ALGORITHMS = {"DQN": "Discrete", "SAC": "Box"}


def make_env(observation_space=VECTOR, action="Discrete"):
    return make_vec_env(lambda: FakeEnv(observation_space, ACTIONS[action]), n_envs=2, seed=0)


def make_joint(observation_space=VECTOR, **policy_kwargs):
    policy_kwargs = dict(SMALL_POLICY, features_extractor_kwargs=EXTRACTOR, **policy_kwargs)
    return PPO("JepaPolicy", make_env(observation_space), policy_kwargs=policy_kwargs, **SMALL_PPO)


def make_off_policy(algorithm: str, observation_space=VECTOR):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = make_env(observation_space, OFF_POLICY_ALGORITHMS[algorithm])
    # SAC writes into them
    return getattr(stable_baselines3, algorithm)(policy, env, policy_kwargs=dict(ALTERNATING), **OFF_POLICY)


def samples_of(space: spaces.Space, n_samples: int = 5):
    """A batch of observations, as environments give them."""
    space.seed(0)
    samples = [space.sample() for _ in range(n_samples)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space}
    return np.stack(samples)


def make_recurrent(space):
    return RecurrentPPO("JepaPolicy", make_env(space), policy_kwargs=SMALL_POLICY, **SMALL_PPO)


def make_normalized(space):
    return make_joint(space, normalize_images=False)


@pytest.mark.parametrize(
    ("make", "space"),
    [
        *((make_joint, space) for space in OBSERVATIONS.values()),
        # What goes into its LSTM
        (make_recurrent, spaces.Box(0, 255, (3, 16, 16), np.uint8)),
        # Images that are not divided once more
        (make_normalized, spaces.Box(0.0, 1.0, (3, 16, 24), np.float32)),
    ],
)
def test_embeds_as_the_policy_does(make, space):
    model = make(space).learn(16)
    # As the environment gives them: those whose channels are last are transposed on the way
    observations = samples_of(space)
    with th.no_grad():
        expected = model.policy.extract_features(model.policy.obs_to_tensor(observations)[0])
    embeddings = LatentModel(model).embed(observations)
    assert embeddings.shape == (5, 16)
    assert th.allclose(embeddings, expected, atol=1e-6)
    assert not embeddings.requires_grad


def test_many_observations_are_embedded_as_few_are():
    latent_model = LatentModel(make_joint(IMAGE).learn(16))
    observations = samples_of(IMAGE, 2 * BATCH_SIZE + 2)
    sizes = []
    latent_model.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    for embed in (latent_model.embed, latent_model.embed_target):
        few = th.cat([embed(observations[rows]) for rows in np.array_split(np.arange(len(observations)), 7)])
        assert th.allclose(embed(observations), few, atol=1e-6)
    assert sizes[-3:] == [BATCH_SIZE, BATCH_SIZE, 2]


def test_follows_the_training():
    model = make_joint().learn(16)
    latent_model, observations = LatentModel(model), samples_of(VECTOR)
    before = latent_model.embed(observations), latent_model.embed_target(observations)
    model.learn(64, reset_num_timesteps=False)
    after = latent_model.embed(observations), latent_model.embed_target(observations)
    again = LatentModel(model)
    for old, new, expected in zip(
        before, after, (again.embed(observations), again.embed_target(observations)), strict=True
    ):
        assert not th.allclose(old, new)
        assert th.equal(new, expected)
    # The target encoder moves less
    assert (after[1] - before[1]).norm() < (after[0] - before[0]).norm()


def test_target_and_surprise_are_what_the_objective_says():
    model = make_joint(IMAGE).learn(64)
    latent_model = LatentModel(model)
    observations, next_observations = samples_of(IMAGE), samples_of(IMAGE)[::-1].copy()
    actions = np.array([0, 1, 2, 1, 0])
    one_hot = th.eye(3)[actions]
    assert th.equal(latent_model.encode_actions(actions), one_hot)
    with th.no_grad():
        inputs, next_inputs = (th.as_tensor(one) / 255.0 for one in (observations, next_observations))
        embedding = model.policy.features_extractor(inputs)
        target = model.policy.objective.target_encoder(next_inputs)
        output = model.policy.objective(ObjectiveInput(None, inputs, embedding, one_hot, next_inputs))
    assert th.allclose(latent_model.embed_target(next_observations), target, atol=1e-6)
    assert th.allclose(latent_model.predict(embedding, one_hot), output.prediction, atol=1e-6)
    surprise = latent_model.surprise(observations, actions, next_observations)
    assert surprise.shape == (5,)
    assert surprise.mean() == pytest.approx(float(output.terms["prediction_loss"]), rel=1e-4)
    assert not np.allclose(surprise, surprise[0])


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_are_encoded_as_the_objective_saw_them(action):
    model = PPO("JepaPolicy", make_env(VECTOR, action), policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(16)
    (samples,) = model.rollout_buffer.get()
    stored = samples.observations.actions
    # The environments execute what is clipped
    executed = stored.numpy().reshape(-1, *model.action_space.shape)
    if action == "Box":
        assert np.abs(executed).max() > 2.0
        executed = executed.clip(-2, 2)
    encoded = LatentModel(model).encode_actions(executed)
    assert th.allclose(encoded, encode_actions(stored, model.action_space), atol=1e-6)


def test_actions_of_a_replay_buffer_are_scaled_already():
    model = make_off_policy("SAC")
    latent_model = LatentModel(model)
    executed = np.array([[-2.0, 0.0], [1.0, 2.0]], np.float32)
    assert latent_model.encode_actions(executed).numpy() == pytest.approx(model.policy.scale_action(executed))


def test_nothing_is_changed_by_asking():
    model = make_joint(IMAGE).learn(16)
    policy = model.policy
    before = copy.deepcopy(policy.state_dict())
    gauge = policy.gauges["shared"]
    n_minibatches = gauge.n_minibatches
    for mode in (True, False):
        policy.set_training_mode(mode)
        latent_model = LatentModel(model)
        observations = samples_of(IMAGE)
        latent_model.surprise(observations, np.zeros(5, dtype=int), observations)
        modes = {name: module.training for name, module in policy.named_modules() if "target_encoder" not in name}
        assert set(modes.values()) == {mode}
    assert all(parameter.grad is None for parameter in policy.objective.target_encoder.parameters())
    assert gauge.n_minibatches == n_minibatches
    for name, value in policy.state_dict().items():
        assert th.equal(value, before[name]), name


def test_the_encoder_is_asked_in_evaluation_mode_and_left_as_it_was_after_an_error():
    class Dropping(NatureCNN):
        """One that computes something else in training mode."""

        def forward(self, observations):
            return th.dropout(super().forward(observations), 0.5, self.training)

    env = make_env(spaces.Box(0, 255, (3, 36, 36), np.uint8))
    kwargs = dict(features_extractor_class=Dropping, features_extractor_kwargs=dict(features_dim=16))
    model = PPO("JepaPolicy", env, policy_kwargs=kwargs, **SMALL_PPO)
    model.policy.set_training_mode(True)
    latent_model, observations = LatentModel(model), samples_of(env.observation_space)
    assert th.equal(latent_model.embed(observations), latent_model.embed(observations))

    def fail(inputs):
        assert not latent_model.encoder.training
        raise RuntimeError("failed")

    # A part that its owner keeps in evaluation mode stays there
    latent_model.encoder.cnn.eval()
    with pytest.raises(RuntimeError, match="failed"):
        list(latent_model.in_batches(observations, fail))
    assert latent_model.encoder.training
    assert not latent_model.encoder.cnn.training


def test_asking_is_not_taken_for_the_beginning_of_a_training():
    model = make_off_policy("DQN")
    model.policy.set_training_mode(False)
    model.q_net.features_extractor.training = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LatentModel(model).embed(samples_of(VECTOR))
    # The warning is still there when one does begin
    with pytest.warns(UserWarning, match="not standardised"):
        model.learn(30)


def test_a_loaded_joint_model(tmp_path):
    model = make_joint().learn(64)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    check_equal(LatentModel(model), LatentModel(loaded))


def check_equal(one: LatentModel, other: LatentModel) -> None:
    observations, space = samples_of(one.policy.observation_space), one.policy.action_space
    actions = samples_of(space)
    assert one.name == other.name
    assert th.equal(one.embed(observations), other.embed(observations))
    assert th.equal(one.embed_target(observations), other.embed_target(observations))
    assert np.array_equal(*(model.surprise(observations, actions, observations) for model in (one, other)))
    assert one.first_embedding_variance == other.first_embedding_variance > 0


@pytest.mark.parametrize("algorithm", OFF_POLICY_ALGORITHMS)
def test_an_alternating_model_and_one_that_was_loaded(algorithm, tmp_path):
    model = make_off_policy(algorithm)
    assert not LatentModel(model).has_objective
    callback = JepaCallback(objective_kwargs=dict(hidden_dim=24))
    model.learn(100, callback=callback)
    latent_model = LatentModel(model)
    assert latent_model.has_objective
    assert latent_model.objective is callback.objectives[latent_model.name]
    # It has learned something that the encoder's first copy did not know
    observations = samples_of(VECTOR)
    assert not th.allclose(latent_model.embed(observations), latent_model.embed_target(observations))

    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", device="cpu")
    state = th.get_rng_state()
    loaded_latent_model = LatentModel(loaded)
    # No random numbers are used up
    assert th.equal(th.get_rng_state(), state)
    check_equal(latent_model, loaded_latent_model)
    assert loaded_latent_model.objective.predictor.hidden.out_features == 24


def test_find_objectives(tmp_path):
    model = make_off_policy("SAC")
    assert find_objectives(model) == {}
    # Only one of them learns
    model.learn(100, callback=JepaCallback(encoders=["critic"]))
    found = find_objectives(model)
    assert list(found) == ["critic"]
    objective, first_variance = found["critic"]
    assert objective is getattr(model, LEARNERS)["critic"].objective
    assert first_variance == float(getattr(model, LEARNERS)["critic"].gauge.first_embedding_variance) > 0
    # The one that has a predictor comes first
    assert LatentModel(model).name == "critic"
    assert not LatentModel(model, "actor").has_objective

    joint = make_joint(share_features_extractor=False)
    assert list(find_objectives(joint)) == ["actor", "critic"]
    assert all(first_variance == 0.0 for _, first_variance in find_objectives(joint).values())
    joint.learn(64)
    for name, (objective, first_variance) in find_objectives(joint).items():
        assert objective is joint.policy.objectives[name]
        assert first_variance == float(joint.policy.gauges[name].first_embedding_variance) > 0


def test_separate_encoders_by_name():
    model = make_joint(share_features_extractor=False).learn(64)
    observations = samples_of(VECTOR)
    expected = model.policy.extract_features(model.policy.obs_to_tensor(observations)[0])
    for name, embedding in zip(("actor", "critic"), expected, strict=True):
        latent_model = LatentModel(model, name)
        assert latent_model.name == name
        assert th.equal(latent_model.embed(observations), embedding)
        assert latent_model.objective is model.policy.objectives[name]
    assert LatentModel(model).name == "actor"
    # By default the one that learns
    model = make_joint(share_features_extractor=False, objective_for="critic")
    assert LatentModel(model).name == "critic"
    assert not LatentModel(model, "actor").has_objective


def test_what_is_not_there_is_told():
    model = make_joint()
    with pytest.raises(ValueError, match=r"must be among those of the model, \['shared'\], got \['critic'\]"):
        LatentModel(model, "critic")
    with pytest.raises(ValueError, match="no encoder that learns"):
        LatentModel(stable_baselines3.PPO("MlpPolicy", make_env(), device="cpu"))
    # Without a predictor there are embeddings, and nothing else
    model = make_off_policy("DQN")
    latent_model, observations = LatentModel(model), samples_of(VECTOR)
    assert latent_model.embed(observations).shape == (5, 16)
    assert latent_model.first_embedding_variance == 0.0
    for ask in (
        lambda: latent_model.embed_target(observations),
        lambda: latent_model.predict(th.zeros(5, 16), th.zeros(5, 3)),
        lambda: latent_model.surprise(observations, np.zeros(5, dtype=int), observations),
    ):
        with pytest.raises(ValueError, match=r"'q_net' of this DQN has no JEPA objective.*JepaCallback"):
            ask()


def test_of_a_dict_off_policy():
    space = OBSERVATIONS["Dict"]
    model = make_off_policy("SAC", space)
    model.learn(100, callback=JepaCallback())
    latent_model, observations = LatentModel(model, "critic"), samples_of(space)
    tensors, _ = model.policy.obs_to_tensor(observations)
    with th.no_grad():
        expected = model.critic.extract_features(tensors, model.critic.features_extractor)
    assert th.allclose(latent_model.embed(observations), expected, atol=1e-6)
    surprise = latent_model.surprise(observations, np.zeros((5, 2), np.float32), observations)
    assert np.isfinite(surprise).all()
