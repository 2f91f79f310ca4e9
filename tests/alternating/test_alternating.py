"""Every algorithm, not touched, with a JepaExtractor and a JepaCallback."""

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.utils import LinearSchedule

from sb3_jepa import JepaCallback, JepaExtractor, Transitions
from sb3_jepa.alternating.sources import ReplaySource
from sb3_jepa.common.actions import encode_actions
from sb3_jepa.extractors.finding import LEARNERS, find_encoders
from sb3_jepa.objectives import ObjectiveInput
from tests.algorithms.test_matrix import ACTIONS, EXTRACTOR, OBSERVATIONS, CheckedPrediction, distance, parameters
from tests.conftest import FakeEnv

ON_POLICY = dict(n_steps=16)
OFF_POLICY = dict(learning_starts=20, buffer_size=200, batch_size=16)
# Class, arguments, action space, and the names of its encoders
ALGORITHMS = {
    "PPO": (stable_baselines3.PPO, dict(ON_POLICY, batch_size=16, n_epochs=2), "Discrete", ["shared"]),
    "A2C": (stable_baselines3.A2C, ON_POLICY, "MultiBinary", ["shared"]),
    "TRPO": (sb3_contrib.TRPO, dict(ON_POLICY, batch_size=16), "Box", ["shared"]),
    "MaskablePPO": (sb3_contrib.MaskablePPO, dict(ON_POLICY, batch_size=16), "MultiDiscrete", ["shared"]),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, dict(ON_POLICY, batch_size=16, n_epochs=2), "Discrete", ["shared"]),
    "DQN": (stable_baselines3.DQN, OFF_POLICY, "Discrete", ["q_net"]),
    "QRDQN": (sb3_contrib.QRDQN, OFF_POLICY, "Discrete", ["quantile_net"]),
    "SAC": (stable_baselines3.SAC, OFF_POLICY, "Box", ["actor", "critic"]),
    "TD3": (stable_baselines3.TD3, OFF_POLICY, "Box", ["actor", "critic"]),
    "DDPG": (stable_baselines3.DDPG, OFF_POLICY, "Box", ["actor", "critic"]),
    "TQC": (sb3_contrib.TQC, OFF_POLICY, "Box", ["actor", "critic"]),
    "CrossQ": (sb3_contrib.CrossQ, OFF_POLICY, "Box", ["actor", "critic"]),
}

NOT_SUPPORTED = {("CrossQ", "Dict")}


def make_model(algorithm: str, observation: str = "vector", env=None, **kwargs):
    algorithm_class, own_kwargs, action, _ = ALGORITHMS[algorithm]
    if env is None:
        env = make_vec_env(lambda: FakeEnv(OBSERVATIONS[observation], ACTIONS[action]), n_envs=2, seed=0)
    policy_kwargs = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=EXTRACTOR, net_arch=[16])
    policy_kwargs |= kwargs.pop("policy_kwargs", {})
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    if algorithm == "RecurrentPPO":
        policy = policy.replace("Policy", "LstmPolicy")
    return algorithm_class(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **{**own_kwargs, **kwargs})


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_alternating_training(algorithm, observation, tmp_path):
    if (algorithm, observation) in NOT_SUPPORTED:
        pytest.skip(f"{algorithm} has no policy for {observation} observations")
    model = make_model(algorithm, observation)
    encoders = find_encoders(model.policy)
    assert list(encoders) == ALGORITHMS[algorithm][3]
    before = {name: parameters(encoder) for name, encoder in encoders.items()}
    callback = JepaCallback(objective_class=CheckedPrediction)
    model.learn(64, callback=callback)
    for name, objective in callback.objectives.items():
        assert objective.n_updates > 0
        moved = distance(before[name], parameters(encoders[name]))
        assert 0 < distance(before[name], parameters(objective.target_encoder.encoder)) < moved
    # All that encode see the same, target networks too
    for module in model.policy.modules():
        if isinstance(module, JepaExtractor):
            assert module.n_inputs_to_measure == 0
            for one, other in zip(module.buffers(), encoders[name].buffers(), strict=True):
                assert th.equal(one, other)

    # What the encoders learn with goes into the zip, and is taken up again
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=make_model(algorithm, observation).get_env(), device="cpu")
    observations = model.get_env().reset()
    actions = [one.predict(observations, deterministic=True)[0] for one in (model, loaded)]
    # TRPO differentiates twice, and then with another kernel
    assert np.allclose(*actions, atol=1e-5)
    resumed = JepaCallback(objective_class=CheckedPrediction)
    loaded.learn(0, callback=resumed, reset_num_timesteps=False)
    check_equal(callback, resumed)
    loaded.learn(32, callback=resumed, reset_num_timesteps=False)


def check_equal(callback: JepaCallback, resumed: JepaCallback) -> None:
    for name, objective in callback.objectives.items():
        other = resumed.objectives[name].state_dict()
        for key, value in objective.state_dict().items():
            assert th.equal(value, other[key]), key
        ours, theirs = (one.alternating.learners[name].optimizer.state_dict() for one in (callback, resumed))
        assert ours["state"][0]["step"] == theirs["state"][0]["step"] > 0


def spy_on_batches(callback: JepaCallback) -> list:
    """The transitions that the encoders learn from."""
    seen, start = [], callback._on_training_start

    def start_and_spy():
        start()
        source = callback.alternating.source
        minibatches = source.minibatches

        def spy(*args):
            for transitions in minibatches(*args):
                seen.append(transitions)
                yield transitions

        source.minibatches = spy

    callback._on_training_start = start_and_spy
    return seen


def test_a_number_of_updates(pixel_cartpole):
    callback = JepaCallback(n_updates=3, batch_size=5)
    seen = spy_on_batches(callback)
    make_model("PPO", env=pixel_cartpole).learn(64, callback=callback)
    assert [len(batch.valid) for batch in seen] == [5] * 6


@pytest.mark.parametrize("encoders", [["actor"], ["critic"], ["critic", "actor"]])
def test_which_encoders_learn(encoders):
    model = make_model("SAC")
    callback = JepaCallback(encoders=encoders)
    model.learn(60, callback=callback)
    assert list(callback.objectives) == encoders
    assert list(getattr(model, LEARNERS)) == encoders


def test_any_features_extractor_can_be_the_context_encoder():
    env = make_vec_env(lambda: FakeEnv(spaces.Box(0, 255, (3, 36, 36), np.uint8)), n_envs=2)
    policy_kwargs = dict(features_extractor_class=NatureCNN, features_extractor_kwargs=dict(features_dim=16))
    model = make_model("DQN", env=env, policy_kwargs=policy_kwargs)
    callback = JepaCallback()
    model.learn(60, callback=callback)
    assert callback.gauges["q_net"].first_embedding_variance > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loss_falls_on_a_fixed_batch(algorithm):
    model = make_model(algorithm)
    callback = JepaCallback(objective_kwargs=dict(momentum=1.0), learning_rate=1e-3)
    seen = spy_on_batches(callback)
    model.learn(80, callback=callback)
    training, batch = callback.alternating, seen[-1]
    observations, next_observations = map(training._preprocess, (batch.observations, batch.next_observations))
    actions = encode_actions(batch.actions, model.action_space, isinstance(training.source, ReplaySource))
    for name, learner in training.learners.items():
        before, losses = parameters(learner.encoder), []
        objective = learner.objective
        inputs = ObjectiveInput(learner.encoder, observations, None, actions, next_observations, batch.valid)
        for _ in range(20):
            embedding = learner.encoder(observations)
            losses.append(objective(inputs._replace(embedding=embedding)).loss.item())
            learner.learn(Transitions(observations, actions, next_observations, batch.valid))
        assert losses[-1] < losses[0], name
        assert distance(before, parameters(learner.encoder)) > 0, name


def test_the_loss_falls_without_the_algorithm(monkeypatch):
    model = make_model("TD3", learning_starts=200)
    model.learn(200)
    callback = JepaCallback(objective_kwargs=dict(momentum=1.0), n_updates=30, encoders=["critic"])
    callback.init_callback(model)
    before = {name: parameters(encoder) for name, encoder in find_encoders(model.policy).items()}
    _, callback = model._setup_learn(1000, callback)
    callback.on_training_start(dict(log_interval=4), {})
    training = callback.alternating
    monkeypatch.setattr(ReplaySource, "is_ready", True)
    gauge, losses = callback.gauges["critic"], []
    for _ in range(4):
        gauge.reset()
        training.train(1.0)
        terms = gauge.means()
        losses.append(0.2 * terms["prediction_loss"] + 0.2 * terms["deviation_loss"] + 0.01 * terms["covariance_loss"])
    assert losses[-1] < losses[0]
    # The one that was asked for has learned, and not its predictor alone
    moved = {name: distance(before[name], parameters(encoder)) for name, encoder in find_encoders(model.policy).items()}
    assert moved["critic"] > moved["actor"] == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(n_updates=0), "n_updates"),
        (dict(batch_size=-1), "batch_size"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        JepaCallback(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(encoders=["value"]), r"encoders.*actor.*critic.*value"),
        (dict(objective_kwargs=dict(momentum=2)), "momentum"),
    ],
)
def test_bad_arguments_fail_before_the_training(kwargs, message):
    model = make_model("SAC")
    with pytest.raises(ValueError, match=message):
        model.learn(60, callback=JepaCallback(**kwargs))
    assert model.num_timesteps == 0


def test_another_objective_than_the_model_was_trained_with_is_refused(tmp_path):
    model = make_model("DQN").learn(60, callback=JepaCallback())
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=model.get_env())
    with pytest.raises(ValueError, match=r"(?s)another objective.*hidden"):
        loaded.learn(60, callback=JepaCallback(objective_kwargs=dict(hidden_dim=8)))
    delattr(loaded, LEARNERS)
    loaded.learn(60, callback=JepaCallback(objective_kwargs=dict(hidden_dim=8)))


def test_a_training_ends_once():
    # rl-baselines3-zoo ends it a second time, for the progress bar's sake
    model = make_model("DQN")
    callback = JepaCallback()
    model.learn(60, callback=callback)
    before = parameters(model.policy.q_net)
    callback.on_training_end()
    assert distance(before, parameters(model.policy.q_net)) == 0


def test_an_algorithm_without_gradients_is_refused():
    model = sb3_contrib.ARS("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match=r"learns by gradients.*ARS"):
        model.learn(64, callback=JepaCallback())


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_schedules(algorithm):
    callback = JepaCallback(
        objective_kwargs=dict(momentum=LinearSchedule(0.9, 1.0, 1.0)), learning_rate=LinearSchedule(1e-2, 0.0, 1.0)
    )
    seen, start = set(), callback._on_training_start

    def start_and_spy():
        start()
        (learner,) = callback.alternating.learners.values()
        learner.optimizer.register_step_post_hook(
            lambda optimizer, *_: seen.add((optimizer.param_groups[0]["lr"], learner.objective.momentum))
        )

    callback._on_training_start = start_and_spy
    kwargs = dict(train_freq=8) if algorithm == "DQN" else {}
    make_model(algorithm, **kwargs).learn(80, callback=callback)
    assert len(seen) > 1
    for rate, momentum in seen:
        assert momentum == pytest.approx(1.0 - 10 * rate)
    # The last update is after the last rollout
    assert (0.0, 1.0) in seen


@pytest.mark.parametrize(("gradient_steps", "expected"), [(1, 1), (3, 3), (-1, 16)])
def test_as_many_updates_as_the_algorithm_makes(gradient_steps, expected):
    callback = JepaCallback()
    seen = spy_on_batches(callback)
    make_model("DQN", train_freq=8, gradient_steps=gradient_steps).learn(64, callback=callback)
    # Rollouts of 8 steps of 2 environments, of which the first is over before `learning_starts`
    assert len(seen) == 3 * expected


def test_trpo_and_frozen_encoders_do_not_belong_together():
    model = make_model("TRPO", policy_kwargs=dict(features_extractor_kwargs=dict(EXTRACTOR, frozen=True)))
    with pytest.raises(ValueError, match=r"TRPO.*frozen"):
        model.learn(32, callback=JepaCallback())


def test_learners_of_other_encoders_are_kept():
    model = make_model("TD3").learn(60, callback=JepaCallback(encoders=["critic"]))
    critic = getattr(model, LEARNERS)["critic"]
    model.learn(60, callback=JepaCallback(encoders=["actor"]), reset_num_timesteps=False)
    assert getattr(model, LEARNERS)["critic"] is critic


def test_inputs_are_measured_when_an_off_policy_algorithm_begins_to_learn():
    model = make_model("DQN", policy_kwargs=dict(features_extractor_kwargs=dict(EXTRACTOR, standardize_frames=40)))
    (extractor,) = find_encoders(model.policy).values()
    (standardization,) = extractor.standardizations
    n_seen = []

    class Remember(BaseCallback):
        def _on_step(self) -> bool:
            n_seen.append(int(standardization.n_seen))
            return True

    model.learn(80, callback=[JepaCallback(), Remember()])
    # More than 20 steps of 2 environments, and once more when there are 40
    assert sorted(set(n_seen)) == [0, 24, 40]
    assert (n_seen.count(0), extractor.n_inputs_to_measure) == (12, 0)
    # Enough at once, even if there were more
    model = make_model("DQN", learning_starts=100)
    model.learn(120, callback=JepaCallback())
    (standardization,) = find_encoders(model.policy)["q_net"].standardizations
    assert standardization.n_seen == EXTRACTOR["standardize_frames"]


def test_few_inputs_are_better_than_none(recwarn):
    policy_kwargs = dict(features_extractor_kwargs=dict(EXTRACTOR, standardize_frames=1000))
    # Twice what the replay buffer holds: when learning starts, and when it is full
    for buffer_size in (1000, 40):
        model = make_model("DQN", policy_kwargs=policy_kwargs, buffer_size=buffer_size)
        model.learn(80, callback=JepaCallback())
        (standardization,) = find_encoders(model.policy)["q_net"].standardizations
        assert (standardization.n_seen > 40) == (buffer_size == 40)
    assert not [warning for warning in recwarn if "standardised" in str(warning.message)]


class Camera(BaseFeaturesExtractor):
    """A user's own, with a JepaExtractor for one of the keys."""

    def __init__(self, observation_space: spaces.Dict):
        super().__init__(observation_space, features_dim=16)
        self.camera = JepaExtractor(observation_space["camera"], **EXTRACTOR)

    def forward(self, observations):
        return self.camera(observations["camera"])


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_inputs_of_an_extractor_within_another_are_measured(algorithm):
    model = make_model(
        algorithm, "Dict", policy_kwargs=dict(features_extractor_class=Camera, features_extractor_kwargs={})
    )
    callback = JepaCallback()
    model.learn(80, callback=callback)
    (encoder,) = find_encoders(model.policy).values()
    (objective,) = callback.objectives.values()
    assert encoder.camera.n_inputs_to_measure == 0
    assert encoder.camera.standardizations[0].mean.abs().sum() > 0
    for one, other in zip(encoder.buffers(), objective.target_encoder.encoder.buffers(), strict=True):
        assert th.equal(one, other)


def test_collapse_is_told_once(recwarn):
    model = make_model("PPO")
    objective_kwargs = dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0)
    model.learn(48, callback=JepaCallback(objective_kwargs=objective_kwargs))
    (encoder,) = find_encoders(model.policy).values()
    encoder.encoder.norm.weight.data.mul_(0.01)
    for _ in range(3):
        model.learn(32, callback=JepaCallback(objective_kwargs=objective_kwargs), reset_num_timesteps=False)
    assert len([warning for warning in recwarn if "collapsed" in str(warning.message)]) == 1


def test_a_training_that_is_stopped_before_there_is_something_to_learn_from():
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 12

    model = make_model(
        "DQN",
        env=make_vec_env(lambda: BitFlippingEnv(n_bits=15, max_steps=50), n_envs=1),
        replay_buffer_class=HerReplayBuffer,
        learning_starts=10,
        train_freq=100,
    )
    model.learn(60, callback=[JepaCallback(), Stop()])
    make_model("PPO").learn(0, callback=JepaCallback())


def test_custom_extractors_learn_in_training_mode():
    class WithDropout(JepaExtractor):
        modes: list[bool] = []  # noqa: RUF012

        def forward(self, observations):
            if th.is_grad_enabled():
                self.modes.append(self.training)
            return super().forward(observations)

    make_model("DQN", policy_kwargs=dict(features_extractor_class=WithDropout)).learn(60, callback=JepaCallback())
    assert len(WithDropout.modes) > 0
    assert all(WithDropout.modes)
