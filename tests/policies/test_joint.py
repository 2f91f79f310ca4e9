import copy

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import obs_as_tensor
from torch.nn import functional as F

from sb3_jepa import PPO, JepaCallback, JepaPolicy, JepaRolloutBuffer, Transitions
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.parts import StandardizedGridTokenizer, StandardizedPatchTokenizer
from tests.conftest import SMALL_POLICY, SMALL_PPO, make_counting_env

ONE_BATCH = {**SMALL_PPO, "n_epochs": 1, "batch_size": 32, "max_grad_norm": 1e9}


def gradients_of_training(model) -> dict[str, th.Tensor]:
    """Run ``train()`` for one minibatch; the gradients that the optimiser found."""
    gradients: dict[str, th.Tensor] = {}
    model.policy.optimizer.register_step_pre_hook(
        lambda *_: gradients.update(
            {name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}
        )
    )
    model.train()
    return gradients


def collect_rollout(model) -> None:
    total_timesteps, callback = model._setup_learn(10**6)
    callback.on_training_start(locals(), globals())
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


# No loss but PPO's
NO_OBJECTIVE = dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0)


def explicit_loss(model, policy: JepaPolicy, coefficients: dict[str, float], rl_gradient: bool) -> th.Tensor:
    """PPO's loss plus JEPA's loss, from the equations and with nothing attached to anything."""
    (samples,) = model.rollout_buffer.get(model.batch_size)
    x, actions, y, valid, *_ = samples.observations
    # Bytes, for on inputs that are hardly apart the gradients differ by how those are rounded
    s_x = policy.features_extractor(x)
    with th.no_grad():
        s_y = policy.objective.target_encoder.encoder(y)
    one_hot = F.one_hot(actions.long().flatten(), 2).float()
    guess = policy.objective.predictor(s_x, one_hot)
    assert (valid == 1).all()
    jepa = ((guess - s_y) ** 2).sum(1).mean()
    centered = s_x - s_x.mean(0)
    variances = (centered**2).mean(0)
    deviation = (1 - (variances + 1e-4).sqrt()).clamp(min=0).mean()
    covariances = centered.T @ centered / (len(s_x) - 1)
    covariance = (covariances - covariances.diag().diag()).square().sum() / s_x.shape[1]
    terms = dict(
        prediction_coef=jepa,
        variance_coef=-variances.mean().clamp(max=1.0),
        deviation_coef=deviation,
        covariance_coef=covariance,
    )

    state = s_x if rl_gradient else s_x.detach()
    latent_pi, latent_vf = policy.mlp_extractor(state)
    distribution = th.distributions.Categorical(logits=policy.action_net(latent_pi))
    log_prob = distribution.log_prob(actions.long().flatten())
    advantages = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
    ratio = th.exp(log_prob - samples.old_log_prob)
    surrogate = th.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
    value_loss = ((samples.returns - policy.value_net(latent_vf).flatten()) ** 2).mean()
    rl = -surrogate - model.ent_coef * distribution.entropy().mean() + model.vf_coef * value_loss
    return rl + sum(coefficients[name] * term for name, term in terms.items())


@pytest.mark.parametrize("rl_gradient", [True, False])
@pytest.mark.parametrize(
    "coefficients", [(1.0, 0.0, 0.0, 0.0), (0.7, 2.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.5), (0.0,) * 4]
)
def test_joint_gradients_equal_the_loss_written_out_by_hand(pixel_cartpole, rl_gradient, coefficients):
    names = ("prediction_coef", "variance_coef", "deviation_coef", "covariance_coef")
    objective_kwargs = dict(zip(names, coefficients, strict=True))
    model = PPO(
        JepaPolicy,
        pixel_cartpole,
        ent_coef=0.01,
        policy_kwargs=dict(SMALL_POLICY, objective_kwargs=objective_kwargs, rl_gradient=rl_gradient),
        **ONE_BATCH,
    )
    # Something to tell the context and target encoder apart by
    model.learn(32)
    collect_rollout(model)
    policy = copy.deepcopy(model.policy)
    policy.set_training_mode(True)

    np.random.seed(1)
    explicit_loss(model, policy, objective_kwargs, rl_gradient).backward()
    np.random.seed(1)
    found = gradients_of_training(model)

    by_hand = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    trains_encoder = rl_gradient or any(coefficients)
    assert any(name.startswith("features_extractor") for name in found) == trains_encoder
    assert found["action_net.weight"].abs().sum() > 0
    for name in by_hand.keys() | found.keys():
        # A term weighted with 0 leaves a gradient of 0 by hand and none in ours
        one, other = (g.get(name, th.zeros(())) for g in (by_hand, found))
        # Sums are rounded by their largest terms
        assert th.allclose(one, other, rtol=1e-3, atol=1e-6 * max(1.0, float(one.abs().max()))), name


def test_without_rl_gradient_the_heads_still_learn(pixel_cartpole):
    # The second known mistake of the public re-implementation: it detached the actor's and critic's losses
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=dict(SMALL_POLICY, rl_gradient=False), **ONE_BATCH)
    collect_rollout(model)
    found = gradients_of_training(model)
    for head in ("action_net.weight", "value_net.weight", "mlp_extractor.policy_net.0.weight"):
        assert found[head].abs().sum() > 0, head


def test_heads_do_not_reach_the_encoder_without_rl_gradient(pixel_cartpole):
    kwargs = dict(SMALL_POLICY, rl_gradient=False, objective_kwargs=NO_OBJECTIVE)
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **ONE_BATCH)
    collect_rollout(model)
    found = gradients_of_training(model)
    assert not any(name.startswith("features_extractor") for name in found)


def test_target_follows_each_optimiser_step_by_the_momentum_formula(pixel_cartpole):
    kwargs = dict(SMALL_POLICY, objective_kwargs=dict(momentum=0.9))
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO)
    policy = model.policy
    target = policy.objective.target_encoder.encoder
    for ours, theirs in zip(target.parameters(), policy.features_extractor.parameters(), strict=True):
        assert th.equal(ours, theirs)
    expected = [p.clone() for p in target.parameters()]
    n_steps = []

    def follow(*_):
        n_steps.append(1)
        for old, context in zip(expected, policy.features_extractor.parameters(), strict=True):
            old.mul_(0.9).add_(context.detach(), alpha=0.1)

    policy.optimizer.register_step_post_hook(follow)
    model.learn(32)
    assert len(n_steps) == 4
    for ours, by_hand, context in zip(
        target.parameters(), expected, policy.features_extractor.parameters(), strict=True
    ):
        assert th.allclose(ours, by_hand, atol=1e-6)
        assert not th.equal(ours, context)
        assert ours.grad is None


@pytest.mark.parametrize("algorithm", [stable_baselines3.PPO, stable_baselines3.A2C])
def test_stock_algorithms_without_the_buffer_are_refused_before_a_parameter_changes(algorithm, pixel_cartpole):
    model = algorithm(JepaPolicy, pixel_cartpole, n_steps=8, policy_kwargs=dict(SMALL_POLICY))
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(ValueError, match=r"rollout_buffer_class=sb3_jepa\.JepaRolloutBuffer"):
        model.learn(16)
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())


def test_what_can_never_have_transitions_is_refused_at_construction(pixel_cartpole):
    with pytest.raises(ValueError, match=r"off-policy algorithm cannot train a JepaPolicy.*rollout_buffer_class"):
        stable_baselines3.DQN(JepaPolicy, pixel_cartpole, buffer_size=10, policy_kwargs=dict(SMALL_POLICY))
    for algorithm in (stable_baselines3.SAC, stable_baselines3.TD3, stable_baselines3.DDPG):
        with pytest.raises(ValueError, match="off-policy algorithm cannot train a JepaPolicy"):
            algorithm(JepaPolicy, "Pendulum-v1", buffer_size=10, policy_kwargs=dict(SMALL_POLICY))
    with pytest.raises(ValueError, match=r"`rollout_buffer_class` must be.*NextObservations"):
        PPO(
            JepaPolicy,
            pixel_cartpole,
            rollout_buffer_class=stable_baselines3.common.buffers.RolloutBuffer,
            policy_kwargs=SMALL_POLICY,
        )


def test_training_without_transitions_is_refused_by_the_optimiser(pixel_cartpole):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.rollout_buffer = stable_baselines3.common.buffers.RolloutBuffer(
        16, model.observation_space, model.action_space, device="cpu", n_envs=2
    )
    with pytest.raises(ValueError, match="without its JEPA loss"):
        model.learn(32)
    # ... at any step, not at the first one alone
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(64)
    model.policy.optimizer.zero_grad()
    model.policy.predict_values(th.zeros(2, 3, 32, 48)).sum().backward()
    with pytest.raises(ValueError, match="without its JEPA loss"):
        model.policy.optimizer.step()


def test_invalid_pairs_do_not_reach_the_prediction_loss(pixel_cartpole):
    policy = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).policy
    x, y = th.randint(256, (2, 4, 3, 32, 48), dtype=th.uint8)
    policy.extract_features(Transitions(x, th.zeros(4, 1), y, th.tensor([1.0, 1.0, 0.0, 0.0])))
    masked = policy.gauges["shared"].means()["prediction_loss"]
    policy.gauges["shared"].reset()
    policy.extract_features(Transitions(x[:2], th.zeros(2, 1), y[:2], th.ones(2)))
    assert masked == pytest.approx(policy.gauges["shared"].means()["prediction_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(target_kl=1e-6),
        dict(clip_range_vf=0.2),
        dict(max_grad_norm=1e9, normalize_advantage=False),
        dict(n_steps=7, batch_size=10, n_epochs=3),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_options_of_ppo(pixel_cartpole, kwargs):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, **kwargs}).learn(96)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("squash_output", [False, True])
def test_state_dependent_exploration(squash_output):
    env = make_counting_env(action_space=spaces.Box(-2.0, 2.0, (2,)))
    kwargs = dict(SMALL_POLICY, squash_output=squash_output)
    model = PPO(JepaPolicy, env, use_sde=True, sde_sample_freq=4, policy_kwargs=kwargs, **SMALL_PPO).learn(96)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_stock_algorithms_train_jointly_with_the_buffer(pixel_cartpole, algorithm):
    model = getattr(stable_baselines3, algorithm)(
        JepaPolicy,
        pixel_cartpole,
        n_steps=16,
        rollout_buffer_class=JepaRolloutBuffer,
        # A2C writes its own optimiser into them
        policy_kwargs=dict(SMALL_POLICY),
    )
    predictor = copy.deepcopy(model.policy.objective.predictor)
    model.learn(32, callback=JepaCallback())
    assert not th.equal(predictor.output.weight, model.policy.objective.predictor.output.weight)


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3),
        spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(4),
    ],
    ids=lambda space: type(space).__name__,
)
def test_action_spaces(action_space, tmp_path):
    env = make_counting_env(action_space=action_space)
    model = PPO(JepaPolicy, env, policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(96)
    model.save(tmp_path / "model")
    observations = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    loaded_actions, _ = PPO.load(tmp_path / "model").predict(observations, deterministic=True)
    assert np.array_equal(actions, loaded_actions)


def test_an_extractor_without_parameters_is_refused():
    policy_kwargs = dict(features_extractor_class=FlattenExtractor)
    with pytest.raises(ValueError, match=r"features_extractor_class.*FlattenExtractor, which has no parameters"):
        PPO(JepaPolicy, "CartPole-v1", policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        (dict(objective_kwargs=dict(momentum=1.1)), "momentum"),
        (dict(objective_kwargs=dict(prediction_coef=-1)), "prediction_coef"),
        (dict(objective_kwargs=dict(variance_coef=-1)), "variance_coef"),
        (dict(encoder_lr_factor=-1), "encoder_lr_factor"),
        (dict(objective_for="actor"), "objective_for.*share_features_extractor"),
        (dict(objective_for="both of them"), "objective_for.*actor.*critic.*both"),
        (dict(features_extractor_kwargs=dict(frames=4)), "frames"),
        (dict(features_extractor_kwargs=dict(patch_size=64)), "patch"),
    ],
)
def test_bad_arguments_fail_at_construction(pixel_cartpole, policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        PPO(JepaPolicy, pixel_cartpole, policy_kwargs=policy_kwargs)


class FloatImages(gym.ObservationWrapper):
    """Images in [0, 1], with NaN from the given step on."""

    def __init__(self, env: gym.Env, nan_from: int):
        super().__init__(env)
        self.observation_space = spaces.Box(0.0, 1.0, env.observation_space.shape, np.float32)
        self.n_observations, self.nan_from = 0, nan_from

    def observation(self, observation):
        self.n_observations += 1
        return observation.astype(np.float32) / (255.0 if self.n_observations <= self.nan_from else np.nan)


def make_float_env(nan_from: int = 10**9):
    env = make_counting_env().envs[0]
    return FloatImages(env, nan_from)


def test_normalized_images(tmp_path):
    # Without a word they are a grid, whose channels have nothing to do with each other
    grid = PPO(JepaPolicy, make_float_env(), policy_kwargs=SMALL_POLICY)
    assert isinstance(grid.policy.features_extractor.encoder.tokenizer, StandardizedGridTokenizer)
    model = PPO(JepaPolicy, make_float_env(), policy_kwargs=dict(SMALL_POLICY, normalize_images=False), **SMALL_PPO)
    assert isinstance(model.policy.features_extractor.encoder.tokenizer, StandardizedPatchTokenizer)
    model.learn(64)
    model.policy.save(tmp_path / "policy.pth")
    JepaPolicy.load(tmp_path / "policy.pth")


def test_nan_in_observations():
    policy_kwargs = dict(SMALL_POLICY, normalize_images=False)
    env = make_float_env(nan_from=0)
    with pytest.raises(ValueError, match="NaN"):
        PPO(JepaPolicy, env, policy_kwargs=policy_kwargs, **SMALL_PPO).learn(64)
    # ... before the first step
    assert env.n_observations == 1
    with pytest.raises(ValueError, match="NaN"):
        PPO(JepaPolicy, make_float_env(nan_from=50), policy_kwargs=policy_kwargs, **SMALL_PPO).learn(96)


def test_nan_in_the_last_observation_of_an_episode():
    class NanAtTheEnd(FloatImages):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            # The policy never acts on this one, and PPO never learns from it
            return observation * (np.nan if terminated else 1), reward, terminated, truncated, info

    env = NanAtTheEnd(make_counting_env().envs[0], nan_from=10**9)
    model = PPO(JepaPolicy, env, policy_kwargs=dict(SMALL_POLICY, normalize_images=False), **SMALL_PPO)
    with pytest.raises(ValueError, match="last observations of episodes contain NaN"):
        model.learn(64)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_any_features_extractor_can_be_the_context_encoder():
    env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=(48, 48))
    kwargs = dict(features_extractor_class=NatureCNN, features_extractor_kwargs=dict(features_dim=32), net_arch=[16])
    model = PPO(JepaPolicy, env, policy_kwargs=kwargs, **SMALL_PPO)
    target = copy.deepcopy(model.policy.objective.target_encoder)
    model.learn(32)
    assert model.num_timesteps == 32
    assert not th.equal(target.encoder.cnn[0].weight, model.policy.objective.target_encoder.encoder.cnn[0].weight)


def test_an_embedding_is_computed_once_per_minibatch(pixel_cartpole):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **ONE_BATCH)
    collect_rollout(model)
    n_forwards = []
    model.policy.features_extractor.register_forward_hook(lambda *_: n_forwards.append("context"))
    model.policy.objective.target_encoder.register_forward_hook(lambda *_: n_forwards.append("target"))
    model.train()
    assert sorted(n_forwards) == ["context", "target"]


@pytest.mark.parametrize("objective_for", ["actor", "critic", "both"])
def test_encoders_of_their_own(pixel_cartpole, objective_for, tmp_path):
    policy_kwargs = dict(
        SMALL_POLICY, share_features_extractor=False, objective_for=objective_for, objective_kwargs=dict(momentum=0.5)
    )
    # No gradient but the objective's
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=dict(policy_kwargs, rl_gradient=False), **SMALL_PPO)
    policy = model.policy
    before = {name: copy.deepcopy(encoder.state_dict()) for name, encoder in policy.encoders.items()}
    model.learn(96)
    learners = ["actor", "critic"] if objective_for == "both" else [objective_for]
    assert list(policy.objectives) == learners
    for name, encoder in policy.encoders.items():
        moved = any(not th.equal(before[name][key], p) for key, p in encoder.named_parameters())
        assert moved == (name in learners)
        assert encoder.n_inputs_to_measure == 0

    # Stable-Baselines3 forgets that the encoders are two when a policy is saved by itself
    policy.save(tmp_path / "policy")
    loaded = JepaPolicy.load(tmp_path / "policy")
    observations = obs_as_tensor(pixel_cartpole.reset(), "cpu")
    assert th.equal(policy.predict_values(observations), loaded.predict_values(observations))
    assert th.equal(policy.get_distribution(observations).mode(), loaded.get_distribution(observations).mode())


def test_training_mode_reaches_every_part(pixel_cartpole):
    policy = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).policy
    for mode in (False, False, True, True, False):
        policy.set_training_mode(mode)
        for name, module in policy.named_modules():
            # The target encoder stays as it is
            assert module.training == (mode and "target_encoder" not in name), name
