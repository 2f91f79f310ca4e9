"""
What actions do to a representation: scikit-learn's handwritten digits, turned or seen through a window.

    pip install -e ".[pretraining]"
    python examples/sequences/digits.py --seeds 0 1 2 3 4

The four arms of *seq-JEPA*'s table 3: aggregator and predictor are told the actions, or only one of them, or none.
Measured on images that nothing was learned from: how well the action between two views can be read from their
embeddings (R² of a linear probe and of an MLP), the digit from the aggregate and from a single view (accuracy of a
logistic regression), and from the aggregate the way from the first view to the last (path integration).
"""

import argparse
import json
import pathlib
import shutil
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch as th
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa import SequencePrediction, pretrain, read_encoder
from sb3_jepa.data import HistoryRecordings, transformed_views
from sb3_jepa.diagnostics import sequence_probes
from sb3_jepa.extractors.preprocessing import preprocess

LENGTH, N_TEST = 3, 397
# To learn from; and of each part to measure on
N_SEQUENCES, N_MEASURED = 10_000, 4_000
# Of the extractor, and of the objective
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "without-actions-in-aggregator": (dict(action_embed_dim=0), {}),
    "without-action-in-predictor": ({}, dict(predict_with_action=False)),
    "without-actions": (dict(action_embed_dim=0), dict(predict_with_action=False)),
}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """
    :return: Images ``(1797, 24, 24)`` and the digits on them
    """
    images, labels = load_digits(return_X_y=True)
    small = th.as_tensor(images, dtype=th.float32).view(-1, 1, 8, 8) * (255.0 / 16.0)
    large = th.nn.functional.interpolate(small, (20, 20), mode="bilinear", align_corners=False)
    return th.nn.functional.pad(large, (2, 2, 2, 2)).round().to(th.uint8)[:, 0].numpy(), labels


def embed(encoder: Any, images: np.ndarray, transformation: str, seed: int) -> dict[str, np.ndarray]:
    """
    :param encoder: What has learned
    :param images: To be transformed
    :param transformation: How
    :param seed: Seed of the views
    :return: Of sequences, with full histories: embeddings of views and aggregates, actions, ways and numbers of images
    """
    recordings, of_sequence, parameters = transformed_views(
        images, transformation, n_views=LENGTH, n_sequences=min(N_MEASURED, N_SEQUENCES), seed=seed
    )
    histories = HistoryRecordings(recordings, LENGTH)
    last = np.arange(LENGTH - 1, len(histories), LENGTH)
    tensors = obs_as_tensor(histories.take(last), th.device("cpu"))
    inputs = preprocess(tensors, histories.observation_space, True, [encoder])
    with th.no_grad():
        views = encoder.embed_views(inputs)
        aggregates = encoder.aggregator(views, inputs["actions"], inputs["is_real"])
    way = parameters[last] - parameters[last - LENGTH + 1]
    if transformation == "rotation":
        way = np.concatenate([np.sin(way), np.cos(way)], axis=1)
    return dict(
        views=views.numpy(),
        aggregates=aggregates.numpy(),
        actions=inputs["actions"].numpy(),
        displacements=way,
        image=of_sequence,
    )


def accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """How often a logistic regression is right, in percent."""
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=300).fit((train - mean) / deviation, train_labels)
    return 100 * float(model.score((test - mean) / deviation, test_labels))


def run(arm: str, transformation: str, seed: int, n_updates: int, objective: dict[str, Any]) -> dict[str, Any]:
    """
    :param arm: Name
    :param transformation: Of the views
    :param seed: Of encoder, views and split
    :param n_updates: Number of updates
    :param objective: Keyword arguments of the objective
    :return: What was measured
    """
    images, labels = digits()
    order = np.random.default_rng(seed).permutation(len(images))
    train, test = order[N_TEST:], order[:N_TEST]
    extractor_kwargs, objective_kwargs = ARMS[arm]
    recordings, _, _ = transformed_views(
        images[train], transformation, n_views=LENGTH + 1, n_sequences=N_SEQUENCES, seed=seed
    )
    folder, start = pathlib.Path(tempfile.mkdtemp()), time.process_time()
    try:
        pretrain(
            HistoryRecordings(recordings, LENGTH),
            folder,
            SequencePrediction,
            dict(objective, **objective_kwargs),
            dict(view_extractor_kwargs=dict(patch_size=6), order_code=False, **extractor_kwargs),
            n_updates=n_updates,
            eval_freq=n_updates,
            seed=seed,
            device="cpu",
        )
        encoder = read_encoder(folder)
    finally:
        shutil.rmtree(folder)
    seconds = time.process_time() - start
    of_train, of_test = (
        embed(encoder, images[part], transformation, 1_000 + seed + number) for number, part in enumerate((train, test))
    )
    both = {name: np.concatenate([of_train[name], of_test[name]]) for name in of_train}
    is_held_out = np.arange(len(both["views"])) >= len(of_train["views"])
    image = both.pop("image")
    probes = sequence_probes(**both, is_held_out=is_held_out, with_mlp=True)
    of_labels = labels[train][image[~is_held_out]], labels[test][image[is_held_out]]
    accuracies = {
        name: accuracy(array[~is_held_out], of_labels[0], array[is_held_out], of_labels[1])
        for name, array in (("aggregate", both["aggregates"]), ("view", both["views"][:, -1]))
    }
    return dict(probes=probes, accuracies=accuracies, cpu_seconds=seconds, n_updates=n_updates)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformations", nargs="+", choices=("rotation", "position"), default=["rotation"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--n-updates", type=int, default=2_000)
    parser.add_argument("--objective", default="{}", help="keyword arguments of the objective, as JSON")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/sequences/digits"))
    options = parser.parse_args()
    th.set_num_threads(1)
    for transformation in options.transformations:
        for seed in options.seeds:
            for arm in options.arms:
                path = options.folder / transformation / arm / f"seed{seed}.json"
                if path.is_file():
                    continue
                result = run(arm, transformation, seed, options.n_updates, json.loads(options.objective))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(result, indent=1))
                print(f"{transformation} {arm} {seed}: {result}", flush=True)


if __name__ == "__main__":
    main()
