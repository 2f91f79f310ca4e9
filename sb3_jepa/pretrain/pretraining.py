"""Pretraining of an encoder, from observations alone."""

import pathlib
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import get_device

from sb3_jepa.common import checks
from sb3_jepa.common.digests import digest, id_of
from sb3_jepa.common.histories import is_history
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.settings import check_written_whole, readable
from sb3_jepa.data.collection import check_progress_bar
from sb3_jepa.data.readers import read_into
from sb3_jepa.extractors.files import check_fit, find_encoder_file, read_described_encoder, whole_kwargs
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.lidar_extractor import LidarExtractor
from sb3_jepa.extractors.sequence_extractor import SequenceExtractor
from sb3_jepa.extractors.teachers import make_teacher
from sb3_jepa.objectives import BevPrediction, MaskedPrediction, Objective
from sb3_jepa.pretrain.loading import Loader
from sb3_jepa.pretrain.training import CRITERIA, Pretraining
from sb3_jepa.pretrain.validation import Validation

ENCODER_CLASSES = (JepaExtractor, SequenceExtractor, LidarExtractor)


def pretrain(
    source: Any,
    folder: str | pathlib.Path,
    objective_class: type[Objective] = MaskedPrediction,
    objective_kwargs: dict[str, Any] | None = None,
    features_extractor_kwargs: dict[str, Any] | None = None,
    n_updates: int = 2_000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    max_grad_norm: float = 1.0,
    validation_fraction: float = 0.1,
    eval_freq: int = 100,
    criterion: str | None = None,
    patience: int | None = None,
    labels: np.ndarray | None = None,
    seed: int = 0,
    device: th.device | str = "auto",
    progress_bar: bool = False,
    verbose: int = 0,
    initial_encoder: str | pathlib.Path | None = None,
    features_extractor_class: type[BaseFeaturesExtractor] | None = None,
    **source_kwargs: Any,
) -> pathlib.Path:
    """
    Learn an encoder from recordings: no policy, no rewards, and actions only if the objective asks for them. Its file
    is for
    :func:`~sb3_jepa.load_encoder`, to be frozen or to learn on, and :func:`~sb3_jepa.pretrain.describe_encoder` tells
    how it was trained.

    After an interruption, the same call goes on from the checkpoint in the folder, with the same result as without.
    (With an environment, if its recording is the same again, see :func:`~sb3_jepa.pretrain.record_env`.) The folder
    also holds ``progress.csv`` and TensorBoard's files, with the curves under ``jepa/``.

    The same call with more ``n_updates`` prolongs a pretraining, finished or not: learning rate and momentum go on at
    this place of the schedules of the new length (after its end, the learning rate jumps up again), the curves go on,
    ``patience`` counts anew, and the best encoder is replaced only by a better one. The result is not that of as many
    updates from the start, since the schedules were others until then.

    :param source: Where the observations are from: what :func:`~sb3_jepa.pretrain.read` takes, such as an environment
        or its ID (then say ``n_steps``), a replay or rollout buffer, a file, a Minari data set
    :param folder: Where to keep the encoder, checkpoints and curves, and the recordings of an environment
    :param objective_class: What it learns: :class:`~sb3_jepa.TJepa`, :class:`~sb3_jepa.Salt`,
        :class:`~sb3_jepa.SaltTeacher`, :class:`~sb3_jepa.DmtJepa`, :class:`~sb3_jepa.MaskedPrediction` (I-JEPA);
        :class:`~sb3_jepa.SequencePrediction` of :class:`~sb3_jepa.data.HistoryRecordings`;
        :class:`~sb3_jepa.BevPrediction` of LiDAR; or another
        :class:`~sb3_jepa.Objective` that looks at most one step ahead
    :param objective_kwargs: Keyword arguments to pass to the objective. A ``teacher`` may be the path of another
        pretraining.
    :param features_extractor_kwargs: Keyword arguments to pass to the features extractor
    :param n_updates: Updates, at most, of all calls together
    :param batch_size: Size of a minibatch
    :param learning_rate: The largest learning rate (of AdamW). It rises to that, and then falls to 0 as a cosine does.
    :param weight_decay: Weight decay, of weight matrices: not of biases, norms, codes of places, and class tokens
    :param warmup: Fraction of the updates in which the learning rate rises
    :param max_grad_norm: The maximum value for the gradient clipping
    :param validation_fraction: Which part of the observations to put aside, by episodes
    :param eval_freq: Measure the encoder, write the curves and save a checkpoint every ``eval_freq`` updates
    :param criterion: What decides which encoder is kept: ``"validation_loss"``, or ``"probe_r2"``, how much a linear
        probe reads from the embedding. By default the method's own: the loss if its targets are fixed, as SALT's are.
        Those of a momentum encoder move, and then a smaller loss need not be better.
    :param patience: Stop when so many evaluations in a row found nothing better; None to go on to the end
    :param labels: What the probe is to read, ``(observations, variables)``, not used to learn from; by default the
        principal components of the observations
    :param seed: Seed of the encoder, the masks and the order
    :param device: Device on which the code should run
    :param progress_bar: Display a progress bar using tqdm and rich
    :param verbose: 1 to print what is logged
    :param initial_encoder: Path of an encoder to begin with, as of :func:`~sb3_jepa.read_encoder`: with its parameters,
        input statistics and keyword arguments, of which ``features_extractor_kwargs`` may repeat some
    :param features_extractor_class: What the encoder is: by default a :class:`~sb3_jepa.JepaExtractor`, for histories a
        :class:`~sb3_jepa.SequenceExtractor`, for :class:`~sb3_jepa.BevPrediction` a :class:`~sb3_jepa.LidarExtractor`;
        or a subclass of one of these
    :param source_kwargs: Keyword arguments of :func:`~sb3_jepa.pretrain.read`, such as ``n_steps`` and ``policy``
    :return: The encoder's file
    :raises ValueError: If an argument is not among those accepted, or the folder holds another pretraining
    :raises ImportError: If the progress bar is asked for, and tqdm or rich is not installed
    """
    folder, seed = checks.path("folder", folder), checks.seed("seed", seed)
    n_updates, batch_size = checks.whole_number("n_updates", n_updates), checks.whole_number("batch_size", batch_size)
    learning_rate = checks.number("learning_rate", learning_rate, above=0)
    weight_decay = checks.number("weight_decay", weight_decay, least=0)
    warmup = checks.number("warmup", warmup, least=0, below=1)
    max_grad_norm = checks.number("max_grad_norm", max_grad_norm, above=0)
    validation_fraction = checks.number("validation_fraction", validation_fraction, above=0, below=1)
    eval_freq = checks.whole_number("eval_freq", eval_freq)
    criterion = checks.optional(checks.choice, "criterion", criterion, accepted=CRITERIA)
    patience = checks.optional(checks.whole_number, "patience", patience)
    verbose = checks.whole_number("verbose", verbose, 0, 2)
    _check_objective_class(objective_class)
    _check_encoder_class(features_extractor_class)
    objective_kwargs = make_teacher(objective_kwargs)
    initial, features_extractor_kwargs = read_initial_encoder(initial_encoder, features_extractor_kwargs)
    check_progress_bar(progress_bar)
    try:
        torch_device = get_device(checks.instance("device", device, (str, th.device)))
    except RuntimeError as error:
        raise ValueError(f"`device` must be one of PyTorch's, got {device!r}. {error}") from error
    if features_extractor_kwargs.get("frozen"):
        raise ValueError("`features_extractor_kwargs` must not have `frozen=True`: what is frozen learns nothing")
    check_written_whole("features_extractor_kwargs", features_extractor_kwargs)
    recordings = read_into(folder, source, seed, progress_bar, source_kwargs)
    load = Loader(recordings, objective_class, torch_device)
    if labels is not None and (np.ndim(labels) != 2 or len(labels) != len(recordings)):
        raise ValueError(
            f"`labels` must have a row for each of the {len(recordings)} observations, (observations, variables), "
            f"got shape {np.shape(labels)}"
        )
    settings: dict[str, Any] = dict(
        objective_class=objective_class.__name__,
        objective_kwargs=objective_kwargs,
        features_extractor_kwargs=features_extractor_kwargs,
        observation_space=str(recordings.observation_space),
        n_observations=len(recordings),
        recordings=recordings.id,
        n_updates=n_updates,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        max_grad_norm=max_grad_norm,
        validation_fraction=validation_fraction,
        eval_freq=eval_freq,
        criterion=criterion,
        patience=patience,
        labels=None if labels is None else digest([np.asarray(labels).tobytes()]),
        seed=seed,
        initial_encoder=None if initial is None else id_of(initial),
    )
    if features_extractor_class is not None:
        settings["features_extractor_class"] = features_extractor_class.__name__
    # Make the encoder with the arguments as the file will hold them
    settings = readable(settings)
    features_extractor_kwargs = settings["features_extractor_kwargs"]
    space = recordings.observation_space

    if torch_device.type == "cuda":
        th.cuda.init()
    # Leave the random numbers of other code as they are
    with isolated_random_numbers(seed):
        encoder_class: Any = features_extractor_class or _encoder_class(space, objective_class)
        encoder: Any = (encoder_class if initial is None else type(initial))(space, **features_extractor_kwargs)
        if initial is not None:
            check_fit(initial.state_dict(), encoder, f"`initial_encoder`, {initial_encoder}, does not fit the source")
            encoder.load_state_dict(initial.state_dict())
        objective = objective_class(
            encoder, embed_dim=encoder.features_dim, action_dim=load.action_dim, **objective_kwargs
        )
        if objective.horizon > 1 or objective.needs_rewards:
            raise ValueError(
                "`objective_kwargs` must have no weight for rewards and ends of episodes, and `steps_ahead=1`: a "
                "pretraining learns from single steps"
            )
        if objective.prediction_coef == 0:
            raise ValueError(
                "`objective_kwargs` must have a positive `prediction_coef`: pretraining is judged by what is predicted"
            )
        training_rows, validation_rows = recordings.split(validation_fraction, seed)
        validation = Validation(load, training_rows, validation_rows, labels, batch_size, seed)
        training = Pretraining(encoder.to(torch_device), objective.to(torch_device), settings, folder, validation)
        training.start(load, training_rows)
        if not training.is_finished:
            parts = recordings.describe(training_rows), recordings.describe(validation_rows)
            training.run(load, training_rows, progress_bar, verbose, "{} to learn from, {} put aside".format(*parts))
    return find_encoder_file(training.encoder_file)


def read_initial_encoder(
    initial_encoder: Any, features_extractor_kwargs: dict[str, Any] | None
) -> tuple[JepaExtractor | None, dict[str, Any]]:
    """
    :param initial_encoder: Path of an encoder to begin with, or None
    :param features_extractor_kwargs: Keyword arguments that were given
    :return: The encoder, or None, and all keyword arguments to make one
    :raises ValueError: If there is no such encoder, or it was made with others
    """
    given = checks.keyword_arguments("features_extractor_kwargs", features_extractor_kwargs)
    if initial_encoder is None:
        return None, given
    path = find_encoder_file(initial_encoder, "initial_encoder")
    encoder, description = read_described_encoder(path)
    kwargs = whole_kwargs(encoder, description["features_extractor_kwargs"])
    differing = [
        f"{name} is {kwargs.get(name)} there and {value} here"
        for name, value in readable(given).items()
        if kwargs.get(name, value) != value
    ]
    if differing:
        raise ValueError(
            f"`features_extractor_kwargs` must be those of `initial_encoder`, {path}, or be left out: "
            + "; ".join(differing)
        )
    return encoder, {**given, **kwargs}


def _check_encoder_class(given: Any) -> None:
    if given is not None and not (isinstance(given, type) and issubclass(given, ENCODER_CLASSES)):
        names = ", ".join(cls.__name__ for cls in ENCODER_CLASSES)
        checks.refuse("features_extractor_class", f"one of {names}, a subclass of one of them, or None", given)


def _encoder_class(space: spaces.Space, objective_class: type[Objective]) -> type[BaseFeaturesExtractor]:
    if issubclass(objective_class, BevPrediction):
        return LidarExtractor
    return SequenceExtractor if is_history(space) else JepaExtractor


def _check_objective_class(objective_class: Any) -> None:
    cls = checks.subclass("objective_class", objective_class, Objective)
    if cls.horizon > 1 or cls.needs_rewards:
        needs = "rewards" if cls.needs_rewards else f"{cls.horizon} steps ahead"
        raise ValueError(
            f"`objective_class` must learn from single steps without rewards, got {cls.__name__}, which needs {needs}: "
            "it is for a policy, as `objective_class` of JepaPolicy or JepaCallback"
        )
