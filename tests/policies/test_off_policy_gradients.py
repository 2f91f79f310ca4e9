"""Off-policy policies that learn a JEPA: what their gradients are, and who computes what how often."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch.nn import functional as F

from sb3_jepa import DDPG, DQN, SAC, TD3, JepaExtractor, JepaPolicy
from sb3_jepa.algorithms.contrib import QRDQN, TQC
from sb3_jepa.extractors import MlpExtractor
from sb3_jepa.policies.off_policy import SACJepaPolicy
from tests.conftest import SMALL_EXTRACTOR, FakeEnv

NO_OBJECTIVE = dict(prediction_coef=0.0, deviation_coef=0.0, covariance_coef=0.0)
WITH_ACTOR = {"SAC": SAC, "TD3": TD3, "DDPG": DDPG, "TQC": TQC}
WITHOUT_ACTOR = {"DQN": DQN, "QRDQN": QRDQN}
ALGORITHMS = {**WITH_ACTOR, **WITHOUT_ACTOR}
IMAGE = spaces.Box(0, 255, (3, 16, 24), np.uint8)


def make_model(name: str, observation_space: spaces.Space = IMAGE, **policy_kwargs):
    """With some samples in its buffer, and an encoder that its target encoder is not equal to."""
    action_space = spaces.Discrete(3) if name in WITHOUT_ACTOR else spaces.Box(-2, 2, (2,))
    env = make_vec_env(lambda: FakeEnv(observation_space, action_space), n_envs=2, seed=0)
    if observation_space is IMAGE:
        policy_kwargs = dict(features_extractor_kwargs=SMALL_EXTRACTOR, **policy_kwargs)
    kwargs = dict(max_grad_norm=1e9) if name in WITHOUT_ACTOR else {}
    model = ALGORITHMS[name](
        "JepaPolicy",
        env,
        seed=0,
        device="cpu",
        batch_size=16,
        buffer_size=200,
        learning_starts=40,
        policy_kwargs=dict(policy_kwargs, net_arch=[16]),
        **kwargs,
    )
    return model.learn(60)


def gradients_of_one_step(model) -> dict[str, th.Tensor]:
    """The gradients that the critic's optimiser finds in one gradient step."""
    gradients: dict[str, th.Tensor] = {}
    hook = model.policy.joint_optimizer.register_step_pre_hook(
        lambda *_: gradients.update(
            {name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}
        )
    )
    model.train(1, 16)
    hook.remove()
    return gradients


def jepa_loss(policy, s_x: th.Tensor, samples, coefficients: dict[str, float]) -> th.Tensor:
    """From the equations, with nothing attached to anything."""
    with th.no_grad():
        s_y = policy.objective.target_encoder.encoder(samples.next_observations)
    actions = samples.actions
    if isinstance(policy.action_space, spaces.Discrete):
        actions = F.one_hot(actions.long().flatten(), 3).float()
    guess = policy.objective.predictor(s_x, actions)
    centered = s_x - s_x.mean(0)
    variances = (centered**2).mean(0)
    covariances = centered.T @ centered / (len(s_x) - 1)
    terms = dict(
        prediction_coef=((guess - s_y) ** 2).sum(1).mean(),
        variance_coef=-variances.mean().clamp(max=1.0),
        deviation_coef=(1 - (variances + 1e-4).sqrt()).clamp(min=0).mean(),
        covariance_coef=(covariances - covariances.diag().diag()).square().sum() / s_x.shape[1],
    )
    return sum(coefficients[name] * term for name, term in terms.items())


def critic_loss(model, policy, s_x: th.Tensor, samples) -> th.Tensor:
    """Of DQN, SAC and TD3, from their papers' equations, with each network's own parts."""
    x_state, rewards, not_done = s_x, samples.rewards, 1 - samples.dones
    y = samples.next_observations
    if isinstance(model, DQN):
        with th.no_grad():
            target = policy.q_net_target
            best = target.q_net(target.features_extractor(y)).max(dim=1, keepdim=True).values
            goal = rewards + not_done * model.gamma * best
        chosen = policy.q_net.q_net(x_state).gather(1, samples.actions.long())
        return F.smooth_l1_loss(chosen, goal)
    critic, target = policy.critic, policy.critic_target
    with th.no_grad():
        entropy = 0.0
        if isinstance(model, SAC):
            next_actions, log_prob = action_of_sac(policy.actor, critic.features_extractor(y))
            entropy = model.log_ent_coef.detach().exp() * log_prob[:, None]
        else:
            noise = samples.actions.clone().normal_(0, model.target_policy_noise)
            noise = noise.clamp(-model.target_noise_clip, model.target_noise_clip)
            next_actions = (policy.actor_target.mu(target.features_extractor(y)) + noise).clamp(-1, 1)
        both = th.cat((target.features_extractor(y), next_actions), dim=1)
        least = th.cat([q(both) for q in target.q_networks], dim=1).min(dim=1, keepdim=True).values
        goal = rewards + not_done * model.gamma * (least - entropy)
    both = th.cat((x_state, samples.actions), dim=1)
    loss = sum(F.mse_loss(q(both), goal) for q in critic.q_networks)
    return 0.5 * loss if isinstance(model, SAC) else loss


def action_of_sac(actor, embedding: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    latent = actor.latent_pi(embedding)
    return actor.action_dist.log_prob_from_params(actor.mu(latent), actor.log_std(latent).clamp(-20, 2))


@pytest.mark.parametrize("rl_gradient", [True, False])
@pytest.mark.parametrize("coefficients", [(1.0, 0.0, 0.0, 0.0), (0.7, 2.0, 1.0, 0.5), (0.0,) * 4])
@pytest.mark.parametrize("algorithm", ["DQN", "SAC", "TD3", "DDPG"])
def test_joint_off_policy_gradients_equal_the_loss_written_out_by_hand(algorithm, rl_gradient, coefficients):
    names = ("prediction_coef", "variance_coef", "deviation_coef", "covariance_coef")
    objective_kwargs = dict(zip(names, coefficients, strict=True))
    model = make_model(algorithm, objective_kwargs=objective_kwargs, rl_gradient=rl_gradient)
    policy = copy.deepcopy(model.policy)

    np.random.seed(1)
    th.manual_seed(1)
    samples = model.replay_buffer.sample(16)
    if algorithm == "SAC":
        # The actor's action, which its own loss is about
        action_of_sac(policy.actor, policy.critic.features_extractor(samples.observations).detach())
    s_x = policy.encoders[policy.learner](samples.observations)
    rl = critic_loss(model, policy, s_x if rl_gradient else s_x.detach(), samples)
    (rl + jepa_loss(policy, s_x, samples, objective_kwargs)).backward()

    np.random.seed(1)
    th.manual_seed(1)
    found = gradients_of_one_step(model)
    by_hand = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    encoder = f"{policy.learner}.features_extractor"
    trains_encoder = rl_gradient or any(coefficients)
    assert any(name.startswith(encoder) and g.any() for name, g in found.items()) == trains_encoder
    for name in by_hand.keys() | found.keys():
        # What the step of before has left for the actor is not the critic's
        if not name.startswith(("actor", "critic_target", "q_net_target")):
            one, other = (g.get(name, th.zeros(())) for g in (by_hand, found))
            assert th.allclose(one, other, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(("algorithm", "context", "critic_target"), [("DQN", 1, 1), ("SAC", 2, 1), ("TD3", 1, 1)])
def test_each_encoder_sees_each_observation_once(algorithm, context, critic_target):
    # SAC's actor chooses the next action from the context encoder's embedding; TD3's targets share one
    model = make_model(algorithm)
    counts = dict.fromkeys(("context", "critic's target", "objective's target"), 0)
    policy = model.policy
    encoders = (
        policy.encoders[policy.learner],
        getattr(policy, f"{policy.learner}_target").features_extractor,
        policy.objective.target_encoder.encoder,
    )
    for name, encoder in zip(counts, encoders, strict=True):
        encoder.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    model.train(4, 16)
    assert counts == {"context": 4 * context, "critic's target": 4 * critic_target, "objective's target": 4}


@pytest.mark.parametrize("algorithm", WITH_ACTOR)
def test_the_actor_reads_the_embedding_without_a_gradient_into_the_encoder(algorithm):
    model = make_model(algorithm, rl_gradient=False, objective_kwargs=NO_OBJECTIVE)
    before = copy.deepcopy(model.policy)
    model.train(4, 16)
    encoder = model.policy.critic.features_extractor
    for old, new in zip(before.critic.features_extractor.parameters(), encoder.parameters(), strict=True):
        assert th.equal(old, new)
    assert any(
        not th.equal(old, new) for old, new in zip(before.actor.parameters(), model.actor.parameters(), strict=True)
    )


@pytest.mark.parametrize("algorithm", WITH_ACTOR)
def test_actor_gradient_reaches_the_encoder(algorithm):
    model = make_model(algorithm, actor_gradient=True, rl_gradient=False, objective_kwargs=NO_OBJECTIVE)
    gradients: dict[str, th.Tensor] = {}
    encoder = model.policy.critic.features_extractor
    model.actor.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in encoder.named_parameters()})
    )
    before = copy.deepcopy(model.policy)
    model.train(2, 16)
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0
    moved = [not th.equal(a, b) for a, b in zip(before.critic.parameters(), model.critic.parameters(), strict=True)]
    assert any(moved)


def test_actor_gradient_is_that_of_the_actors_loss():
    # The critic has no part in it, for its step does not change it at a learning rate of 0
    model = make_model("TD3", actor_gradient=True)
    model.policy_delay, model.lr_schedule = 1, lambda _: 0.0
    policy = copy.deepcopy(model.policy)
    np.random.seed(1)
    samples = model.replay_buffer.sample(16)
    s_x = policy.critic.features_extractor(samples.observations)
    (-policy.critic.q_networks[0](th.cat((s_x.detach(), policy.actor.mu(s_x)), dim=1)).mean()).backward()
    gradients: dict[str, th.Tensor] = {}
    encoder = model.policy.critic.features_extractor
    model.actor.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in encoder.named_parameters()})
    )
    np.random.seed(1)
    model.train(1, 16)
    for name, parameter in policy.critic.features_extractor.named_parameters():
        assert th.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-7), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_encoder_learns_at_a_rate_of_its_own(algorithm):
    model = make_model(algorithm, encoder_lr_factor=0.25)
    others, encoder = model.policy.joint_optimizer.param_groups
    assert encoder["lr"] == pytest.approx(0.25 * others["lr"])


def test_vectors_get_a_small_encoder_and_images_a_transformer():
    vector = make_model("SAC", spaces.Box(-1, 1, (3,)))
    assert isinstance(vector.policy.critic.features_extractor, MlpExtractor)
    assert isinstance(make_model("SAC").policy.critic.features_extractor, JepaExtractor)


def test_a_policy_that_was_copied_or_pickled_still_learns(tmp_path):
    model = make_model("SAC")
    model.policy = copy.deepcopy(model.policy)
    model._create_aliases()
    before = copy.deepcopy(model.policy)
    model.train(2, 16)
    encoders = (before.critic.features_extractor, model.policy.critic.features_extractor)
    assert any(not th.equal(a, b) for a, b in zip(*(e.parameters() for e in encoders), strict=True))
    model.policy.save(tmp_path / "policy.pth")
    loaded = SACJepaPolicy.load(tmp_path / "policy.pth")
    observation = model.env.reset()
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(share_features_extractor=False), "share_features_extractor"),
        (dict(objective_kwargs=dict(target_refresh="rollout")), "target_refresh"),
        (dict(actor_gradient=1), "actor_gradient"),
        (dict(encoder_lr_factor=-1.0), "encoder_lr_factor"),
        (dict(objective_class=dict), "objective_class"),
        (dict(features_extractor_class=dict), "features_extractor_class"),
    ],
)
def test_what_has_no_meaning_off_policy_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        SAC("JepaPolicy", "Pendulum-v1", policy_kwargs=arguments)


def test_a_q_network_has_no_actor_whose_gradient_could_reach_the_encoder():
    with pytest.raises(ValueError, match="`actor_gradient` must be False"):
        DQN("JepaPolicy", "CartPole-v1", policy_kwargs=dict(actor_gradient=True))


def test_an_algorithm_that_announces_no_minibatches_is_refused():
    model = stable_baselines3.SAC(SACJepaPolicy, "Pendulum-v1", learning_starts=10, batch_size=4)
    with pytest.raises(ValueError, match="without its JEPA loss"):
        model.learn(20)


def test_the_policy_of_another_algorithm_is_refused():
    with pytest.raises(ValueError, match="SAC takes the policy SACJepaPolicy, got JepaPolicy"):
        SAC(JepaPolicy, "Pendulum-v1")


def test_nan_in_an_observation_is_told_before_it_is_acted_on():
    class Broken(gym.ObservationWrapper):
        def observation(self, observation):
            return np.full_like(observation, np.nan)

    model = SAC("JepaPolicy", Broken(gym.make("Pendulum-v1")), learning_starts=0, batch_size=4)
    with pytest.raises(ValueError, match="NaN"):
        model.learn(10)
