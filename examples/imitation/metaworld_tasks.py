"""
Five tasks of Meta-World as one environment, seen through a camera, and demonstrations by its scripted experts.

    python3 -m venv .venv-metaworld && .venv-metaworld/bin/pip install -e ".[meta-world]"
    .venv-metaworld/bin/python examples/imitation/metaworld_tasks.py --folder build/demonstrations

Meta-World needs MuJoCo 3.3.0, and with that an environment of its own. Without a screen: MUJOCO_GL=egl.
"""

import argparse
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_jepa.data import Recordings, record_episodes, save_recordings

# In the order of their difficulty
TASKS = ("reach", "button-press", "drawer-open", "door-open", "peg-insert-side")
MAX_STEPS = 200
# Hand and gripper
N_STATE = 4
# Degrees. As it is shipped, 60, the goal of reach is a single pixel
FIELD_OF_VIEW = 35


class MetaWorldTasks(gym.Env):
    """
    A task of Meta-World in each episode: an image from the camera ``corner2``, zoomed in, the position of hand and
    gripper, and the number of the task. The reward is 1 for success, which ends the episode.

    :param tasks: Names without version
    :param seed: Of the starts and goals that there are, 50 for each task
    :param size: Side of the image in pixels
    :param render_every: Render each so many steps, and show the latest image between; a policy that executes as many
        actions at once does not see the difference
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(self, tasks: tuple[str, ...] = TASKS, seed: int = 0, size: int = 64, render_every: int = 1):
        import metaworld

        self.names, self.size, self.render_every = tasks, size, render_every
        self.envs, self.variations = [], []
        for name in tasks:
            benchmark = metaworld.MT1(f"{name}-v3", seed=seed)
            env = benchmark.train_classes[f"{name}-v3"]()
            _make_fast(env.model)
            env.model.cam("corner2").fovy[:] = FIELD_OF_VIEW
            self.envs.append(env)
            self.variations.append(benchmark.train_tasks)
        self.renderers: list[Any] = [None] * len(tasks)
        self.number = 0
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 255, (size, size, 3), np.uint8),
            state=spaces.Box(-np.inf, np.inf, (N_STATE,), np.float32),
            task=spaces.Discrete(len(tasks)),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        # All that the experts see
        self.full = np.zeros(39)
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        # The tasks take turns, and their variations too
        self.episode += 1
        self.number = self.episode % len(self.names)
        env = self.envs[self.number]
        variations = self.variations[self.number]
        env.set_task(variations[self.episode // len(self.names) % len(variations)])
        self.full, _ = env.reset()
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.full, _, _, _, info = self.envs[self.number].step(np.clip(action, -1.0, 1.0).astype(np.float64))
        self.n_steps += 1
        success = bool(info["success"])
        return self._observation(), float(success), success, self.n_steps >= MAX_STEPS, {"is_success": success}

    def _observation(self) -> dict[str, Any]:
        if self.n_steps % self.render_every == 0:
            self.image = self._render_image()
        return dict(image=self.image, state=self.full[:N_STATE].astype(np.float32), task=np.int64(self.number))

    def _render_image(self) -> np.ndarray:
        import mujoco

        env = self.envs[self.number]
        if self.renderers[self.number] is None:
            self.renderers[self.number] = mujoco.Renderer(env.model, self.size, self.size)
        renderer = self.renderers[self.number]
        renderer.update_scene(env.data, camera="corner2")
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        # The camera stands upside down
        return renderer.render()[::-1].copy()

    def close(self) -> None:
        for renderer in self.renderers:
            if renderer is not None:
                renderer.close()


def _make_fast(model: Any) -> None:
    """Shadows and multisampling take nearly all of the time."""
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.mat_reflectance[:] = 0
    model.light_castshadow[:] = 0


class Expert:
    """
    Meta-World's scripted policies, with noise.

    :param env: Of :class:`MetaWorldTasks`, in which it acts
    :param noise: Deviation of the noise that is added to its actions
    :param seed: Seed of the noise
    """

    def __init__(self, env: MetaWorldTasks, noise: float = 0.1, seed: int = 0):
        from metaworld.policies import ENV_POLICY_MAP

        self.env, self.noise, self.random = env, noise, np.random.default_rng(seed)
        self.policies = [ENV_POLICY_MAP[f"{name}-v3"]() for name in env.names]

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        action = self.policies[self.env.number].get_action(self.env.full)
        noisy = np.clip(action, -1.0, 1.0) + self.noise * self.random.standard_normal(4)
        return np.clip(noisy, -1.0, 1.0).astype(np.float32)[None], None


def record(n_episodes: int, noise: float, seed: int, tasks: tuple[str, ...] = TASKS) -> Recordings:
    """
    :param n_episodes: Of each task
    :param noise: Of the experts
    :param seed: Of the starts, and of the noise
    :param tasks: Names
    :return: Demonstrations
    """
    env = MetaWorldTasks(tasks, seed)
    try:
        return record_episodes(env, Expert(env, noise, seed), n_episodes * len(tasks), seed)
    finally:
        env.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/demonstrations"))
    parser.add_argument("--episodes", type=int, default=40, help="of each task")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    demonstrations = record(arguments.episodes, arguments.noise, arguments.seed)
    assert demonstrations.rewards is not None
    print(demonstrations.describe(), "with", int(np.sum(demonstrations.rewards)), "successes")
    save_recordings(demonstrations, arguments.folder)
