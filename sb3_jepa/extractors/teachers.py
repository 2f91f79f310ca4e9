"""Teachers that are given by the paths of their files."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch as th

from sb3_jepa.common import checks
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.sb3_privates import observation_space_of
from sb3_jepa.common.state_dicts import find_misfits
from sb3_jepa.extractors.files import find_encoder_file, read_described_encoder, read_state
from sb3_jepa.extractors.jepa_extractor import JepaExtractor

# The keyword argument of an objective
TEACHER = "teacher"


class TeacherFile:
    """
    What a saved model holds of a teacher: where its file is, and how to make it again without the file. The teacher's
    parameters are among those of the objective.

    :param path: As of :func:`~sb3_jepa.read_encoder`
    :raises ValueError: If there is no such encoder, or it is broken
    """

    # Models that an earlier sb3_jepa saved have no such attribute
    features_extractor_class: type[JepaExtractor] = JepaExtractor

    def __init__(self, path: str | os.PathLike):
        encoder, description = read_described_encoder(path)
        self.features_extractor_class, self.observation_space = type(encoder), observation_space_of(encoder)
        self.features_extractor_kwargs = description["features_extractor_kwargs"]
        # As given, and absolute. Paths would be pickled as those of one operating system: texts can be loaded on all
        self.given, self.path = str(pathlib.Path(path)), str(find_encoder_file(path).resolve())

    def make(self) -> JepaExtractor:
        """
        :return: The teacher. If its file cannot be read any more, or holds another encoder, all parameters are NaN: a
            model that is loaded replaces them by its own, and no other model can learn from them by mistake.
        """
        # The initialisation must not take random numbers from a training
        with isolated_random_numbers():
            teacher = self.features_extractor_class(self.observation_space, **self.features_extractor_kwargs)
        own = teacher.state_dict()
        try:
            state = read_state(self.path)
        except (OSError, ValueError, ImportError):
            state = {}
        if find_misfits(state, own, "there", "here"):
            state = {
                name: th.full_like(value, th.nan) if value.is_floating_point() else value for name, value in own.items()
            }
        teacher.load_state_dict(state)
        return teacher.eval()


def describe_teacher(
    objective_kwargs: Mapping[str, Any] | None, known: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """
    :param objective_kwargs: Keyword arguments of an objective, whose ``teacher`` may be a path
    :param known: Keyword arguments that a loaded model has learned with: the files of their teachers may be gone
    :return: The same, with a :class:`TeacherFile` in the place of a path
    :raises ValueError: If there is no such encoder, or these are no keyword arguments
    """
    kwargs = checks.keyword_arguments("objective_kwargs", objective_kwargs)
    teacher = kwargs.get(TEACHER)
    if isinstance(teacher, (str, os.PathLike)):
        described = [one[TEACHER] for one in known if isinstance(one.get(TEACHER), TeacherFile)]
        same = [one for one in described if str(pathlib.Path(teacher)) in (one.given, one.path)]
        kwargs[TEACHER] = same[0] if same and not os.path.exists(teacher) else TeacherFile(teacher)
    return kwargs


def make_teacher(objective_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    :param objective_kwargs: Keyword arguments of an objective, whose ``teacher`` may be a path or a
        :class:`TeacherFile`
    :return: The same, with an encoder as ``teacher``
    :raises ValueError: If there is no such encoder
    """
    kwargs = describe_teacher(objective_kwargs)
    if isinstance(kwargs.get(TEACHER), TeacherFile):
        kwargs[TEACHER] = kwargs[TEACHER].make()
    return kwargs
