"""SALT from beginning to end: a teacher, and then an encoder that learns from it."""

import inspect
import pathlib
import warnings
from typing import Any

from sb3_jepa.common import checks
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.data.readers import read_into
from sb3_jepa.data.recordings import Recordings
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.objectives import Salt, SaltTeacher
from sb3_jepa.pretrain.checkpoints import CHECKPOINT, read_checkpoint
from sb3_jepa.pretrain.pretraining import pretrain, read_initial_encoder

TEACHER_FOLDER = "teacher"
# Of the updates of both stages, the paper gives about a sixth to the teacher
TEACHER_SHARE = 6


def teacher_budget(n_updates: int) -> int:
    """
    How many updates the teacher is worth: about a fifth of those that then learn from it (*SALT*, arXiv 2509.24317).

    :param n_updates: Updates of both stages together
    :return: A sixth of them, at least one
    """
    return max(1, checks.whole_number("n_updates", n_updates) // TEACHER_SHARE)


def pretrain_salt(
    source: Any,
    folder: str | pathlib.Path,
    n_updates: int = 2_000,
    teacher_updates: int | None = None,
    teacher_features_extractor_kwargs: dict[str, Any] | None = None,
    features_extractor_kwargs: dict[str, Any] | None = None,
    objective_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    progress_bar: bool = False,
    initial_encoder: str | pathlib.Path | None = None,
    **kwargs: Any,
) -> pathlib.Path:
    """
    The two stages of *SALT* (Li et al. 2025, arXiv 2509.24317): a teacher reconstructs what is hidden from it
    (:class:`~sb3_jepa.SaltTeacher`), and the encoder predicts the tokens of the teacher (:class:`~sb3_jepa.Salt`). Each
    is a :func:`~sb3_jepa.pretrain`, the teacher's in ``folder/teacher``; after an interruption, the same call goes on
    where it was, and with more ``n_updates`` it prolongs the second stage. An environment is recorded once, for both.

    :param source: Where the observations are from, as of :func:`~sb3_jepa.pretrain`
    :param folder: Where to keep the encoder, the teacher, and the recordings of an environment
    :param n_updates: Updates of both stages together: as many as another method would have
    :param teacher_updates: How many of them are the teacher's; by default those of the teacher in the folder, and a
        sixth if there is none
    :param teacher_features_extractor_kwargs: Keyword arguments to pass to the teacher's
        :class:`~sb3_jepa.JepaExtractor`, whose tokens must be those of the encoder; by default those of the encoder
    :param features_extractor_kwargs: Keyword arguments to pass to the encoder's
    :param objective_kwargs: Keyword arguments to pass to the objectives of both stages, such as ``mask_kwargs``
    :param seed: Seed of the encoders, the masks and the order
    :param progress_bar: Display a progress bar using tqdm and rich
    :param initial_encoder: Path of an encoder that the second stage begins with, see :func:`~sb3_jepa.pretrain`. The
        teacher always begins anew.
    :param kwargs: The further parameters of :func:`~sb3_jepa.pretrain`, for both stages, and those of
        :func:`~sb3_jepa.pretrain.read`
    :return: The encoder's file
    :raises ValueError: If an argument is not among those accepted, or the folder holds another pretraining
    :raises ImportError: If the progress bar is asked for, and tqdm or rich is not installed
    """
    # At least one for each stage
    n_updates = checks.whole_number("n_updates", n_updates, 2)
    budget = teacher_budget(n_updates)
    teacher_updates = checks.optional(checks.whole_number, "teacher_updates", teacher_updates)
    folder, seed = checks.path("folder", folder), checks.seed("seed", seed)
    teacher_updates = _teacher_updates(folder, teacher_updates) or budget
    if teacher_updates >= n_updates:
        raise ValueError(
            f"`teacher_updates` must leave some of the {n_updates} updates to the encoder, got {teacher_updates}"
        )
    if teacher_updates > budget:
        warnings.warn(
            f"`teacher_updates={teacher_updates}` is more than a sixth of `n_updates`, {budget}. A small teacher that "
            "has learned for a short time is enough, and what it takes is missing to the encoder",
            UserWarning,
            stacklevel=2,
        )
    objective_kwargs = checks.keyword_arguments("objective_kwargs", objective_kwargs)
    _, features_extractor_kwargs = read_initial_encoder(initial_encoder, features_extractor_kwargs)
    if teacher_features_extractor_kwargs is None:
        teacher_features_extractor_kwargs = features_extractor_kwargs
    teacher_features_extractor_kwargs = checks.keyword_arguments(
        "teacher_features_extractor_kwargs", teacher_features_extractor_kwargs
    )
    options = {name: kwargs.pop(name) for name in inspect.signature(pretrain).parameters if name in kwargs}
    options.update(seed=seed, progress_bar=progress_bar)
    recordings = read_into(folder, source, seed, progress_bar, kwargs)
    _check_stages(recordings, objective_kwargs, teacher_features_extractor_kwargs, features_extractor_kwargs)
    pretrain(
        recordings,
        folder / TEACHER_FOLDER,
        SaltTeacher,
        objective_kwargs,
        teacher_features_extractor_kwargs,
        teacher_updates,
        **options,
    )
    return pretrain(
        recordings,
        folder,
        Salt,
        dict(objective_kwargs, teacher=folder / TEACHER_FOLDER),
        features_extractor_kwargs,
        n_updates - teacher_updates,
        initial_encoder=initial_encoder,
        **options,
    )


def _teacher_updates(folder: pathlib.Path, given: int | None) -> int | None:
    """Those that were given, or else those of the teacher in the folder."""
    checkpoint = read_checkpoint(folder / TEACHER_FOLDER)
    if checkpoint is None:
        return given
    before = checkpoint["settings"]["n_updates"]
    if given is not None and given > before and (folder / CHECKPOINT).exists():
        raise ValueError(
            f"`teacher_updates` must be those of the teacher that the encoder in {folder} learns from, {before}, got "
            f"{given}. Take another folder to learn from another teacher"
        )
    return given or before


def _check_stages(
    recordings: Recordings,
    objective_kwargs: dict[str, Any],
    teacher_features_extractor_kwargs: dict[str, Any],
    features_extractor_kwargs: dict[str, Any],
) -> None:
    """Refuse at once what the second stage would refuse after the first one has learned."""
    with isolated_random_numbers():
        teacher, encoder = (
            JepaExtractor(recordings.observation_space, **kwargs)
            for kwargs in (teacher_features_extractor_kwargs, features_extractor_kwargs)
        )
        Salt(encoder, encoder.features_dim, **objective_kwargs, teacher=teacher)
