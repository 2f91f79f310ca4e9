"""LiDAR in Stable-Baselines3: point clouds, scans and grids, alone and beside other observations."""

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces

import sb3_jepa
from sb3_jepa import PPO, BevPrediction, JepaCallback, LidarExtractor, Recordings, load_encoder, pretrain, read_encoder

FREE = dict(low=-np.inf, high=np.inf, dtype=np.float32)
POINTS, SWEEPS = spaces.Box(shape=(30, 4), **FREE), spaces.Box(shape=(2, 30, 3), **FREE)
SCAN, SCANS = spaces.Box(0.0, 10.0, (36,), np.float32), spaces.Box(0.0, 10.0, (2, 36), np.float32)
GRID, GRIDS = spaces.Box(0, 1, (9, 10), np.float32), spaces.Box(0.0, 1.0, (2, 8, 10), np.float32)
VECTOR, IMAGE = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(0, 255, (3, 16, 16), np.uint8)
SMALL = dict(range=(-8, 8, -8, 8, -2, 2), cell=1.0, width=4, cell_dim=8, pooling=2)
ANGLES = (-np.pi, np.pi)
KINDS = {
    "points": (POINTS, {}),
    "sweeps": (SWEEPS, {}),
    "scan": (SCAN, dict(angles=ANGLES)),
    "scans": (SCANS, dict(angles=np.linspace(*ANGLES, 36).tolist())),
    "polar scan": (
        SCAN,
        dict(angles=ANGLES, polar=True, range=(0, 10, -np.pi, np.pi, -1, 1), cell=(1.0, np.pi / 8)),
    ),
    "grid": (GRID, {}),
    "grids": (GRIDS, {}),
    "points and vector": (spaces.Dict(lidar=POINTS, goal=VECTOR), {}),
    "points, vector and image": (spaces.Dict(lidar=POINTS, goal=VECTOR, image=IMAGE), dict(key="lidar")),
    "scan and vector": (spaces.Dict(scan=SCAN, goal=VECTOR), dict(key="scan", angles=ANGLES)),
}


class Sweeps(gym.Env):
    """Random observations of a space; points are not all there."""

    def __init__(self, space, action_space=None):
        self.observation_space = space
        self.action_space = action_space or spaces.Discrete(2)
        space.seed(0)

    def _observe(self):
        def fill(space):
            sample = space.sample()
            if isinstance(space, spaces.Box) and space.shape[-1] in (3, 4) and len(space.shape) > 1:
                sample = (3 * sample).astype(np.float32)
                sample[..., 20:, :] = np.nan
            return sample

        if isinstance(self.observation_space, spaces.Dict):
            return {key: fill(one) for key, one in self.observation_space.items()}
        return fill(self.observation_space)

    def reset(self, *, seed=None, options=None):
        self.n_steps = 0
        return self._observe(), {}

    def step(self, action):
        self.n_steps += 1
        return self._observe(), 1.0, False, self.n_steps == 10, {}


def policy_kwargs(kwargs, **more):
    return dict(
        features_extractor_class=LidarExtractor, features_extractor_kwargs={**SMALL, **kwargs}, net_arch=[8], **more
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_learns_with_ppo_and_is_saved(name, tmp_path):
    space, kwargs = KINDS[name]
    model = PPO(
        "JepaPolicy",
        Sweeps(space),
        n_steps=16,
        batch_size=8,
        n_epochs=1,
        policy_kwargs=policy_kwargs(kwargs),
        device="cpu",
    )
    model.learn(32)
    observation = Sweeps(space).reset()[0]
    action, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    assert (PPO.load(tmp_path / "model", device="cpu").predict(observation, deterministic=True)[0] == action).all()


@pytest.mark.parametrize("algorithm", [stable_baselines3.PPO, stable_baselines3.SAC, sb3_jepa.SAC])
def test_stock_and_off_policy_algorithms_take_it(algorithm):
    space, kwargs = KINDS["points and vector"]
    env = Sweeps(space, spaces.Box(-1.0, 1.0, (2,)))
    is_ppo = algorithm is stable_baselines3.PPO
    settings = dict(n_steps=16, batch_size=8, n_epochs=1) if is_ppo else dict(learning_starts=8, batch_size=4)
    if not is_ppo:
        settings["buffer_size"] = 100
    policy = "JepaPolicy" if algorithm is sb3_jepa.SAC else "MultiInputPolicy"
    more = dict(callback=JepaCallback()) if is_ppo else {}
    algorithm(policy, env, policy_kwargs=policy_kwargs(kwargs), device="cpu", **settings).learn(32, **more)


def test_it_learns_to_predict_hidden_cells_beside_ppo():
    space, kwargs = KINDS["points and vector"]
    model = PPO(
        "JepaPolicy",
        Sweeps(space),
        n_steps=16,
        batch_size=8,
        policy_kwargs=policy_kwargs(kwargs, objective_class=BevPrediction),
        device="cpu",
    )
    before = [parameter.clone() for parameter in model.policy.objective.predictor.parameters()]
    model.learn(16)
    after = model.policy.objective.predictor.parameters()
    assert any((one != other).any() for one, other in zip(before, after, strict=True))


def test_an_encoder_of_sweeps_alone_goes_on_beside_other_keys(tmp_path):
    rng = np.random.default_rng(0)
    rows = (3 * rng.normal(size=(60, 30, 4))).astype(np.float32)
    recordings = Recordings(POINTS, rows, np.arange(60) // 10)
    file = pretrain(
        recordings,
        tmp_path / "encoder",
        BevPrediction,
        features_extractor_kwargs=SMALL,
        n_updates=3,
        batch_size=8,
        eval_freq=2,
        device="cpu",
    )
    encoder = read_encoder(file)
    assert isinstance(encoder, LidarExtractor)
    space, kwargs = KINDS["points and vector"]
    model = PPO("JepaPolicy", Sweeps(space), n_steps=16, policy_kwargs=policy_kwargs(kwargs), device="cpu")
    load_encoder(model, file)
    loaded = model.policy.features_extractor
    observations = th.as_tensor(rows[:4])
    with th.no_grad():
        assert th.equal(
            loaded.cell_encoder(encoder.bev(observations)).cells, encoder.cell_encoder(encoder.bev(observations)).cells
        )


def test_what_is_seen_of_a_cloud_does_not_depend_on_the_order_of_its_points():
    extractor = LidarExtractor(POINTS, 16, **SMALL)
    points = 3 * th.randn(2, 30, 4)
    with th.no_grad():
        assert th.allclose(extractor(points), extractor(points[:, th.randperm(30)]), atol=1e-5)
        assert not th.allclose(extractor(points), extractor(points + th.tensor([4.0, 0, 0, 0])), atol=1e-2)


def test_a_scan_is_seen_as_the_points_that_it_hits():
    extractor = LidarExtractor(SCAN, 16, angles=ANGLES, **SMALL)
    distances = th.full((1, 36), 10.0)
    assert extractor.bev(distances).occupied.sum() == 0
    # Straight ahead, between the beams 17 and 18 of 36
    distances[0, 17:19] = 3.5
    assert extractor.bev(distances).occupied[0, 0].nonzero()[:, 0].tolist() == [11, 11]


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Box(shape=(30, 7), **FREE), dict(kind="points"), r"must have LiDAR of shape \(points, width\)"),
        (SCAN, {}, "`angles` must be given for laser scans"),
        (SCAN, dict(angles=(0.0, 1.0, 2.0)), r"`angles` must be \(first, last\) or one for each of the 36 beams"),
        (SCAN, dict(angles=(0.0, np.nan)), "`angles` must be"),
        (POINTS, dict(range=(0, 0, 0, 1, 0, 1)), "`range` must be"),
        (POINTS, dict(cell=100.0), "`cell` must be at most as large as the range"),
        (POINTS, dict(key="lidar"), "`key` must be None"),
        (spaces.Dict(a=POINTS, b=POINTS), {}, "`key` must name the LiDAR"),
        (spaces.Dict(a=POINTS, b=VECTOR), dict(key="c"), r"`key` must be one of \['a', 'b'\]"),
        (spaces.Discrete(3), {}, "must have LiDAR of shape"),
        (POINTS, dict(kind="cloud"), "`kind` must be"),
        (POINTS, dict(norm="layer"), "`norm` must be"),
        (POINTS, dict(width=5), "`width` must be a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_named(space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        LidarExtractor(space, **{**SMALL, **kwargs})
