"""What a training has left: its model, whose algorithm is guessed, and its curves; and an environment that fits."""

import csv
import inspect
import pathlib
from importlib import import_module
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv

import sb3_jepa
from sb3_jepa.encoders import find_encoders
from sb3_jepa.envs import make_pixel_vec_env
from sb3_jepa.policies import JointPolicy
from sb3_jepa.saving import MODEL, check_model_file, reading
from sb3_jepa.tokenization import count_frames

# Time steps and values
Curve = tuple[np.ndarray, np.ndarray]
# Of a policy: further away than any ancestor can be
NOT_AN_ANCESTOR = 1_000


def find_model(path: str | pathlib.Path) -> pathlib.Path:
    """
    :param path: A model's zip, or a folder with at least one in it or below
    :return: The zip; of several the latest
    :raises ValueError: If there is none
    """
    path = pathlib.Path(path)
    if path.is_dir():
        models = sorted(path.rglob("*.zip"), key=lambda file: file.stat().st_mtime)
        if not models:
            raise ValueError(f"There is no saved model (*.zip) in the folder {path}")
        return models[-1]
    path = path if path.suffix else path.with_suffix(".zip")
    if not path.is_file():
        raise ValueError(f"`path` must be a saved model (*.zip) or a folder that holds one, got {path}")
    return path


def load_model(path: str | pathlib.Path, algorithm: str | None = None, device: str = "auto") -> BaseAlgorithm:
    """
    Load a model without being told its algorithm, which a zip does not name: it is the one with such a policy and such
    parameters.

    :param path: The zip
    :param algorithm: ``"module:class"``, if it is none of sb3_jepa, Stable-Baselines3 and sb3-contrib
    :param device: Device on which the code should run
    :return: The model
    :raises ValueError: If the file is no saved model, or no algorithm is known that has such a policy
    """
    if algorithm is not None:
        module, _, name = algorithm.partition(":")
        cls = getattr(import_module(module), name, None)
        if not (inspect.isclass(cls) and issubclass(cls, BaseAlgorithm)):
            raise ValueError(f'`algorithm` must be "module:class", such as "sb3_contrib:TQC", got {algorithm!r}')
        check_model_file(path)
        return cls.load(path, device=device)
    with reading(path, MODEL):
        data, _, _ = load_from_zip_file(path, device="cpu")
        if data is None:
            raise ValueError("it holds no model")
        policy_class = data["policy_class"]

    def how_far(cls: type[BaseAlgorithm]) -> tuple[int, int]:
        ancestors = [alias for alias in cls.policy_aliases.values() if alias in policy_class.__mro__]
        distance = min((policy_class.__mro__.index(alias) for alias in ancestors), default=NOT_AN_ANCESTOR)
        # PPO and A2C have the same policies, but not the same parameters. (DDPG is a TD3 with fewer of them.)
        parameters = inspect.signature(cls).parameters
        return distance, len(set(parameters) - set(data)) - len(set(parameters) & set(data))

    cls = min(_stock_algorithms(), key=how_far)
    if how_far(cls)[0] == NOT_AN_ANCESTOR:
        raise ValueError(
            f"{path} holds a {policy_class.__name__}, which is a policy of no algorithm known here: say which one by "
            '`algorithm="module:class"`'
        )
    if issubclass(policy_class, JointPolicy):
        cls = getattr(sb3_jepa, cls.__name__)
    return cls.load(path, device=device)


def _stock_algorithms() -> list[type[BaseAlgorithm]]:
    modules = [stable_baselines3, *([import_module("sb3_contrib")] if find_spec("sb3_contrib") else [])]
    exported = [value for module in modules for value in vars(module).values()]
    return [value for value in exported if inspect.isclass(value) and issubclass(value, BaseAlgorithm)]


def make_env_for(model: BaseAlgorithm, env_id: str, n_envs: int = 8, seed: int | None = None) -> VecEnv:
    """
    Environments with the observations that a model takes: as they are, or seen through their rendered frames. (Three
    channels are taken for three grey frames, unless the encoder was told that ``frames=1``.)

    :param model: Of any algorithm
    :param env_id: ID of the environment; ``"module:ID"`` imports a module that registers it
    :param n_envs: Number of environments in parallel
    :param seed: Seed of the environments' random numbers
    :return: The environments, wrapped as the model's own were
    :raises ValueError: If the observations do not fit
    """
    try:
        env = BaseAlgorithm._wrap_env(make_vec_env(env_id, n_envs=n_envs, seed=seed), verbose=0)
    except gym.error.Error as error:
        raise ValueError(f"`env_id` must be the ID of an environment, got {env_id!r}. {error}") from error
    wanted = model.observation_space
    if env.observation_space != wanted and is_image_space(wanted):
        assert isinstance(wanted, spaces.Box)
        env.close()
        n_channels, height, width = wanted.shape
        (extractor, *_) = find_encoders(model.policy).values()
        frames = getattr(extractor, "frames", None) or count_frames(n_channels)
        env = make_pixel_vec_env(
            env_id, n_envs, seed, frame_size=(height, width), grayscale=frames == n_channels, frames=frames
        )
    if (env.observation_space, env.action_space) != (wanted, model.action_space):
        raise ValueError(
            f"The model takes {wanted} and gives {model.action_space}, and {env_id} gives {env.observation_space} and "
            f"takes {env.action_space}. Make the environment yourself, and call "
            "`sb3_jepa.report.write_report(model, env, out)`"
        )
    return env


def read_curves(folder: str | pathlib.Path, below: bool = True) -> dict[str, Curve]:
    """
    The curves that a training has logged, from TensorBoard's files or else from ``progress.csv``.

    :param folder: Where they are
    :param below: Or in a folder of it: of several trainings, the latest
    :return: By name, time steps and values; empty if nothing was logged
    :raises ValueError: If the table is none
    :raises ImportError: If there are TensorBoard's files, and TensorBoard is not installed
    """
    find = pathlib.Path(folder).rglob if below else pathlib.Path(folder).glob
    events = sorted(find("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime)
    curves = _read_events(events[-1].parent) if events else {}
    if curves:
        return curves
    tables = sorted(find("progress.csv"), key=lambda file: file.stat().st_mtime)
    return _read_table(tables[-1]) if tables else {}


def _read_events(folder: pathlib.Path) -> dict[str, Curve]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError('To read its curves, TensorBoard is needed: pip install "sb3-jepa[examples]"') from error
    accumulator = EventAccumulator(str(folder), size_guidance=dict(scalars=0)).Reload()
    curves = {}
    for name in accumulator.Tags()["scalars"]:
        events = accumulator.Scalars(name)
        curves[name] = np.array([event.step for event in events]), np.array([event.value for event in events])
    return curves


def _read_table(path: pathlib.Path) -> dict[str, Curve]:
    steps_name = "time/total_timesteps"
    with path.open(newline="") as file, reading(path, "a table of curves"):
        rows = list(csv.DictReader(file))
    curves = {}
    for name in filter(None, rows[0] if rows else []):
        # A row has only what was logged since the one before
        known = [(row[steps_name], row[name]) for row in rows if row.get(steps_name) and row.get(name)]
        try:
            steps, values = np.array(known, dtype=np.float64).reshape(-1, 2).T
        except ValueError:
            continue  # a text
        curves[name] = steps, values
    return curves
