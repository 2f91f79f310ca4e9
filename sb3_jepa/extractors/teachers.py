"""Teachers that are named by their files: read where an objective is made, and described where a model is saved."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch as th

from sb3_jepa.common import checks
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.state_dicts import find_misfits
from sb3_jepa.extractors.files import describe_encoder, find_encoder_file, read_encoder, read_state
from sb3_jepa.extractors.jepa_extractor import JepaExtractor

# The keyword argument of an objective
TEACHER = "teacher"


class TeacherFile:
    """
    What a model keeps of a teacher beside its parameters, which are the objective's: where it is from, and how to make
    it again where that is not there any more.

    :param path: As of :func:`~sb3_jepa.read_encoder`
    :raises ValueError: If there is no such encoder, or it is broken
    """

    # What models were saved with before there were others
    features_extractor_class: type[JepaExtractor] = JepaExtractor

    def __init__(self, path: str | os.PathLike):
        encoder = read_encoder(path)
        self.features_extractor_class, self.observation_space = type(encoder), encoder._observation_space
        self.features_extractor_kwargs = describe_encoder(path)["features_extractor_kwargs"]
        # As it was given, and wherever the process is. (Texts, for paths of one system cannot be unpickled on another.)
        self.given, self.path = str(pathlib.Path(path)), str(find_encoder_file(path).resolve())

    def make(self) -> JepaExtractor:
        """
        :return: The teacher. If its file cannot be read any more, or has become another's, all its parameters are NaN:
            a model that is loaded gets those that it was saved with, and nothing else can learn from it by mistake.
        """
        # A training that is under way must not miss the random numbers of its initialisation
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
    :param known: Those that a loaded model has learned with: of their teachers, the files need not exist any more
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
    :return: The same, with an encoder in the place of that: what the objective takes
    :raises ValueError: If there is no such encoder
    """
    kwargs = describe_teacher(objective_kwargs)
    if isinstance(kwargs.get(TEACHER), TeacherFile):
        kwargs[TEACHER] = kwargs[TEACHER].make()
    return kwargs
