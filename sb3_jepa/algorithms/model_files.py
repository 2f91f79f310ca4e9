"""Saving and loading of models: as a whole or not at all, with errors that name a broken file."""

import io
import pathlib
from collections.abc import Iterable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_jepa.algorithms.saved_models import check_model_file
from sb3_jepa.common.files import in_memory, write_file
from sb3_jepa.common.ranks import rank
from sb3_jepa.common.state_dicts import warn_if_not_finite


class FilesOfModels(BaseAlgorithm):
    """What an algorithm of Stable-Baselines3 lacks so that nothing is lost, and a broken file is named."""

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. If that fails, an older file stays
        as it was. On several ranks, only the first one writes files.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        if rank() > 0 and isinstance(path, (str, pathlib.Path)):
            return
        warn_if_not_finite(self.policy.state_dict(), "The policy")
        write_file(path, in_memory(lambda file: super(FilesOfModels, self).save(file, exclude, include)), ".zip")

    @classmethod
    def load(cls, path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> Any:
        """
        Load the model from a zip-file.

        :param path: path to the file (or a file-like) where to load the agent from
        :param args: The further parameters of Stable-Baselines3's ``load``
        :param kwargs: The further parameters of Stable-Baselines3's ``load``
        :return: new model instance with loaded parameters
        :raises ValueError: If the file is no saved model, or holds another policy than its settings say
        """
        check_model_file(path)
        return super().load(path, *args, **kwargs)
