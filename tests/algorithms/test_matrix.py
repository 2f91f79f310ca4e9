"""Every algorithm with every observation and action space that it takes."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import A2C, PPO, MaskablePPO, NextLatentPrediction, RecurrentPPO, Transitions
from sb3_jepa.extractors.measuring import n_inputs_to_measure
from tests.buffers.test_rollout import RecordSteps, as_bytes, take
from tests.conftest import FakeEnv

IMAGE = spaces.Box(0, 255, (3, 16, 24), np.uint8)
VECTOR = spaces.Box(-1, 1, (3,))
OBSERVATIONS = {
    "image": IMAGE,
    "channels-last image": spaces.Box(0, 255, (16, 24, 3), np.uint8),
    "frames of Gymnasium": spaces.Box(0, 255, (2, 16, 24, 3), np.uint8),
    "vector": VECTOR,
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict(camera=IMAGE, other=IMAGE, speed=VECTOR, mode=spaces.Discrete(3)),
}
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-2, 2, (2,)),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(2),
}
ALGORITHMS = {"PPO": PPO, "A2C": A2C, "MaskablePPO": MaskablePPO, "RecurrentPPO": RecurrentPPO}
# sb3-contrib masks no continuous actions
NOT_SUPPORTED = {("MaskablePPO", "Box")}
# Every observation space with one action space, and every action space with one observation space
SPACES = [(observation, "Discrete") for observation in OBSERVATIONS] + [
    ("vector", action) for action in ACTIONS if action != "Discrete"
]
EXTRACTOR = dict(embed_dim=16, num_heads=2, depth=1, patch_size=8, standardize_frames=16)


class CheckedPrediction(NextLatentPrediction):
    """Its target encoder is where the formula of momentum says."""

    n_updates = 0

    def update_target(self, encoder: th.nn.Module) -> None:
        before = parameters(self.target_encoder)
        super().update_target(encoder)
        for old, context, new in zip(before, parameters(encoder), parameters(self.target_encoder), strict=True):
            assert th.allclose(new, self.momentum * old + (1 - self.momentum) * context, atol=1e-7)
        self.n_updates += 1


def make_model(algorithm: str, observation: str, action: str, **policy_kwargs):
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS[observation], ACTIONS[action]), n_envs=2, seed=0)
    kwargs = dict(batch_size=16, n_epochs=2) if "PPO" in algorithm else {}
    policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[16], **policy_kwargs)
    return ALGORITHMS[algorithm](
        "JepaPolicy", env, n_steps=16, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs
    )


def parameters(module: th.nn.Module) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def distance(one: list[th.Tensor], other: list[th.Tensor]) -> float:
    return sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("observation", "action"), SPACES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_joint_training(algorithm, observation, action, tmp_path):
    if (algorithm, action) in NOT_SUPPORTED:
        pytest.skip(f"{algorithm} has no {action} actions")
    model = make_model(algorithm, observation, action, objective_class=CheckedPrediction)
    policy = model.policy
    encoder, target = policy.features_extractor, policy.objective.target_encoder.encoder
    before = parameters(encoder)
    assert distance(before, parameters(target)) == 0.0
    recorder = RecordSteps()
    model.learn(96, callback=recorder)
    moved = distance(before, parameters(encoder))
    # The encoder learned, and the target followed from afar
    assert moved > 0
    assert 0 < distance(before, parameters(target)) < moved
    assert policy.objective.n_updates > 0
    assert n_inputs_to_measure(policy) == 0

    # No pair crosses an episode, and all that an environment shows is known
    assert recorder.n_ends > 0
    for samples in model.rollout_buffer.get():
        transitions = samples.observations
        assert isinstance(transitions, Transitions)
        assert (transitions.valid == 1).all()
        here = transitions.observations
        # Of padded sequences, the rows that are real
        real = th.ones(len(transitions.valid)) if transitions.mask is None else transitions.mask
        for row, step in enumerate(real.nonzero().flatten().tolist()):
            pair = take(here, step), take(transitions.next_observations, row)
            assert tuple(map(as_bytes, pair)) in recorder.pairs

    model.save(tmp_path / "model")
    env = make_model(algorithm, observation, action).get_env()
    loaded = type(model).load(tmp_path / "model", env=env, device="cpu")
    for name, value in policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[name]), name
    # Resumed, both learn the same
    for one in (model, loaded):
        one.set_env(make_model(algorithm, observation, action).get_env())
        one.set_random_seed(1)
        one.learn(32, reset_num_timesteps=False)
    for name, value in policy.state_dict().items():
        assert th.equal(value, loaded.policy.state_dict()[name]), name
    observations = env.reset()
    actions = [one.predict(observations, deterministic=True)[0] for one in (model, loaded)]
    assert np.array_equal(*actions)


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loss_falls_on_a_fixed_rollout(algorithm, observation):
    kwargs = dict(rl_gradient=False, encoder_lr_factor=1.0, objective_kwargs=dict(momentum=1.0))
    model = make_model(algorithm, observation, "Discrete", **kwargs).learn(32)

    def loss() -> float:
        (samples,) = model.rollout_buffer.get()
        transitions, sums = samples.observations, []
        with th.enable_grad():
            gauge = model.policy.gauges["shared"]
            gauge.reset()
            model.policy.extract_features(transitions)
            terms = gauge.means()
        objective = model.policy.objective
        sums = [getattr(objective, f"{name}_coef") * terms[f"{name}_loss"] for name in ("prediction", "deviation")]
        return sum(sums) + objective.covariance_coef * terms["covariance_loss"]

    before = loss()
    for _ in range(10):
        model.train()
    assert loss() < before
