"""The updates of a pretraining, and what is measured, logged and kept between them."""

import math
import pathlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import callbacks
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat, configure
from torch import nn

from sb3_jepa.common.files import reading
from sb3_jepa.diagnostics.birds_eye import birds_eye_figure, look_from_above
from sb3_jepa.extractors.files import (
    DESCRIPTION_BESIDE,
    default_suffix,
    file_named_beside,
    find_encoder_file,
    write_encoder,
)
from sb3_jepa.extractors.jepa_extractor import JepaExtractor
from sb3_jepa.extractors.lidar_extractor import LidarExtractor
from sb3_jepa.objectives import Objective
from sb3_jepa.pretrain import checkpoints
from sb3_jepa.pretrain.loading import Loader
from sb3_jepa.pretrain.validation import Validation, result_of

# Whether more of it is better
CRITERIA = {"validation_loss": False, "probe_r2": True}
# The last words of the names of codes, class tokens and mask tokens
NOT_DECAYED = ("code", "token")


def make_optimizer(
    encoder: nn.Module, objective: nn.Module, learning_rate: float, weight_decay: float
) -> tuple[th.optim.Optimizer, list[nn.Parameter]]:
    """
    :param encoder: The context encoder
    :param objective: What it learns
    :param learning_rate: The learning rate
    :param weight_decay: Weight decay of weight matrices; not of biases, norms, codes, class tokens and mask tokens
    :return: The optimiser, and all that it trains
    """
    named = [*encoder.named_parameters(), *(one for one in objective.named_parameters() if one[1].requires_grad)]
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        is_decayed = parameter.ndim > 1 and not name.endswith(NOT_DECAYED)
        (decayed if is_decayed else others).append(parameter)
    groups = [dict(params=decayed, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]
    return th.optim.AdamW(groups, lr=learning_rate, fused=True), [parameter for _, parameter in named]


class Pretraining:
    """
    A pretraining under way.

    :param encoder: The context encoder
    :param objective: What it learns
    :param settings: All that decides what is computed, beside the observations
    :param folder: Where it is kept
    :param validation: Measures the encoder
    """

    def __init__(
        self,
        encoder: JepaExtractor,
        objective: Objective,
        settings: dict[str, Any],
        folder: pathlib.Path,
        validation: Validation,
    ):
        self.encoder, self.objective, self.settings, self.folder = encoder, objective, settings, folder
        self.validation = validation
        self.criterion: str = settings["criterion"] or ("validation_loss" if objective.has_fixed_target else "probe_r2")
        self.optimizer, self.trained = make_optimizer(
            encoder, objective, settings["learning_rate"], settings["weight_decay"]
        )
        # Logged, because losses against different teachers cannot be compared
        has_teacher = objective.has_fixed_target and next(objective.target_encoder.parameters(), None) is not None
        self.teacher_id = objective.target_encoder.id if has_teacher else None
        self.n_done = self.n_without_progress = 0
        self.best: float | None = None
        self.encoder_file = folder / f"encoder{default_suffix()}"
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)
        # All that was logged: after an interruption, the curves are written again from the start
        self.history: list[tuple[int, dict[str, float]]] = []

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        patience = self.settings["patience"]
        is_out_of_patience = patience is not None and self.n_without_progress >= patience
        return self.n_done >= self.settings["n_updates"] or is_out_of_patience

    def start(self, load: Loader, rows: np.ndarray) -> None:
        """
        Take up what the folder holds, or measure what the encoder standardises its inputs with.

        :param load: Makes what is learned from of the numbers of rows
        :param rows: What is learned from
        :raises ValueError: If the folder holds a pretraining with other settings, or files of something else
        """
        state = checkpoints.read_checkpoint(self.folder, next(self.encoder.parameters()).device)
        if state is not None:
            self._go_on(state)
            return
        checkpoints.check_nothing_is_overwritten(self.folder)
        n_inputs = self.encoder.n_inputs_to_measure
        if n_inputs > 0:
            chosen = np.random.default_rng(self.settings["seed"]).permutation(rows)[:n_inputs]
            # Repeat them if there are too few: a model that loads the encoder would measure the rest with its own
            # observations, and change the encoder
            n_times = -(-n_inputs // len(chosen))
            self.encoder.measure_inputs(load.observations(np.sort(np.tile(chosen, n_times)), self.encoder))
            self.objective.target_encoder.copy_buffers(self.encoder)

    def _go_on(self, state: dict[str, Any]) -> None:
        is_prolonged = checkpoints.is_prolonged(self.settings, state["settings"], self.folder)
        with reading(self.folder / checkpoints.CHECKPOINT, checkpoints.EXPECTED):
            self.encoder.load_state_dict(state["encoder"])
            self.objective.load_state_dict(state["objective"])
            checkpoints.load_optimizer(self.optimizer, state["optimizer"], self.trained)
            th.set_rng_state(state["random_state"].cpu())
            self.history = state["history"]
            self.n_done, self.n_without_progress, self.best = state["progress"]
        if is_prolonged:
            self.n_without_progress = 0
        # Keep the file's format, although safetensors may have been installed since
        if "encoder_file" in state:
            self.encoder_file = self.folder / state["encoder_file"]
        elif self.best is not None:
            self.encoder_file = find_encoder_file(self.folder)

    def run(self, load: Loader, rows: np.ndarray, progress_bar: bool, verbose: int, parts: str) -> None:
        """
        Learn.

        :param load: Makes what is learned from of the numbers of rows
        :param rows: What is learned from
        :param progress_bar: Display a progress bar using tqdm and rich
        :param verbose: 1 to print what is logged
        :param parts: What there is to learn from, in words
        """
        formats = ["csv", *(["tensorboard"] if find_spec("tensorboard") else []), *(["stdout"] if verbose else [])]
        self.logger = configure(str(self.folder), formats)
        self.logger.info(parts)
        for update, scalars in self.history:
            # TensorBoard's files of before the interruption have these already
            self._write(update, scalars, exclude="tensorboard")
        n_updates, eval_freq = self.settings["n_updates"], self.settings["eval_freq"]
        bar = callbacks.tqdm(total=n_updates, initial=self.n_done, unit="update") if progress_bar else None
        if not self.history:
            # Measure the untrained encoder
            self._evaluate({})
        self.encoder.train()
        losses: list[th.Tensor] = []
        try:
            while not self.is_finished:
                losses.append(self._update(load, self._rows_of_update(rows)))
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
        # Each row at most once in an epoch, in an order that depends on seed and epoch alone
        batch_size = min(self.settings["batch_size"], len(rows))
        n_batches = len(rows) // batch_size
        epoch, batch = divmod(self.n_done, n_batches)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.settings["seed"], epoch]).permutation(rows)
        return self._order[batch * batch_size : (batch + 1) * batch_size]

    def _update(self, load: Loader, rows: np.ndarray) -> th.Tensor:
        progress = self.n_done / self.settings["n_updates"]
        for group in self.optimizer.param_groups:
            # Evaluated in the middle of an update, the learning rate is never 0
            middle = progress + 0.5 / self.settings["n_updates"]
            group["lr"] = self.settings["learning_rate"] * _rate(middle, self.settings["warmup"])
        self.objective.update_momentum(1.0 - progress)
        output = self.objective(load.batch(rows, self.encoder, self.objective.regularizes_embedding))
        self.optimizer.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.settings["max_grad_norm"])
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
        # The untrained encoder is never kept
        if self.n_done > 0:
            is_better = self.best is None or sign * value > sign * self.best
            self.n_without_progress = 0 if is_better else self.n_without_progress + 1
            if is_better:
                self.best = value
                self._write_encoder(result, measured)
        self._write(self.n_done, scalars)
        self._draw()
        state = dict(
            encoder=self.encoder.state_dict(),
            objective=self.objective.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=self.history,
            progress=(self.n_done, self.n_without_progress, self.best),
            encoder_file=self.encoder_file.name,
        )
        checkpoints.write_checkpoint(self.folder, self.settings, state)

    def _draw(self) -> None:
        """What is predicted of LiDAR, for TensorBoard."""
        outputs = [one for one in self.logger.output_formats if isinstance(one, TensorBoardOutputFormat)]
        if not isinstance(self.encoder, LidarExtractor) or not outputs or not find_spec("matplotlib"):
            return
        was_training = self.encoder.training
        self.encoder.train(False)
        seen = look_from_above(self.encoder, self.validation.some_observations(self.encoder), self.objective)
        self.encoder.train(was_training)
        for output in outputs:
            picture = {"jepa_pictures/birds_eye": Figure(birds_eye_figure(seen), close=False)}
            output.write(picture, dict.fromkeys(picture), self.n_done)  # type: ignore[arg-type]

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
        if self.teacher_id is not None:
            self.logger.record("jepa/teacher", self.teacher_id, exclude)
        self.logger.record("time/updates", update, exclude="tensorboard")
        self.logger.dump(step=update)

    def _write_encoder(self, result: JepaExtractor, measured: dict[str, float]) -> None:
        about = dict(
            objective_class=self.settings["objective_class"],
            n_updates=self.n_done,
            criterion=self.criterion,
            **measured,
            teacher=self.teacher_id,
            settings=self.settings,
        )
        # Of a pretraining that an earlier sb3_jepa began
        is_described_beside = file_named_beside(self.folder) == self.encoder_file.name
        write_encoder(result, self.encoder_file, self.settings["features_extractor_kwargs"], **about)
        if is_described_beside:
            (self.folder / DESCRIPTION_BESIDE).unlink()


def _rate(progress: float, warmup: float) -> float:
    """The learning rate as a fraction of the largest: it rises linearly, and falls as a cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))
