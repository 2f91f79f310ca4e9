"""Does a frozen teacher beat a momentum encoder at equal cost (SALT, arXiv 2509.24317)?

    python examples/pretraining/salt.py

All arms have as many updates, those of the teacher included. They learn from clips in which a glyph moves, and from
frames of CartPole. On observations that none of them has seen, a linear probe reads the shape and the direction of the
glyph, and CartPole's state; its inputs are the mean tokens of each point in time. A second experiment trains several
encoders with one teacher, and others with a momentum encoder: does the loss tell which of them knows most? What the
results hold is kept and not run again.
"""

import argparse
import os
import pathlib
import time
from typing import Any

# Before PyTorch: small matrices are multiplied fastest by one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch as th
from experiments import FinishedRuns, draw_arms, markdown
from salt_tasks import VARIABLES, Task, cartpole, glyphs

from sb3_jepa import JepaExtractor, MaskedPrediction, Salt, SaltTeacher, pretrain, read_encoder
from sb3_jepa.objectives.salt import SALT_BLOCKS
from sb3_jepa.pretrain import describe_encoder

PREDICTOR: dict[str, Any] = dict(predictor_dim=24, predictor_depth=1, predictor_heads=2)
# What SALT is compared with: it has the same masks and the same loss, and only its targets are others. In so short a
# training, a momentum of 0.996 would keep the target encoder near its start.
MOMENTUM: dict[str, Any] = dict(
    mask_kwargs=SALT_BLOCKS, prediction_loss="l1", normalize_targets=True, momentum=(0.99, 1.0)
)
# Which part of the updates is the teacher's
TEACHER_SHARES = {"SALT 1/10": 0.1, "SALT 1/4": 0.25, "SALT 1/2": 0.5}
ARMS = ("random init", "momentum", *TEACHER_SHARES, "pixels only")
# Encoders that learn from one teacher
STUDENTS: dict[str, dict[str, Any]] = {
    "lr 1e-4": dict(learning_rate=1e-4),
    "lr 3e-4": dict(learning_rate=3e-4),
    "lr 1e-3": dict(learning_rate=1e-3),
    "lr 3e-3": dict(learning_rate=3e-3),
    "lr 1e-2": dict(learning_rate=1e-2),
    "width 16": dict(embed_dim=16),
    "width 64": dict(embed_dim=64),
    "depth 1": dict(depth=1),
}
METRICS = {"glyphs": ["shape", "direction"], "cartpole": VARIABLES}


class Experiment:
    """
    The pretrainings of a task and what is measured of them.

    :param task: What is learned from, and probed
    :param name: Of the task
    :param folder: Where the pretrainings are kept
    :param runs: Where their results are
    """

    def __init__(self, task: Task, name: str, folder: pathlib.Path, runs: FinishedRuns):
        self.task, self.name, self.folder, self.runs = task, name, folder / name, runs

    def pretrain(
        self,
        name: str,
        seed: int,
        n_updates: int,
        objective_class: type[MaskedPrediction],
        learning_rate: float = 3e-3,
        teacher: JepaExtractor | None = None,
        **extractor: Any,
    ) -> pathlib.Path:
        """
        :param name: Of the pretraining
        :param seed: Of the encoder, the masks and the order
        :param n_updates: Number of updates
        :param objective_class: What it learns
        :param learning_rate: The largest one
        :param teacher: Of :class:`~sb3_jepa.Salt`
        :param extractor: What is different in this encoder
        :return: Its folder
        """
        folder = self.folder / f"{name}-{n_updates}".replace("/", "_") / f"seed{seed}"
        kwargs = MOMENTUM if objective_class is MaskedPrediction else {}
        if teacher is not None:
            kwargs = dict(teacher=teacher)
        pretrain(
            self.task.recordings,
            folder,
            objective_class,
            dict(PREDICTOR, **kwargs),
            dict(self.task.extractor, **extractor),
            n_updates=n_updates,
            batch_size=64,
            learning_rate=learning_rate,
            # Measure the last encoder, and not the best one
            eval_freq=n_updates,
            seed=seed,
            device="cpu",
        )
        return folder

    def teacher(self, share: float, seed: int, n_updates: int) -> pathlib.Path:
        """
        :param share: Which part of the updates it has
        :param seed: Of the encoder, the masks and the order
        :param n_updates: Of the teacher and of its student together
        :return: Its folder
        """
        return self.pretrain("teacher", seed, round(share * n_updates), SaltTeacher)

    def measure(self, folder: pathlib.Path) -> dict[str, Any]:
        """
        :param folder: Of a pretraining
        :return: What is measured of its encoder, and what the file of the encoder says
        """
        about = describe_encoder(folder)
        measured: dict[str, Any] = self.task.measure(read_encoder(folder))
        measured["validation_loss"] = float(about["validation_loss"])
        return dict(measured, teacher=about["teacher"] or "")

    def run_arm(self, arm: str, seed: int, n_updates: int) -> None:
        """
        :param arm: One of :data:`ARMS`
        :param seed: Of the encoder, the masks and the order
        :param n_updates: Number of updates
        """
        run = dict(task=self.name, arm=arm, seed=seed, updates=n_updates)
        if self.runs.has(**run):
            return
        start = time.process_time()
        encoder = self._untrained(seed)
        if arm == "random init":
            self.runs.add(**run, **self.task.measure(encoder))
            return
        if arm == "momentum":
            folder = self.pretrain(arm, seed, n_updates, MaskedPrediction)
            # The encoder's file holds the momentum encoder
            encoder.load_state_dict(th.load(folder / "checkpoint.pth", weights_only=True)["encoder"])
            self.runs.add(**{**run, "arm": "momentum, context encoder"}, **self.task.measure(encoder))
        elif arm == "pixels only":
            folder = self.pretrain(arm, seed, n_updates, SaltTeacher)
        else:
            of_teacher = self.teacher(TEACHER_SHARES[arm], seed, n_updates)
            self.runs.add(**{**run, "arm": f"{arm}, its teacher"}, **self.measure(of_teacher))
            n_left = n_updates - round(TEACHER_SHARES[arm] * n_updates)
            folder = self.pretrain(arm, seed, n_left, Salt, teacher=read_encoder(of_teacher))
        self.runs.add(**run, **self.measure(folder), seconds=round(time.process_time() - start, 1))

    def _untrained(self, seed: int) -> JepaExtractor:
        th.manual_seed(seed)
        recordings = self.task.recordings
        encoder = JepaExtractor(recordings.observation_space, **self.task.extractor)
        encoder.measure_inputs(th.as_tensor(recordings.take(np.arange(min(1_024, len(recordings))))))
        return encoder

    def run_student(self, student: str, n_updates: int, has_teacher: bool) -> None:
        """
        :param student: One of :data:`STUDENTS`
        :param n_updates: Of the teacher and of its student together
        :param has_teacher: Whether it learns from the teacher that all have in common, and not from its momentum copy
        """
        kind = "frozen teacher" if has_teacher else "momentum"
        run = dict(kind=kind, arm=student, seed=0, updates=n_updates)
        if self.runs.has(**run):
            return
        n_left = n_updates - round(0.25 * n_updates)
        if has_teacher:
            teacher = read_encoder(self.teacher(0.25, 0, n_updates))
            folder = self.pretrain(f"student {student}", 0, n_left, Salt, teacher=teacher, **STUDENTS[student])
        else:
            folder = self.pretrain(f"momentum {student}", 0, n_left, MaskedPrediction, **STUDENTS[student])
        self.runs.add(**run, **self.measure(folder))


def correlation(a: pd.Series, b: pd.Series) -> str:
    """
    :param a: Numbers
    :param b: Numbers
    :return: R² of the straight line, and whether it rises; nothing if there is none
    """
    if a.nunique() < 2 or b.nunique() < 2:
        return ""
    r = float(np.corrcoef(a, b)[0, 1])
    return f"{r**2:.2f} ({'rising' if r > 0 else 'falling'})"


def report_students(runs: FinishedRuns, n_updates: int) -> str:
    """
    :param runs: Of :meth:`Experiment.run_student`
    :param n_updates: Of the runs to report
    :return: What each student knows, and how well its loss and its rank tell that
    """
    parts = []
    for kind, table in runs.table(updates=n_updates).groupby("kind"):
        columns = [*METRICS["glyphs"], "validation_loss", "effective_rank"]
        text = f"**{len(table)} encoders, {kind}**, trained with other learning rates or of other sizes"
        lines = [markdown(table, columns), "", "| R² of | shape | direction |", "|---|---|---|"]
        for measure in ("validation_loss", "effective_rank"):
            cells = [correlation(table[measure], table[metric]) for metric in METRICS["glyphs"]]
            lines.append(f"| {measure} | {' | '.join(cells)} |")
        parts += [text, "\n".join(lines)]
    return "\n\n".join(parts)


def report(
    runs: FinishedRuns, student_runs: FinishedRuns, tasks: list[str], n_updates: dict[str, int], folder: pathlib.Path
) -> str:
    """
    Write tables and a figure.

    :param runs: Of :meth:`Experiment.run_arm`
    :param student_runs: Of :meth:`Experiment.run_student`
    :param tasks: Names of the tasks
    :param n_updates: Of the runs to report, for each task
    :param folder: Where to write
    :return: The tables
    """
    parts = []
    panels = [(task, metric) for task in tasks for metric in (*METRICS[task], "effective_rank")]
    has_students = "glyphs" in tasks
    n_columns = 4
    n_rows = -(-(len(panels) + has_students) // n_columns)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=(20, 3.5 * n_rows), squeeze=False, layout="constrained")
    for axes, (task, metric) in zip(grid.flat, panels, strict=False):
        draw_arms(axes, runs.table(task=task, updates=n_updates[task]), metric, f"{task}: {metric}")
    for task in tasks:
        what = "accuracy" if task == "glyphs" else "R²"
        parts.append(
            f"**{task}**, {n_updates[task]} updates: {what} of the probe, mean over the seeds and each of them"
        )
        table = runs.table(task=task, updates=n_updates[task])
        parts.append(markdown(table, [*METRICS[task], "effective_rank", "validation_loss"]))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    if has_students:
        axes = grid.flat[len(panels)]
        axes.set_axis_on()
        for kind, table in student_runs.table(updates=n_updates["glyphs"]).groupby("kind"):
            axes.plot(table["validation_loss"], table["direction"], "o", label=kind)
        axes.set(xlabel="validation loss", ylabel="accuracy of the direction", title="glyphs: other encoders")
        axes.legend(frameon=False)
        parts.append(report_students(student_runs, n_updates["glyphs"]))
    text = "\n\n".join(parts)
    (folder / "salt.md").write_text(text + "\n")
    figure.savefig(folder / "salt.png", dpi=80)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--glyph-updates", type=int, default=400, help="of each arm (default: %(default)s)")
    parser.add_argument("--cartpole-updates", type=int, default=250, help="of each arm (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=4_000, help="to learn from (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=5_000, help="of CartPole (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/pretraining/salt"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pretraining"), help="results")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    n_updates = dict(glyphs=arguments.glyph_updates, cartpole=arguments.cartpole_updates)
    runs = FinishedRuns(arguments.out / "salt.csv", ("task", "arm", "seed", "updates"))
    student_runs = FinishedRuns(arguments.out / "salt_students.csv", ("kind", "arm", "seed", "updates"))
    for name in arguments.tasks:
        file = arguments.folder / f"cartpole-{arguments.frames}.npz"
        task = glyphs(arguments.clips) if name == "glyphs" else cartpole(arguments.frames, file)
        experiment = Experiment(task, name, arguments.folder, runs)
        for seed in arguments.seeds:
            for arm in arguments.arms:
                experiment.run_arm(arm, seed, n_updates[name])
        if name == "glyphs":
            students = Experiment(task, name, arguments.folder, student_runs)
            for student in arguments.students:
                students.run_student(student, n_updates[name], has_teacher=True)
                if "learning_rate" in STUDENTS[student]:
                    students.run_student(student, n_updates[name], has_teacher=False)
    print(report(runs, student_runs, arguments.tasks, n_updates, arguments.out))


if __name__ == "__main__":
    main()
