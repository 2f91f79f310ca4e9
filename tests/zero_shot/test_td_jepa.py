"""The algorithm: what each loss trains, and what it predicts."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import TDJEPA, Recordings
from sb3_jepa.zero_shot import ForwardBackward, RandomTaskFeatures
from sb3_jepa.zero_shot.batches import Batch
from tests.conftest import FakeEnv

SMALL = dict(net_arch=[16, 16], state_dim=12, task_dim=6, encoder_dim=16)
PEERS = [TDJEPA, ForwardBackward, RandomTaskFeatures]


def make_model(algorithm=TDJEPA, env="Pendulum-v1", policy_kwargs=None, **kwargs):
    kwargs = dict(dict(batch_size=16, learning_starts=20, seed=0, device="cpu"), **kwargs)
    return algorithm("MlpPolicy", env, policy_kwargs={**SMALL, **(policy_kwargs or {})}, **kwargs)


def draw_batch(model: TDJEPA, n: int = 16) -> Batch:
    policy = model.policy
    is_discrete = isinstance(model.action_space, spaces.Discrete)
    return Batch(
        th.randn(n, *model.observation_space.shape),
        th.randint(model.action_space.n, (n,)) if is_discrete else th.rand(n, policy.action_dim) * 2 - 1,
        th.randn(n, *model.observation_space.shape),
        th.where(th.arange(n)[:, None] == 0, 0.0, 0.9),
        th.randn(n, policy.task_dim),
    )


def changed(policy) -> set[str]:
    """Which networks have a gradient."""
    found = set()
    for kind in ("encoders", "predictors", "target_encoders", "target_predictors"):
        for name, network in getattr(policy, kind).items():
            if any(p.grad is not None and p.grad.any() for p in network.parameters()):
                found.add(f"{kind}.{name}")
    for name in ("actor", "behavior"):
        network = getattr(policy, name)
        if network is not None and any(p.grad is not None and p.grad.any() for p in network.parameters()):
            found.add(name)
    return found


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_the_loss_is_that_of_the_paper(env):
    coefficients = dict(state_orthonormality_coef=0.1, task_orthonormality_coef=0.2)
    model = make_model(env=env, policy_kwargs=dict(exploration_noise=0.0), **coefficients)
    policy, batch = model.policy, draw_batch(model)
    # Targets that differ from what they follow
    for target in (*policy.target_encoders.values(), *policy.target_predictors.values()):
        for parameter in target.parameters():
            parameter.data.add_(0.05 * th.randn_like(parameter))
    loss, *_ = model.representation_loss(batch)

    phi, psi = policy.encoders["state"](batch.inputs), policy.encoders["task"](batch.inputs)
    with th.no_grad():
        next_phi, next_psi = (policy.target_encoders[name](batch.next_inputs) for name in ("state", "task"))
        of_phi, of_psi = (policy.target_predictors[name].encoder for name in ("state", "task"))
        if policy.actor is None:
            values = [(of_phi(next_phi, th.full((16,), a), batch.tasks).mean(0) * batch.tasks).sum(1) for a in range(2)]
            action = th.stack(values, dim=1).argmax(dim=1)
        else:
            action = policy.actor(next_phi, batch.tasks)
        y1 = next_psi + batch.discounts * of_phi(next_phi, action, batch.tasks).mean(0)
        y2 = next_phi + batch.discounts * of_psi(next_psi, action, batch.tasks).mean(0)
    t1, t2 = (policy.predictors[name](one, batch.actions, batch.tasks) for name, one in (("state", phi), ("task", psi)))

    def regularization(e):
        products = e @ e.T
        off_diagonal = products.square().sum() - products.diagonal().square().sum()
        return off_diagonal / (2 * 16 * 15) - products.diagonal().mean()

    expected = 0.5 * (t1 - y1).square().sum(-1).mean() + 0.5 * (t2 - y2).square().sum(-1).mean()
    expected = expected + 0.1 * regularization(phi) + 0.2 * regularization(psi)
    learners = [p for network in policy.learners for p in network.parameters()]
    own, by_hand = th.autograd.grad(loss, learners), th.autograd.grad(expected, learners)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(own, by_hand, strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_task_embeddings_learn_through_the_second_loss_alone():
    model = make_model(task_orthonormality_coef=0.0)
    _, losses, *_ = model.representation_loss(draw_batch(model))
    policy, batch = model.policy, draw_batch(model)
    state = policy.state_encoder(batch.inputs)
    next_state, next_task = (policy.target_encoders[name](batch.next_inputs) for name in ("state", "task"))
    target = model._target("state", next_state, next_task, batch, batch.actions)
    model._losses_of("state", state, target, batch)["state_prediction_loss"].backward()
    assert changed(policy) == {"encoders.state", "predictors.state"}
    assert {"state_prediction_loss", "task_prediction_loss"} <= losses.keys()


@pytest.mark.parametrize("behavior_coef", [0.0, 1.0])
def test_the_actors_loss_trains_the_actor_alone(behavior_coef):
    model = make_model(behavior_coef=behavior_coef)
    policy, batch = model.policy, draw_batch(model)
    before = copy.deepcopy(policy.state_dict())
    model._update_actor(batch, policy.state_encoder(batch.inputs).detach())
    moved = {name.split(".")[0] for name, value in policy.state_dict().items() if not th.equal(value, before[name])}
    assert moved == ({"actor", "behavior"} if behavior_coef else {"actor"})


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_everything_learns_and_targets_follow(env, symmetric):
    model = make_model(env=env, policy_kwargs=dict(symmetric=symmetric))
    first = copy.deepcopy(model.policy.state_dict())
    model.learn(60)
    for name, value in model.policy.state_dict().items():
        if value.is_floating_point() and "standardization" not in name:
            assert not th.equal(value, first[name]), name
    policy = model.policy
    for kind in ("encoders", "predictors"):
        for name, target in getattr(policy, f"target_{kind}").items():
            own = dict(getattr(policy, kind)[name].named_parameters())
            for key, value in target.encoder.named_parameters():
                start = first[f"{kind}.{name}.{key}"]
                assert (value - start).norm() < (own[key] - start).norm(), key


@pytest.mark.parametrize("algorithm", PEERS)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_peers_learn(algorithm, env):
    model = make_model(algorithm, env)
    task_encoder = copy.deepcopy(model.policy.task_encoder.layers.state_dict())
    model.learn(60)
    same = all(th.equal(one, task_encoder[name]) for name, one in model.policy.task_encoder.layers.state_dict().items())
    assert same == (algorithm is RandomTaskFeatures)
    assert model.infer(goal=np.zeros(model.observation_space.shape, np.float32)).vector.shape == (6,)


def chain(n: int = 400) -> tuple[Recordings, np.ndarray]:
    """Five cells in a row, whose codes are one-hot; left and right, evenly drawn."""
    rng = np.random.default_rng(0)
    codes = np.eye(5, dtype=np.float32)
    cells, actions = rng.integers(5, size=n), rng.integers(2, size=n)
    led_to = np.clip(cells + 2 * actions - 1, 0, 4)
    rows = codes[np.stack([cells, led_to], axis=1).ravel()]
    space = spaces.Box(0, 1, (5,), np.float32)
    has_action = np.tile([True, False], n)
    recordings = Recordings(
        space, rows, np.repeat(np.arange(n), 2), spaces.Discrete(2), np.repeat(actions, 2), has_action=has_action
    )
    return recordings, codes


@pytest.mark.parametrize("seed", [0, 1])
def test_a_goal_in_a_row_of_cells_is_gone_to_from_both_sides(seed):
    recordings, codes = chain()
    env = make_vec_env(lambda: FakeEnv(recordings.observation_space, recordings.action_space))
    model = make_model(
        env=env, batch_size=128, gamma=0.8, momentum=0.95, learning_rate=3e-3, seed=seed, policy_kwargs=dict(task_dim=8)
    )
    model.learn_offline(recordings, 400)
    right_ways = 0
    for goal in range(5):
        rewards = np.repeat((np.arange(5) == goal).astype(np.float32), 10)
        task = model.infer(rewards=rewards, observations=np.repeat(codes, 10, axis=0))
        actions, _ = model.policy_for(task).predict(codes, deterministic=True)
        # In the goal's cell either way is as good, but at the ends
        right_ways += sum(actions[cell] == (goal > cell) for cell in range(5) if cell != goal)
    assert right_ways >= 18
