"""
Point mass, cheetah and walker of dm_control as Gymnasium environments, each with the reward functions of several tasks.

    pip install -e ".[zero-shot]"

The maze of the point mass is like that of *ExoRL* (Yarats et al. 2022, arXiv 2201.13425), and so are the rewards: all
can be computed from the state of the physics, after the fact.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from absl import logging
from dm_control import suite
from dm_control.rl import control
from dm_control.suite import point_mass
from dm_control.utils import rewards
from gymnasium import spaces

# Each cheetah that is made warns of an attribute that dm_control's own file has
logging.set_verbosity("error")

# Steps of the physics in an episode, and for one action: dm_control's own have 1
EPISODE_STEPS, ACTION_REPEAT = 1_000, 5
# Centre and half sides of the walls of the maze: a cross that one can go around, and that is left open in the middle of
# two of its arms
WALLS = {
    "upper": ((0.0, 0.11), (0.01, 0.09)),
    "lower": ((0.0, -0.11), (0.01, 0.09)),
    "left": ((-0.11, 0.0), (0.09, 0.01)),
    "right": ((0.11, 0.0), (0.09, 0.01)),
    "middle": ((0.0, 0.0), (0.02, 0.02)),
}
GOALS = {
    "top_left": (-0.15, 0.15),
    "top_right": (0.15, 0.15),
    "bottom_left": (-0.15, -0.15),
    "bottom_right": (0.15, -0.15),
}
TARGET_RADIUS = 0.015
Reward = Callable[[Any], float]


class MazeTask(point_mass.PointMass):
    """
    A point mass that starts anywhere in the maze, or in its top left corner as in ExoRL.

    :param start: ``"anywhere"`` or ``"top_left"``
    :param random: Seed
    """

    def __init__(self, start: str = "anywhere", random: int | None = None):
        super().__init__(randomize_gains=False, random=random)
        self._start = start

    def initialize_episode(self, physics: Any) -> None:
        """Put the mass where no wall is."""
        while True:
            x, y = self.random.uniform(-0.29, 0.29, 2)
            if self._start == "top_left":
                x, y = self.random.uniform(-0.29, -0.15), self.random.uniform(0.15, 0.29)
            if not any(
                abs(x - at[0]) < side[0] + 0.01 and abs(y - at[1]) < side[1] + 0.01 for at, side in WALLS.values()
            ):
                break
        physics.data.qpos[:2], physics.data.qvel[:2] = (x, y), 0.0


def make_maze(start: str, random: int | None) -> control.Environment:
    """
    :param start: As of :class:`MazeTask`
    :param random: Seed
    :return: dm_control's point mass between walls
    """
    xml, assets = point_mass.get_model_and_assets()
    xml = xml if isinstance(xml, str) else xml.decode()
    boxes = "".join(
        f'<geom name="{name}" type="box" pos="{at[0]} {at[1]} .02" size="{side[0]} {side[1]} .02" '
        'material="decoration"/>'
        for name, (at, side) in WALLS.items()
    )
    # Contacts with walls, and none with the floor
    xml = xml.replace('<flag contact="disable"/>', "").replace('<geom name="ground"', '<geom name="ground" contype="0"')
    xml = xml.replace("</worldbody>", f"{boxes}</worldbody>")
    physics = point_mass.Physics.from_xml_string(xml, assets)
    task = MazeTask(start, random)
    return control.Environment(physics, task, time_limit=float("inf"))


def _reach(goal: tuple[float, float]) -> Reward:
    def reward(physics: Any) -> float:
        distance = np.hypot(*(physics.position() - goal))
        near = rewards.tolerance(distance, bounds=(0, TARGET_RADIUS), margin=TARGET_RADIUS)
        effort = rewards.tolerance(physics.control(), margin=1, value_at_margin=0, sigmoid="quadratic").mean()
        return near * (4 + effort) / 5

    return reward


def _run(speed: float) -> Reward:
    def reward(physics: Any) -> float:
        forward = np.sign(speed) * physics.speed()
        return rewards.tolerance(forward, (abs(speed), np.inf), abs(speed), value_at_margin=0, sigmoid="linear")

    return reward


def _standing(physics: Any) -> float:
    height = rewards.tolerance(physics.torso_height(), (1.2, np.inf), margin=0.6)
    return (3 * height + (1 + physics.torso_upright()) / 2) / 4


def _walk(speed: float) -> Reward:
    def reward(physics: Any) -> float:
        moving = rewards.tolerance(
            physics.horizontal_velocity(), (speed, np.inf), speed / 2, value_at_margin=0.5, sigmoid="linear"
        )
        return _standing(physics) * (5 * moving + 1) / 6

    return reward


def _spin(physics: Any) -> float:
    momentum = physics.named.data.subtree_angmom["torso"][1]
    return rewards.tolerance(momentum, (5.0, np.inf), 2.5, value_at_margin=0, sigmoid="linear")


TASKS: dict[str, dict[str, Reward]] = {
    "point_mass": {f"reach_{name}": _reach(goal) for name, goal in GOALS.items()},
    "cheetah": {"run": _run(10.0), "walk": _run(2.0), "backward": _run(-10.0)},
    "walker": {"stand": _standing, "walk": _walk(1.0), "run": _walk(8.0), "spin": _spin},
}


class ControlEnv(gym.Env):
    """
    A domain of dm_control with the reward of one of its tasks.

    :param domain: ``"point_mass"``, ``"cheetah"`` or ``"walker"``
    :param task: Name of the task; None for rewards of 0
    :param start: Where the point mass starts: ``"anywhere"`` or ``"top_left"``
    :param seed: Seed of the starts
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, domain: str, task: str | None = None, start: str = "anywhere", seed: int | None = None):
        self.domain, self.render_mode = domain, "rgb_array"
        self._make(start, seed)
        self._reward = TASKS[domain][task] if task else None
        action = self._env.action_spec()
        self.action_space = spaces.Box(-1.0, 1.0, action.shape, np.float32)
        n = sum(int(np.prod(one.shape)) for one in self._env.observation_spec().values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (n,), np.float32)
        self._n_steps = 0

    def _make(self, start: str, seed: int | None) -> None:
        if self.domain == "point_mass":
            self._env = make_maze(start, seed)
        else:
            task = dict(cheetah="run", walker="walk")[self.domain]
            self._env = suite.load(self.domain, task, task_kwargs=dict(random=seed, time_limit=float("inf")))

    @property
    def physics(self) -> Any:
        """Of dm_control."""
        return self._env.physics

    def _observation(self, step: Any) -> np.ndarray:
        return np.concatenate([np.ravel(one) for one in step.observation.values()]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        self._n_steps = 0
        return self._observation(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act for 5 steps of the physics, and get the reward of the last one. Episodes end after 200 actions."""
        for _ in range(ACTION_REPEAT):
            step = self._env.step(np.asarray(action, dtype=np.float64))
        self._n_steps += ACTION_REPEAT
        reward = 0.0 if self._reward is None else float(self._reward(self.physics))
        return self._observation(step), reward, False, self._n_steps >= EPISODE_STEPS, {}

    def render(self) -> np.ndarray:
        """A picture, 240 pixels wide."""
        return self.physics.render(240, 240, camera_id=0)


def rewards_of(domain: str, states: np.ndarray, actions: np.ndarray) -> dict[str, np.ndarray]:
    """
    Rewards of all tasks, computed from the recorded states of the physics, as ExoRL does.

    :param domain: Whose tasks
    :param states: What ``physics.get_state()`` gave after each action, ``(steps, state dim)``
    :param actions: ``(steps, action dim)``
    :return: Of each task, ``(steps,)``
    """
    physics = ControlEnv(domain).physics
    found: dict[str, list[float]] = {name: [] for name in TASKS[domain]}
    with physics.suppress_physics_errors():
        for state, action in zip(states, actions, strict=True):
            with physics.reset_context():
                physics.set_state(state)
                physics.set_control(action)
            for name, reward in TASKS[domain].items():
                found[name].append(float(reward(physics)))
    return {name: np.array(values, dtype=np.float32) for name, values in found.items()}
