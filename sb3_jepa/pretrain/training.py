"""Pretraining of an encoder, from observations alone."""

import json
import math
import pathlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import callbacks
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.digests import digest, id_of
from sb3_jepa.common.files import in_memory, reading, write_file
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.common.sb3_privates import observation_space_of
from sb3_jepa.common.settings import check_written_whole, differing_settings, readable
from sb3_jepa.data.collection import check_progress_bar
from sb3_jepa.data.readers import read_into
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.preprocessing import preprocess
from sb3_jepa.extractors.pretrained import check_no_encoder, find_encoder_file, write_pretrained
from sb3_jepa.extractors.teachers import make_teacher
from sb3_jepa.objectives import MaskedPrediction, ObjectiveInput
from sb3_jepa.pretrain.settings import CRITERIA, find_device
from sb3_jepa.pretrain.validation import Validation, result_of

CHECKPOINT, CURVES = "checkpoint.pth", "progress.csv"


def pretrain(
    source: Any,
    folder: str | pathlib.Path,
    objective_class: type[MaskedPrediction] = MaskedPrediction,
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
    **source_kwargs: Any,
) -> pathlib.Path:
    """
    Learn an encoder from observations: no policy, no rewards, no actions. Its file is for
    :func:`~sb3_jepa.load_encoder`, to be frozen or to learn on.

    All that it needs to go on after an interruption is in its folder, and the same call does that; it then ends where
    it would have ended without. (Of an environment, that holds if it repeats itself, see
    :func:`~sb3_jepa.pretrain.record_env`.) Beside that, ``progress.csv`` and TensorBoard's files are there, with the
    curves under ``jepa/``.

    :param source: Where the observations are from: what :func:`~sb3_jepa.pretrain.read` takes, such as an environment
        or its ID (then say ``n_steps``), a replay or rollout buffer, a file, a Minari data set
    :param folder: Where to keep the encoder, checkpoints and curves, and the recordings of an environment
    :param objective_class: What it learns: :class:`~sb3_jepa.TJepa`, :class:`~sb3_jepa.Salt`,
        :class:`~sb3_jepa.SaltTeacher`, :class:`~sb3_jepa.DmtJepa`, or :class:`~sb3_jepa.MaskedPrediction` (I-JEPA)
    :param objective_kwargs: Keyword arguments to pass to the objective. A ``teacher`` may be the path of another
        pretraining.
    :param features_extractor_kwargs: Keyword arguments to pass to the :class:`~sb3_jepa.JepaExtractor`
    :param n_updates: Updates, at most
    :param batch_size: Size of a minibatch
    :param learning_rate: The largest learning rate (of AdamW). It rises to that, and then falls to 0 as a cosine does.
    :param weight_decay: Weight decay
    :param warmup: Fraction of the updates in which the learning rate rises
    :param max_grad_norm: The maximum value for the gradient clipping
    :param validation_fraction: Which part of the observations to put aside, by episodes
    :param eval_freq: Every so many updates the encoder is measured, what was logged is written, and all is saved
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
    # Of those that learn from observations alone
    objective_class = checks.subclass("objective_class", objective_class, MaskedPrediction)
    objective_kwargs = make_teacher(objective_kwargs)
    features_extractor_kwargs = checks.keyword_arguments("features_extractor_kwargs", features_extractor_kwargs)
    check_progress_bar(progress_bar)
    torch_device = find_device(device)
    if features_extractor_kwargs.get("frozen"):
        raise ValueError("`features_extractor_kwargs` must not have `frozen=True`: what is frozen learns nothing")
    check_written_whole("features_extractor_kwargs", features_extractor_kwargs)
    recordings = read_into(folder, source, seed, progress_bar, source_kwargs)
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
    )
    # What is learned is what is made again of the file
    settings = readable(settings)
    features_extractor_kwargs = settings["features_extractor_kwargs"]
    space = recordings.observation_space

    def load(rows: np.ndarray) -> Any:
        tensors = obs_as_tensor(recordings.take(rows), torch_device)
        return preprocess(tensors, space, True, [encoder])

    if torch_device.type == "cuda":
        th.cuda.init()
    # What runs beside it keeps its own random numbers
    with isolated_random_numbers(seed):
        encoder = JepaExtractor(space, **features_extractor_kwargs)
        objective = objective_class(encoder, embed_dim=encoder.features_dim, **objective_kwargs)
        if objective.prediction_coef == 0:
            raise ValueError(
                "`objective_kwargs` must have a positive `prediction_coef`: pretraining is judged by what is predicted"
            )
        training = Pretraining(encoder.to(torch_device), objective.to(torch_device), settings, folder)
        training_rows, validation_rows = recordings.split(validation_fraction, seed)
        training.parts = (
            f"{recordings.describe(training_rows)} to learn from, {recordings.describe(validation_rows)} put aside"
        )
        training.validation = Validation(load, training_rows, validation_rows, labels, batch_size, seed)
        training.start(load, training_rows)
        if not training.is_finished:
            training.run(load, training_rows, progress_bar, verbose)
    return training.encoder_file


class Pretraining:
    """
    A pretraining under way.

    :param encoder: The context encoder
    :param objective: What it learns
    :param settings: All that decides what is computed, beside the observations
    :param folder: Where it is kept
    """

    validation: Validation
    # What there is to learn from, in words
    parts: str

    def __init__(
        self, encoder: JepaExtractor, objective: MaskedPrediction, settings: dict[str, Any], folder: pathlib.Path
    ):
        self.encoder, self.objective, self.settings, self.folder = encoder, objective, settings, folder
        self.criterion: str = settings["criterion"] or ("validation_loss" if objective.has_fixed_target else "probe_r2")
        trained = [*encoder.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
        self.optimizer = th.optim.AdamW(
            trained, lr=settings["learning_rate"], weight_decay=settings["weight_decay"], fused=True
        )
        self.n_done = self.n_without_progress = 0
        self.best: float | None = None
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)
        # What was logged, for the curves of a training that goes on to be whole
        self.history: list[tuple[int, dict[str, float]]] = []

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        patience = self.settings["patience"]
        is_out_of_patience = patience is not None and self.n_without_progress >= patience
        return self.n_done >= self.settings["n_updates"] or is_out_of_patience

    @property
    def encoder_file(self) -> pathlib.Path:
        """The best encoder so far."""
        return find_encoder_file(self.folder)

    def start(self, load: Any, rows: np.ndarray) -> None:
        """
        Take up what the folder holds, or measure what the encoder standardises its inputs with.

        :param load: Makes preprocessed observations of the numbers of rows
        :param rows: What is learned from
        :raises ValueError: If the folder holds a pretraining with other settings, or files of something else
        """
        path = self.folder / CHECKPOINT
        if path.exists():
            self._load_checkpoint(path)
            return
        self._check_nothing_is_overwritten()
        n_inputs = self.encoder.n_inputs_to_measure
        if n_inputs > 0:
            chosen = np.random.default_rng(self.settings["seed"]).permutation(rows)[:n_inputs]
            # Each several times, if there are fewer: a model that takes the encoder would measure the rest, and change
            # what it sees
            n_times = -(-n_inputs // len(chosen))
            self.encoder.measure_inputs(load(np.sort(np.tile(chosen, n_times))))
            self.objective.target_encoder.copy_buffers(self.encoder)

    def _check_nothing_is_overwritten(self) -> None:
        check_no_encoder(self.folder)
        curves = self.folder / CURVES
        # One that was interrupted before its first checkpoint has written its first row
        if curves.is_file() and curves.stat().st_size > 0:
            with curves.open(errors="replace") as file:
                is_own = "jepa/validation_loss" in file.readline()
            if not is_own:
                raise ValueError(
                    f"`folder` holds curves of another training, {curves}: take another folder, or move them"
                )

    def run(self, load: Any, rows: np.ndarray, progress_bar: bool, verbose: int) -> None:
        """
        Learn.

        :param load: Makes preprocessed observations of the numbers of rows
        :param rows: What is learned from
        :param progress_bar: Display a progress bar using tqdm and rich
        :param verbose: 1 to print what is logged
        """
        formats = ["csv", *(["tensorboard"] if find_spec("tensorboard") else []), *(["stdout"] if verbose else [])]
        self.logger = configure(str(self.folder), formats)
        self.logger.info(self.parts)
        for update, scalars in self.history:
            # TensorBoard's files are never overwritten: it has these already
            self._write(update, scalars, exclude="tensorboard")
        n_updates, eval_freq = self.settings["n_updates"], self.settings["eval_freq"]
        bar = callbacks.tqdm(total=n_updates, initial=self.n_done, unit="update") if progress_bar else None
        if not self.history:
            # What the untrained encoder is worth
            self._evaluate({})
        self.encoder.train()
        losses: list[th.Tensor] = []
        try:
            while not self.is_finished:
                losses.append(self._update(load(self._rows_of_update(rows))))
                self.n_done += 1
                if bar is not None:
                    bar.update()
                if self.n_done % eval_freq == 0 or self.n_done == n_updates:
                    self._evaluate(dict(prediction_loss=float(th.stack(losses).mean())))
                    losses = []
        finally:
            if bar is not None:
                bar.close()
            self.logger.close()

    def _rows_of_update(self, rows: np.ndarray) -> np.ndarray:
        # No row twice in an epoch, in an order that is known without what came before
        batch_size = min(self.settings["batch_size"], len(rows))
        n_batches = len(rows) // batch_size
        epoch, batch = divmod(self.n_done, n_batches)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.settings["seed"], epoch]).permutation(rows)
        return self._order[batch * batch_size : (batch + 1) * batch_size]

    def _update(self, observations: Any) -> th.Tensor:
        progress = self.n_done / self.settings["n_updates"]
        for group in self.optimizer.param_groups:
            # In the middle of an update it is never 0
            middle = progress + 0.5 / self.settings["n_updates"]
            group["lr"] = self.settings["learning_rate"] * _rate(middle, self.settings["warmup"])
        self.objective.update_momentum(1.0 - progress)
        embedding = self.encoder(observations) if self.objective.regularizes_embedding else None
        output = self.objective(ObjectiveInput(self.encoder, observations, embedding))
        self.optimizer.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.settings["max_grad_norm"])
        self.optimizer.step()
        self.objective.update_target(self.encoder)
        return output.terms["prediction_loss"]

    def _evaluate(self, scalars: dict[str, float]) -> None:
        result = result_of(self.encoder, self.objective)
        measured = self.validation.measure(self.encoder, self.objective, result)
        scalars = {**scalars, **measured, "momentum": self.objective.momentum}
        self.history.append((self.n_done, scalars))
        self._check_measured(measured)
        value = measured[self.criterion]
        sign = 1.0 if CRITERIA[self.criterion] else -1.0
        # An encoder that has learned nothing is none
        if self.n_done > 0:
            is_better = self.best is None or sign * value > sign * self.best
            self.n_without_progress = 0 if is_better else self.n_without_progress + 1
            if is_better:
                self.best = value
                self._write_encoder(result, measured)
        self._write(self.n_done, scalars)
        self._save_checkpoint()

    def _check_measured(self, measured: dict[str, float]) -> None:
        if not math.isfinite(measured["validation_loss"]):
            raise ValueError(
                f"The prediction loss is {measured['validation_loss']} after {self.n_done} updates: the observations "
                "hold NaN or infinite values (if NaN says that a number is missing, `features_extractor_kwargs="
                "dict(missing_as_nan=True)`), or `learning_rate` is too large"
            )
        if not math.isfinite(measured[self.criterion]):
            raise ValueError(
                f"`criterion={self.criterion!r}` cannot be measured, since what the probe is to read does not vary "
                "among the observations that were put aside. Put more of them aside (`validation_fraction`), or say "
                '`criterion="validation_loss"`'
            )

    def _write(self, update: int, scalars: dict[str, float], exclude: str | None = None) -> None:
        for name, value in scalars.items():
            self.logger.record(f"jepa/{name}", value, exclude)
        if self.objective.target == "frozen":
            # Losses against another teacher cannot be compared
            self.logger.record("jepa/teacher", self.objective.target_encoder.id, exclude)
        self.logger.record("time/updates", update, exclude="tensorboard")
        self.logger.dump(step=update)

    def _write_encoder(self, result: nn.Module, measured: dict[str, float]) -> None:
        about = dict(
            id=id_of(result),
            objective_class=self.settings["objective_class"],
            n_updates=self.n_done,
            criterion=self.criterion,
            **measured,
            teacher=self.objective.target_encoder.id if self.objective.target == "frozen" else None,
            settings=self.settings,
        )
        kwargs = self.settings["features_extractor_kwargs"]
        write_pretrained(result, self.folder, observation_space_of(self.encoder), kwargs, about)

    def _save_checkpoint(self) -> None:
        state = dict(
            settings=json.dumps(self.settings),
            encoder=self.encoder.state_dict(),
            objective=self.objective.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random_state=th.get_rng_state(),
            history=self.history,
            progress=(self.n_done, self.n_without_progress, self.best),
        )
        write_file(self.folder / CHECKPOINT, in_memory(lambda file: th.save(state, file)))

    def _load_checkpoint(self, path: pathlib.Path) -> None:
        with reading(path, "the checkpoint of a pretraining"):
            state = th.load(path, map_location=next(self.encoder.parameters()).device, weights_only=True)
            differing = differing_settings(json.loads(state["settings"]), self.settings)
        if differing:
            raise ValueError(
                f"`folder` holds another pretraining: take another one than {self.folder}, or delete it. "
                + "; ".join(f"{name} is {theirs} there and {own} here" for name, (theirs, own) in differing.items())
            )
        with reading(path, "the checkpoint of a pretraining"):
            self.encoder.load_state_dict(state["encoder"])
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            th.set_rng_state(state["random_state"].cpu())
            self.history = state["history"]
            self.n_done, self.n_without_progress, self.best = state["progress"]


def _rate(progress: float, warmup: float) -> float:
    """Of the largest learning rate: it rises linearly, and falls as a cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))
