"""
What an encoder of LiDAR sweeps knows of the streets that it has seen without labels, and what each part of AD-L-JEPA
is good for.

    python examples/lidar/street.py --folder build/streets --n-sweeps 3000
    python examples/lidar/street.py --folder build/held_out --seed 1 --n-sweeps 500
    python examples/lidar/street_probe.py --seeds 0 1 2 3 4
    python examples/lidar/street_probe.py --table
    python examples/lidar/street_probe.py --speed
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from street import CLASSES, Street
from torch import nn
from torch.nn import functional as F

from sb3_jepa import BevPrediction, LidarExtractor, pretrain
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.data import read_sweeps
from sb3_jepa.diagnostics import effective_rank
from sb3_jepa.diagnostics.probes import ridge_predictions
from sb3_jepa.extractors.files import read_encoder
from sb3_jepa.objectives import Objective, ObjectiveInput, ObjectiveOutput
from sb3_jepa.parts.bev import BevGrid
from sb3_jepa.parts.targets import TargetEncoder

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pixel_runs import bootstrap_interval

# Above the ground, which lies 1.8 m below the sensor
RANGE = (-16.0, 16.0, -16.0, 16.0, -1.6, 1.6)
EXTRACTOR: dict[str, Any] = dict(range=RANGE, cell=0.5, z_bins=4, halvings=1)
ARMS: dict[str, dict[str, Any]] = {
    "random": {},
    "ad-l-jepa": {},
    "beta-1": dict(hinge_coef=1.0),
    "no-hinge": dict(hinge_coef=0.0),
    "no-empty-cells": dict(empty_mask_ratio=0.0),
    "no-empty-token": dict(empty_token=False),
    "occupancy": {},
    "wide": {},
    "wide-no-hinge": dict(hinge_coef=0.0),
}
N_LABELS = (100, 400, 1_600)
N_LABELLED_SWEEPS = (5, 20, 80)
N_CLASSES = len(CLASSES) - 1


class OccupancyReconstruction(Objective):
    """
    *Occupancy-MAE*'s idea: from the cells that are seen, a decoder of three dimensions reconstructs which voxels are
    occupied.

    :param encoder: A :class:`~sb3_jepa.LidarExtractor` with one halving
    :param embed_dim: Width of its features
    :param action_dim: Not used
    :param mask_ratio: Which share of the occupied cells is hidden
    """

    def __init__(self, encoder: Any, embed_dim: int, action_dim: int = 0, mask_ratio: float = 0.5):
        super().__init__(encoder, embed_dim, target_encoder=TargetEncoder(nn.Identity()))
        self.mask_ratio, self.z_bins = mask_ratio, encoder.grid.z_bins
        self.n_layers = max(1, self.z_bins // 2)
        channels = encoder.cell_encoder.cell_dim // self.n_layers
        self.decoder = nn.Sequential(
            nn.ConvTranspose3d(channels, 16, 2, stride=2),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv3d(16, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv3d(16, 1, 3, padding=1),
        )

    def prediction_output(self, batch: ObjectiveInput) -> ObjectiveOutput:
        encoder: Any = batch.encoder
        bev = encoder.bev(batch.observations)
        occupied = encoder.cell_encoder.occupied(bev)
        hidden = occupied * (th.rand_like(occupied) < self.mask_ratio)
        cells = encoder.cell_encoder(bev.shown(1.0 - hidden)).cells
        logits = self.decoder(cells.unflatten(1, (-1, self.n_layers)))[:, 0]
        voxels = bev.cells.unflatten(1, (self.z_bins, -1))[:, :, 0]
        return ObjectiveOutput(F.binary_cross_entropy_with_logits(logits, voxels), {})


class Labelled:
    """
    Sweeps of which is known what each cell holds.

    :param folder: As ``street.py`` has written it
    :param device: Where tensors are put
    """

    def __init__(self, folder: pathlib.Path, device: str):
        self.sweeps = read_sweeps(folder / "velodyne")
        with np.load(folder / "labels.npz") as file:
            labels = th.as_tensor(file["labels"])
        grid = BevGrid(RANGE, EXTRACTOR["cell"] * 2 ** EXTRACTOR["halvings"], n_further=N_CLASSES, z_bins=1)
        classes = []
        for rows in np.array_split(np.arange(len(self.sweeps)), max(1, len(self.sweeps) // 50)):
            # All but the ground, which is no class here
            of_points = F.one_hot(labels[rows].long().clamp(min=0), len(CLASSES)).float()
            points = th.as_tensor(self.sweeps.take(rows)[..., :3]).clone()
            points[labels[rows] <= 0] = th.nan
            bev = grid(th.cat((points, of_points[..., 1:]), dim=2))
            # What most of a cell's points are of; -1 where there are none
            of_cells = bev.cells[:, 4:].argmax(dim=1)
            classes.append(th.where(bev.occupied[:, 0] > 0, of_cells, -1))
        self.classes, self.device = th.cat(classes).to(device), device

    def observations(self, rows: np.ndarray) -> th.Tensor:
        """
        :param rows: Numbers of sweeps
        :return: Their points
        """
        return th.as_tensor(self.sweeps.take(rows)).to(self.device)


def balanced_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """
    :param predicted: Classes
    :param true: Classes
    :return: Mean over the classes of the share that is right
    """
    return float(np.mean([(predicted[true == one] == one).mean() for one in np.unique(true)]))


@th.no_grad()
def embed(encoder: Any, labelled: Labelled) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    :param encoder: That is looked at
    :param labelled: Sweeps
    :return: Of each sweep, embeddings of the cells that hold something, and their classes
    """
    result = []
    for rows in np.array_split(np.arange(len(labelled.sweeps)), max(1, len(labelled.sweeps) // 25)):
        cells = encoder.cell_encoder(encoder.bev(labelled.observations(rows))).cells.movedim(1, 3)
        for of_sweep, classes in zip(cells, labelled.classes[rows], strict=True):
            result.append((of_sweep[classes >= 0].cpu().double().numpy(), classes[classes >= 0].cpu().numpy()))
    return result


def probe(embedded: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """
    :param embedded: As of :func:`embed`: the first half is learned from, the second is held out
    :return: Balanced accuracy of ridge regression from as many labelled cells, the mean of ten draws
    """
    half = len(embedded) // 2
    x, y = (np.concatenate(part) for part in zip(*embedded[:half], strict=True))
    held_x, held_y = (np.concatenate(part) for part in zip(*embedded[half:], strict=True))
    result = {}
    for n_labels in N_LABELS:
        scores = []
        for draw in range(10):
            rows = np.random.default_rng(draw).permutation(len(x))[:n_labels]
            inputs, targets = np.concatenate([x[rows], held_x]), np.zeros((n_labels + len(held_x), N_CLASSES))
            # Each class weighs as much as any other, as it does in what is measured
            targets[np.arange(n_labels), y[rows]] = 1.0
            share = targets[:n_labels].mean(axis=0)
            predicted = ridge_predictions(inputs, targets, np.arange(len(inputs)) >= n_labels, penalty=1e-2)
            scores.append(balanced_accuracy((predicted / np.sqrt(share + 1e-3)).argmax(axis=1), held_y))
        result[f"probe_{n_labels}"] = float(np.mean(scores))
    return result


def fine_tune(encoder: Any, labelled: Labelled, n_sweeps: int, seed: int, n_updates: int = 300) -> float:
    """
    :param encoder: Where it begins
    :param labelled: Sweeps: the first half is learned from, the second is held out
    :param n_sweeps: How many labelled sweeps there are
    :param seed: Which ones
    :param n_updates: How often it learns
    :return: Balanced accuracy on cells of held-out sweeps
    """
    half = len(labelled.sweeps) // 2
    rows = np.random.default_rng(seed).permutation(half)[:n_sweeps]
    head = nn.Conv2d(encoder.cell_encoder.cell_dim, N_CLASSES, 1).to(labelled.device)
    parameters = [*encoder.cell_encoder.parameters(), *head.parameters()]
    optimizer = th.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    counts = th.bincount(labelled.classes[rows][labelled.classes[rows] >= 0], minlength=N_CLASSES).float()
    weights = 1.0 / counts.clamp(min=1.0)
    points = labelled.observations(rows)
    for _ in range(n_updates):
        chosen = th.randint(n_sweeps, (16,))
        logits = head(encoder.cell_encoder(encoder.bev(points[chosen])).cells)
        loss = F.cross_entropy(logits, labelled.classes[rows][chosen], weights, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted, true = [], []
    with th.no_grad():
        for part in np.array_split(np.arange(half, 2 * half), max(1, half // 25)):
            classes = labelled.classes[part]
            found = head(encoder.cell_encoder(encoder.bev(labelled.observations(part))).cells).argmax(dim=1)
            predicted.append(found[classes >= 0].cpu().numpy())
            true.append(classes[classes >= 0].cpu().numpy())
    return balanced_accuracy(np.concatenate(predicted), np.concatenate(true))


def run(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """
    :param arm: Name
    :param seed: Seed
    :param arguments: Of the command line
    :return: What was measured
    """
    labelled = Labelled(arguments.held_out, arguments.device)
    kwargs = dict(EXTRACTOR, cell_dim=256 if arm.startswith("wide") else 64)
    folder = arguments.folder / arm / f"encoder{seed}"
    seconds = 0.0
    if arm == "random":
        with isolated_random_numbers(seed):
            encoder: Any = LidarExtractor(labelled.sweeps.observation_space, **kwargs)
        th.manual_seed(seed)
    else:
        start = time.perf_counter()
        file = pretrain(
            read_sweeps(arguments.sweeps / "velodyne"),
            folder,
            OccupancyReconstruction if arm == "occupancy" else BevPrediction,
            objective_kwargs=ARMS[arm],
            features_extractor_kwargs=kwargs,
            n_updates=arguments.updates,
            batch_size=32,
            learning_rate=arguments.learning_rate,
            weight_decay=0.01,
            # The last encoder is kept, whatever it is worth
            eval_freq=arguments.updates,
            features_extractor_class=LidarExtractor,
            criterion="validation_loss" if arm == "occupancy" else None,
            seed=seed,
            device=arguments.device,
        )
        seconds = time.perf_counter() - start
        encoder = read_encoder(file)
    encoder = encoder.to(arguments.device)
    embedded = embed(encoder, labelled)
    cells = F.normalize(th.as_tensor(np.concatenate([part for part, _ in embedded])), dim=1)
    result: dict[str, Any] = dict(probe(embedded), seconds=seconds, deviation=float(cells.std(dim=0).mean()))
    result["effective_rank"] = float(effective_rank(cells.float()))
    start_state = {name: value.clone() for name, value in encoder.state_dict().items()}
    for n_sweeps in N_LABELLED_SWEEPS:
        encoder.load_state_dict(start_state)
        result[f"fine_tuned_{n_sweeps}"] = fine_tune(encoder.train(), labelled, n_sweeps, seed)
    return result


def measure_speed(device: str, n_updates: int = 10) -> None:
    """
    Print how fast prediction and reconstruction learn, and what memory they take.

    :param device: Of PyTorch
    :param n_updates: How many are timed
    """
    street = Street()
    points = th.as_tensor(np.stack([street.sweep()[0] for _ in range(16)])).to(device)
    space = spaces.Box(-np.inf, np.inf, tuple(points.shape[1:]), np.float32)
    print("| map | objective | ms per update | memory, MB |\n|---|---|---|---|")
    for cell, z_bins in ((0.5, 4), (0.25, 16), (0.125, 32)):
        for objective_class in (BevPrediction, OccupancyReconstruction):
            encoder = LidarExtractor(space, **dict(EXTRACTOR, cell=cell, z_bins=z_bins)).to(device)
            objective: Any = objective_class(encoder, encoder.features_dim).to(device)
            batch = ObjectiveInput(encoder, points)
            if device == "cuda":
                th.cuda.reset_peak_memory_stats()
            for update in range(n_updates + 2):
                if update == 2:
                    start = time.perf_counter()
                objective(batch).loss.backward()
                if device == "cuda":
                    th.cuda.synchronize()
            milliseconds = 1e3 * (time.perf_counter() - start) / n_updates
            memory = th.cuda.max_memory_allocated() / 1e6 if device == "cuda" else float("nan")
            rows, columns = encoder.map_shape
            name = objective_class.__name__
            print(f"| {rows} x {columns} x {z_bins} | {name} | {milliseconds:.1f} | {memory:.0f} |", flush=True)


def print_table(folder: pathlib.Path) -> None:
    """
    :param folder: Of results
    """
    names = [f"probe_{n}" for n in N_LABELS] + [f"fine_tuned_{n}" for n in N_LABELLED_SWEEPS]
    names += ["deviation", "effective_rank", "seconds"]
    print(f"| arm | {' | '.join(names)} | seeds |\n|{'---|' * (len(names) + 2)}")
    for arm in ARMS:
        runs = [json.loads(path.read_text()) for path in sorted((folder / arm).glob("seed*.json"))]
        if not runs:
            continue
        texts = []
        for name in names:
            values = np.array([one[name] for one in runs])
            low, high = bootstrap_interval(values, lambda resampled: resampled.mean(axis=-1))
            digits = 1 if name in ("effective_rank", "seconds") else 3
            texts.append(f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        print(f"| {arm} | {' | '.join(texts)} | {len(runs)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sweeps", type=pathlib.Path, default=pathlib.Path("build/streets"))
    parser.add_argument("--held-out", type=pathlib.Path, default=pathlib.Path("build/held_out"))
    parser.add_argument("--updates", type=int, default=1_500)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/street"))
    parser.add_argument("--table", action="store_true", help="print what was measured")
    parser.add_argument("--speed", action="store_true", help="measure how fast prediction and reconstruction learn")
    arguments = parser.parse_args()
    if arguments.table:
        return print_table(arguments.folder)
    if arguments.speed:
        return measure_speed(arguments.device)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            file = arguments.folder / arm / f"seed{seed}.json"
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            result = run(arm, seed, arguments)
            file.write_text(json.dumps(result))
            print(arm, seed, {name: round(value, 3) for name, value in result.items()}, flush=True)


if __name__ == "__main__":
    main()
