"""A robot with a laser scanner that has to reach a goal between obstacles, half of which move."""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces

N_OBSTACLES, N_BEAMS = 10, 180
ARENA, RADIUS, GOAL_RADIUS = 6.0, 0.25, 0.4
LONGEST_BEAM = 8.0
TIME_STEP, SPEED, MAX_STEPS = 0.1, 1.5, 150
ANGLES = (-np.pi, np.pi * (1.0 - 2.0 / N_BEAMS))


def _make_model(radii: np.ndarray) -> mujoco.MjModel:
    bodies = "".join(
        f'<body mocap="true" name="obstacle{index}"><geom type="cylinder" size="{radius:.3f} 1"/></body>'
        for index, radius in enumerate(radii)
    )
    walls = "".join(
        f'<geom type="box" pos="{x} {y} 0" size="{0.1 if x else ARENA} {0.1 if y else ARENA} 1"/>'
        for x, y in ((ARENA, 0), (-ARENA, 0), (0, ARENA), (0, -ARENA))
    )
    return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{walls}{bodies}</worldbody></mujoco>")


class NavigationEnv(gym.Env):
    """
    Observations are the last two scans, and where the goal is: its direction and distance. An action is a velocity.
    The reward is how much nearer the goal has come, with 5 for reaching it and -5 for a collision, which ends an
    episode.

    :param flat: Whether the scans are one vector, the nearer the beam the larger, as ``MlpPolicy`` needs them
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(self, flat: bool = False):
        self.flat = flat
        self.radii = np.linspace(0.25, 0.7, N_OBSTACLES)
        self.model = _make_model(self.radii)
        self.data = mujoco.MjData(self.model)
        angles = np.linspace(*ANGLES, N_BEAMS)
        self.directions = np.stack([np.cos(angles), np.sin(angles), np.zeros(N_BEAMS)], axis=1).flatten()
        scans = spaces.Box(0.0, LONGEST_BEAM, (2, N_BEAMS), np.float32)
        if flat:
            scans = spaces.Box(0.0, 1.0, (2 * N_BEAMS,), np.float32)
        self.observation_space = spaces.Dict(lidar=scans, goal=spaces.Box(-1.0, 1.0, (3,), np.float32))
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        random = self.np_random
        limit = ARENA - 0.6
        self.position = random.uniform(-limit, limit, 2)
        self.goal = self.position
        while np.linalg.norm(self.goal - self.position) < 5.0:
            self.goal = random.uniform(-limit, limit, 2)
        self.obstacles = np.zeros((N_OBSTACLES, 2))
        for index, radius in enumerate(self.radii):
            while True:
                place = random.uniform(-limit, limit, 2)
                from_start = np.linalg.norm(place - self.position) > radius + 1.0
                if from_start and np.linalg.norm(place - self.goal) > radius + 0.8:
                    break
            self.obstacles[index] = place
        directions = random.uniform(-np.pi, np.pi, N_OBSTACLES)
        # Every second one stands still
        speeds = random.uniform(0.3, 1.0, N_OBSTACLES) * (np.arange(N_OBSTACLES) % 2)
        self.velocities = speeds[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1)
        self.n_steps = 0
        self.scans = [self._scan()] * 2
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        velocity = SPEED * np.clip(action, -1.0, 1.0) / np.sqrt(2.0)
        before = np.linalg.norm(self.goal - self.position)
        self.position = self.position + TIME_STEP * velocity
        self.obstacles = self.obstacles + TIME_STEP * self.velocities
        limit = ARENA - 0.1 - self.radii[:, None]
        self.velocities = np.where(np.abs(self.obstacles) > limit, -np.sign(self.obstacles) * np.abs(self.velocities),
                                   self.velocities)  # fmt: skip
        self.obstacles = self.obstacles.clip(-limit, limit)
        self.n_steps += 1
        distances = np.linalg.norm(self.obstacles - self.position, axis=1) - self.radii
        collided = distances.min() < RADIUS or np.abs(self.position).max() > ARENA - 0.1 - RADIUS
        after = np.linalg.norm(self.goal - self.position)
        reached = bool(after < GOAL_RADIUS and not collided)
        reward = float(before - after) + 5.0 * reached - 5.0 * bool(collided)
        self.scans = [self.scans[1], self._scan()]
        done = reached or bool(collided)
        return self._observation(), reward, done, self.n_steps >= MAX_STEPS, {"is_success": reached}

    def _scan(self) -> np.ndarray:
        self.data.mocap_pos[:, :2] = self.obstacles
        mujoco.mj_kinematics(self.model, self.data)
        hit, distances = np.zeros(N_BEAMS, np.int32), np.zeros(N_BEAMS)
        place = np.append(self.position, 0.0)
        mujoco.mj_multiRay(
            self.model,
            self.data,
            place,
            self.directions,
            None,
            1,
            -1,
            hit,
            distances,
            None,
            N_BEAMS,
            LONGEST_BEAM,
        )
        # A beam that hits nothing has no number there
        return np.where(hit >= 0, distances, LONGEST_BEAM).clip(0.0, LONGEST_BEAM).astype(np.float32)

    def _observation(self) -> dict[str, np.ndarray]:
        offset = self.goal - self.position
        distance = np.linalg.norm(offset)
        goal = np.array([*(offset / (distance + 1e-9)), min(1.0, distance / (2 * ARENA))], np.float32)
        scans = np.stack(self.scans)
        if self.flat:
            scans = 1.0 - scans.flatten() / LONGEST_BEAM
        return dict(lidar=scans, goal=goal)
