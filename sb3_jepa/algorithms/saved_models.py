"""Saved models: found in a folder, checked, and loaded without being told their algorithm."""

import inspect
import io
import pathlib
import zipfile
from importlib import import_module
from importlib.util import find_spec

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, open_path

from sb3_jepa.common.files import reading
from sb3_jepa.policies.learns_jointly import LearnsJointly

# What a saved model always has
MODEL_PARTS = ("data", "policy.pth")
MODEL = "a saved model (*.zip)"


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """
    :param path: What ``load()`` of Stable-Baselines3 takes; an open file is not looked at
    :raises ValueError: If the file is no saved model
    """
    if not isinstance(path, (str, pathlib.Path)):
        return
    # It is found with and without its ending
    with open_path(path, "r", verbose=0, suffix="zip") as file, reading(file.name, MODEL):
        with zipfile.ZipFile(file) as archive:  # type: ignore[arg-type]
            missing = set(MODEL_PARTS) - set(archive.namelist())
        if missing:
            raise ValueError(f"it does not hold {' and '.join(sorted(map(repr, missing)))}")


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
    if issubclass(policy_class, LearnsJointly):
        room = "sb3_jepa.algorithms"
        is_stock = hasattr(stable_baselines3, cls.__name__)
        cls = getattr(import_module(room if is_stock else f"{room}.contrib"), cls.__name__)
    return cls.load(path, device=device)


def _stock_algorithms() -> list[type[BaseAlgorithm]]:
    modules = [stable_baselines3, *([import_module("sb3_contrib")] if find_spec("sb3_contrib") else [])]
    exported = [value for module in modules for value in vars(module).values()]
    return [value for value in exported if inspect.isclass(value) and issubclass(value, BaseAlgorithm)]
