"""T-JEPA (arXiv 2410.05016) and SALT (arXiv 2509.24317) on real tables, against raw columns and an untrained encoder.

    python examples/pretraining/tables.py

Nothing is downloaded: the tables come with scikit-learn (``pip install "sb3-jepa[pretraining,plot]"``). Each seed has
its own split. What is pretrained, the statistics that standardise its columns and its linear probe see the training
rows alone. A run that is finished is not run again, and one that was interrupted goes on.
"""

import argparse
import os
import pathlib
import time
import warnings
from typing import Any

# Set before torch is imported
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch as th
from experiments import FinishedRuns, markdown_table, mean_and_seeds, values_of
from gymnasium import spaces

try:
    import matplotlib

    matplotlib.use("agg")

    import matplotlib.pyplot as plt
    from sklearn import datasets
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
except ImportError as error:
    raise ImportError(
        'This example needs scikit-learn and matplotlib: pip install "sb3-jepa[pretraining,plot]"'
    ) from error

from sb3_jepa import JepaExtractor, MaskedPrediction, Recordings, Salt, SaltTeacher, TJepa, pretrain, read_encoder
from sb3_jepa.diagnostics import effective_rank
from sb3_jepa.parts import embedding_variance
from sb3_jepa.pretrain import describe_encoder

TABLES = {"digits": datasets.load_digits, "breast_cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}
LABELS = {
    "raw": "raw columns",
    "untrained": "untrained encoder",
    "tjepa": "T-JEPA, 1 class token",
    "tjepa-0": "T-JEPA without class token",
    "tjepa-4": "T-JEPA, 4 class tokens",
    "salt-teacher": "SALT's teacher alone",
    "salt": "SALT",
}
CLASS_TOKENS = {"tjepa-0": 0, "tjepa-4": 4}
# SALT spends a third of its updates on the teacher
TEACHER_SHARE = 1 / 3
ENCODER: dict[str, Any] = dict(embed_dim=32, num_heads=2, output="mean")
PREDICTOR = dict(predictor_dim=16, predictor_depth=1, predictor_heads=2)
METRICS = {
    "accuracy_flat": "accuracy from all tokens",
    "accuracy_mean": "accuracy from their mean",
    "effective_rank": "effective rank of the mean",
    "embedding_variance": "variance across rows",
}


class Split:
    """
    A table in two halves, without the columns that are constant in the first.

    :param table: Name of the table
    :param seed: Of the split
    """

    def __init__(self, table: str, seed: int):
        rows, labels = TABLES[table](return_X_y=True)
        self.training, self.test, self.training_labels, self.test_labels = train_test_split(
            rows.astype(np.float32), labels, test_size=0.3, stratify=labels, random_state=seed
        )
        varies = self.training.std(axis=0) > 0
        self.training, self.test = self.training[:, varies], self.test[:, varies]

    @property
    def recordings(self) -> Recordings:
        """The training rows, each an episode of its own."""
        space = spaces.Box(-np.inf, np.inf, self.training.shape[1:], np.float32)
        return Recordings(space, self.training, np.arange(len(self.training)))


def accuracy(training: np.ndarray, test: np.ndarray, split: Split) -> float:
    """
    Of a linear probe.

    :param training: What is known of the training rows, ``(rows, features)``
    :param test: The same of the test rows
    :param split: Has the labels
    :return: The share of test rows that it gets right. The strength of its ridge penalty is chosen on training rows.
    """
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-2, 5, 15)))
    return float(probe.fit(training, split.training_labels).score(test, split.test_labels))


@th.no_grad()
def measure(encoder: JepaExtractor, split: Split) -> dict[str, float]:
    """
    :param encoder: Pretrained or not
    :param split: Rows and labels
    :return: What its tokens are worth, on test rows
    """
    training, test = (encoder.encode_tokens(th.as_tensor(rows)) for rows in (split.training, split.test))
    # Class tokens say nothing of a column of their own
    of_columns = [tokens[:, encoder.encoder.class_tokens :].mean(dim=1) for tokens in (training, test)]
    return dict(
        accuracy_flat=accuracy(training.flatten(1).numpy(), test.flatten(1).numpy(), split),
        accuracy_mean=accuracy(of_columns[0].numpy(), of_columns[1].numpy(), split),
        effective_rank=float(effective_rank(of_columns[1] - of_columns[1].mean(dim=0))),
        embedding_variance=float(embedding_variance(test.flatten(1))),
    )


def untrained_encoder(split: Split, seed: int) -> JepaExtractor:
    """
    :param split: Its training rows are what inputs are standardised by
    :param seed: Of its parameters
    """
    th.manual_seed(seed)
    encoder = JepaExtractor(split.recordings.observation_space, **ENCODER)
    encoder.measure_inputs(th.as_tensor(split.training))
    return encoder.eval()


def pretrained_encoder(split: Split, arm: str, seed: int, n_updates: int, folder: pathlib.Path) -> JepaExtractor:
    """
    :param split: Its training rows are what is learned from
    :param arm: One of those that learn
    :param seed: Of the pretraining
    :param n_updates: Of both stages together
    :param folder: Where to keep it
    """

    def learn(objective_class: type[MaskedPrediction], stage: str, n_updates: int, **kwargs: Any) -> pathlib.Path:
        return pretrain(
            split.recordings,
            folder / stage,
            objective_class,
            dict(PREDICTOR, **kwargs),
            dict(ENCODER, class_tokens=CLASS_TOKENS.get(arm, 1)),
            n_updates=n_updates,
            batch_size=64,
            eval_freq=max(1, n_updates // 5),
            seed=seed,
            device="cpu",
        )

    if not arm.startswith("salt"):
        return read_encoder(learn(TJepa, arm, n_updates))
    n_of_teacher = round(TEACHER_SHARE * n_updates)
    teacher = read_encoder(learn(SaltTeacher, "salt-teacher", n_of_teacher))
    return (
        teacher if arm == "salt-teacher" else read_encoder(learn(Salt, arm, n_updates - n_of_teacher, teacher=teacher))
    )


def run(table: str, arm: str, seed: int, n_updates: int, folder: pathlib.Path) -> dict[str, Any]:
    """One run: its row of results."""
    start, split = time.perf_counter(), Split(table, seed)
    kept_at: int | None = None
    if arm == "raw":
        both = accuracy(split.training, split.test, split)
        metrics = dict.fromkeys(METRICS, float("nan")) | dict(accuracy_flat=both)
    elif arm == "untrained":
        metrics = measure(untrained_encoder(split, seed), split)
    else:
        folder = folder / table / f"seed{seed}"
        metrics = measure(pretrained_encoder(split, arm, seed, n_updates, folder), split)
        kept_at = describe_encoder(folder / arm)["n_updates"]
    seconds = round(time.perf_counter() - start, 1)
    return dict(table=table, arm=arm, seed=seed, updates=n_updates, **metrics, kept_at=kept_at, seconds=seconds)


def report(rows: list[dict[str, str]], out: pathlib.Path) -> str:
    """Write table and figure of all rows that are there; the table is returned."""
    tables = [name for name in TABLES if any(row["table"] == name for row in rows)]
    lines = []
    figure, grid = plt.subplots(
        2, len(tables), squeeze=False, sharey="row", figsize=(4 * len(tables), 6), layout="constrained"
    )
    for table, axes_of_table in zip(tables, grid.T, strict=True):
        arms = [arm for arm in LABELS if any((row["table"], row["arm"]) == (table, arm) for row in rows)]
        for index, arm in enumerate(arms):
            values = {column: values_of(rows, column, table=table, arm=arm) for column in METRICS}
            cells = [_cell(values[column], column) for column in METRICS]
            lines.append([table, LABELS[arm], *cells])
            for axes, column in zip(axes_of_table, ("accuracy_flat", "accuracy_mean"), strict=True):
                axes.scatter([index] * len(values[column]), values[column], color=f"C{index}", s=15)
                axes.bar(index, values[column].mean(), color=f"C{index}", alpha=0.4)
        for axes, column in zip(axes_of_table, ("accuracy_flat", "accuracy_mean"), strict=True):
            axes.set_title(f"{table}: {METRICS[column]}", fontsize="medium")
            axes.set_xlim(-0.6, len(arms) - 0.4)
            axes.set_ylim(0.75, 1.01)
            axes.set_xticks([])
        axes_of_table[1].set_xticks(range(len(arms)), [LABELS[arm] for arm in arms], rotation=90, fontsize="small")
    figure.savefig(out / "tables.png", dpi=80)
    plt.close(figure)
    text = markdown_table(["table", "arm", *METRICS.values()], lines)
    (out / "tables.md").write_text(text)
    return text


def _cell(values: np.ndarray, column: str) -> str:
    if np.isnan(values).all():
        return ""
    return mean_and_seeds(values, 1 if column == "effective_rank" else 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--arms", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=400, help="of each pretraining (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/pretraining/tables"), help="encoders")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pretraining"), help="results")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    # 1,024 rows are more than some tables have
    warnings.filterwarnings("ignore", message="The .* observations that the input statistics still lack")
    runs = FinishedRuns(arguments.out / "tables.csv", ("table", "arm", "seed", "updates"))
    for seed in arguments.seeds:
        for table in arguments.tables:
            for arm in arguments.arms:
                settings = dict(table=table, arm=arm, seed=seed)
                if not runs.has(**settings, updates=arguments.updates):
                    runs.add(**run(**settings, n_updates=arguments.updates, folder=arguments.folder))
    finished = [row for row in runs.rows if row["updates"] == str(arguments.updates)]
    print(report(finished, arguments.out))


if __name__ == "__main__":
    main()
