"""The memory that stacked frames take."""

import pytest
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer

from sb3_jepa import (
    FrameReplayBuffer,
    JepaRolloutBuffer,
)
from sb3_jepa.envs.pixels import make_pixel_vec_env
from tests.buffers.test_frames import (
    N_ENVS,
    Shuffled,
    add_to_replay,
    add_to_rollout,
    held_bytes,
    make_images,
    make_stacks,
    picture,
    play,
)


def rollout_memory(env, n_steps: int = 128) -> tuple[float, float]:
    """Of a rollout buffer over that of Stable-Baselines3: when it is filled, and when it is learned from."""
    size = n_steps, env.observation_space, env.action_space, "cpu"
    stock, shared = (cls(*size, n_envs=env.num_envs) for cls in (RolloutBuffer, JepaRolloutBuffer))
    for step in play(env, n_steps):
        add_to_rollout(shared, step)
    expected, filled = held_bytes(vars(stock)), held_bytes(vars(shared))
    next(shared.get(16))
    return filled / expected, held_bytes(vars(shared)) / expected


def replay_memory(env, n_steps: int = 300) -> float:
    """Of a replay buffer, which is overwritten once and a half, over that of Stable-Baselines3."""
    size = n_steps // 5 * 2 * env.num_envs, env.observation_space, env.action_space, "cpu"
    stock, shared = (cls(*size, n_envs=env.num_envs) for cls in (ReplayBuffer, FrameReplayBuffer))
    for step in play(env, n_steps):
        add_to_replay(shared, step)
    assert shared.full
    return held_bytes(vars(shared)) / held_bytes(vars(stock))


@pytest.mark.parametrize("frames", [3, 4])
def test_memory_of_pixel_cartpole(frames):
    env = make_pixel_vec_env("CartPole-v1", n_envs=4, seed=0, frames=frames)
    assert max(rollout_memory(env)) <= 1.05 / frames
    assert replay_memory(env) <= 0.55 / frames


@pytest.mark.parametrize(("channels", "frames"), [(1, 4), (3, 3)])
def test_memory_when_no_two_frames_are_alike(channels, frames):
    """Short episodes, whose stacks begin with zeros, and whose last frame is stored too."""
    env = make_stacks(picture(channels, 64, 64), frames, lengths=(20, 17, 22))
    assert max(rollout_memory(env)) <= 1.12 / frames
    assert replay_memory(env) <= 0.56 / frames
    # Of what does not repeat itself nothing is lost but the references
    env = make_images(picture(3, 64, 64), Shuffled, lengths=(20, 17, 22))
    assert max(rollout_memory(env)) <= 1.1
    assert replay_memory(env) <= 0.56


def test_frames_that_were_overwritten_are_freed():
    env = make_stacks(picture(1, 32, 32), 4)
    shared = FrameReplayBuffer(10 * N_ENVS, env.observation_space, env.action_space, "cpu", n_envs=N_ENVS)
    sizes = []
    for number, step in enumerate(play(env, 200)):
        add_to_replay(shared, step)
        if number >= 20:
            sizes.append(held_bytes(vars(shared)))
    # Never more than new frames of every row, of ends and beginnings, and those that were seen last
    assert max(sizes) <= 1024 * 1.15 * N_ENVS * (10 * 1.6 + 8)
    assert max(sizes[100:]) <= 1.2 * max(sizes[:50])
