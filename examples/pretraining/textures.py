"""Do the targets of DMT-JEPA tell regions apart (arXiv 2405.17995)? Against I-JEPA, on textures or on flat colours.

    python examples/pretraining/textures.py
    python examples/pretraining/textures.py --regions flat

All arms learn from the same images with as many updates, and differ in their targets: the tokens of the momentum
encoder (I-JEPA), or what is made of those of their neighbours. Measured on images that none of them has seen: how much
more similar adjacent targets are within a region than across a border, and how well a linear probe reads the texture of
a patch from its token, also where two textures meet. Beside that, with nothing learned: what the neighbours make of
tokens that know their region. What the results hold is kept and not run again.
"""

import argparse
import os
import pathlib
import time
from typing import Any

# Before PyTorch: small matrices are multiplied fastest by one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from experiments import FinishedRuns, class_accuracy, draw_arms, markdown, markdown_table
from toys import IMAGE_SIZE, PATCH_SIZE, TEXTURES, as_recordings, flat_images, textured_images

from sb3_jepa import DmtJepa, JepaExtractor, MaskedPrediction, pretrain
from sb3_jepa.common.random_numbers import isolated_random_numbers
from sb3_jepa.diagnostics import effective_rank, similarity_gap
from sb3_jepa.objectives import ObjectiveInput
from sb3_jepa.parts import NeighborAggregation

# What fills the regions of an image
REGIONS = dict(textures=textured_images, flat=flat_images)
EXTRACTOR: dict[str, Any] = dict(embed_dim=32, patch_size=PATCH_SIZE, num_heads=2, output="mean", frames=1)
# In so short a training, a momentum of 0.996 would keep the target encoder near its start
OBJECTIVE: dict[str, Any] = dict(predictor_dim=24, predictor_depth=1, predictor_heads=2, momentum=(0.99, 1.0))
ARMS: dict[str, tuple[type[MaskedPrediction], dict[str, Any]]] = {
    "I-JEPA": (MaskedPrediction, {}),
    "DMT": (DmtJepa, {}),
    "DMT, mean": (DmtJepa, dict(target_transform_kwargs=dict(aggregation="mean"))),
    "DMT, mean of random": (
        DmtJepa,
        dict(target_transform_kwargs=dict(aggregation="mean", selection="random")),
    ),
    "DMT, random neighbours": (DmtJepa, dict(target_transform_kwargs=dict(selection="random"))),
    "DMT, all 8 neighbours": (DmtJepa, dict(target_transform_kwargs=dict(k=8))),
}
GRID = (IMAGE_SIZE // PATCH_SIZE, IMAGE_SIZE // PATCH_SIZE)
METRICS = [
    "target_gap",
    "centered_target_gap",
    "token_gap",
    "centered_token_gap",
    "probe",
    "border_probe",
    "target_rank",
    "token_rank",
]


class Measurement:
    """
    Images that are held out from the training, and what is measured on them.

    :param n_images: How many there are to fit probes to, and as many to measure on
    :param regions: One of :data:`REGIONS`
    """

    def __init__(self, n_images: int, regions: str):
        fitted, held_out = (REGIONS[regions](n_images, seed=seed) for seed in (101, 102))
        self.observations = th.as_tensor(np.concatenate([fitted.observations, held_out.observations]))
        of_images = [images.patch_textures() for images in (fitted, held_out)]
        self.textures, self.is_border = (np.concatenate(parts) for parts in zip(*of_images, strict=True))
        self.is_held_out = np.arange(2 * n_images) >= n_images

    def probes(self, tokens: th.Tensor) -> dict[str, float]:
        """
        :param tokens: ``(images, patches, dim)``
        :return: How often the texture of a patch is read, of all patches and of those at a border
        """
        is_held_out = np.repeat(self.is_held_out, self.textures.shape[1])
        rows, textures = tokens.flatten(0, 1).double().numpy(), self.textures.reshape(-1)
        return dict(
            probe=class_accuracy(rows, textures, is_held_out),
            border_probe=class_accuracy(rows, textures, is_held_out, self.is_border.reshape(-1)),
        )

    def measure(self, objective: MaskedPrediction) -> dict[str, float]:
        """
        :param objective: With the encoder as its target encoder
        :return: :data:`METRICS`
        """
        encoder = objective.target_encoder.encoder
        batches = self.observations.split(200)
        with th.no_grad(), isolated_random_numbers(0):
            targets = th.cat([objective.targets(ObjectiveInput(encoder, batch)) for batch in batches])
            tokens = th.cat([encoder.encode_tokens(batch)[:, 1:] for batch in batches])  # type: ignore[operator]
        held_out, regions = th.as_tensor(self.is_held_out), th.as_tensor(self.textures[self.is_held_out])
        targets = targets[held_out]
        gaps = {}
        for name, vectors in dict(target=targets, token=tokens[held_out]).items():
            gaps[f"{name}_gap"] = float(similarity_gap(vectors, regions, GRID))
            gaps[f"centered_{name}_gap"] = centered_gap(vectors, regions)
        return dict(
            **gaps,
            **self.probes(tokens),
            target_rank=float(effective_rank(targets.flatten(0, 1))),
            token_rank=float(effective_rank(tokens[held_out].flatten(0, 1))),
        )


def centered_gap(vectors: th.Tensor, regions: th.Tensor) -> float:
    """
    :param vectors: ``(images, patches, dim)``
    :param regions: Of each patch, ``(images, patches)``
    :return: The similarity gap without what all patches of an image have in common, which makes every cosine large and
        says nothing of any of them
    """
    return float(similarity_gap(vectors - vectors.mean(dim=1, keepdim=True), regions, GRID))


def gaps_of_known_regions(noise: float, n_images: int = 200) -> dict[str, float]:
    """
    What neighbours make of tokens that know their region: a direction for each region, plus noise. Nothing is learned.

    :param noise: Deviation of the noise, as a multiple of that of the directions
    :param n_images: Number of images
    :return: The centred similarity gap of the tokens, and of the mean of their most similar and of random neighbours
    """
    textures, _ = textured_images(n_images, seed=102).patch_textures()
    regions = th.as_tensor(textures)
    with isolated_random_numbers(0):
        tokens = th.randn(len(TEXTURES), 32)[regions] + noise * th.randn(*regions.shape, 32)
        gaps = {"tokens": centered_gap(tokens, regions)}
        for selection in ("similar", "random"):
            aggregation = NeighborAggregation(GRID, 32, aggregation="mean", selection=selection)
            gaps[f"{selection} neighbours"] = centered_gap(aggregation(tokens), regions)
    return gaps


def make_objective(arm: str, regions: str, seed: int, folder: pathlib.Path | None) -> MaskedPrediction:
    """
    :param arm: One of :data:`ARMS`
    :param regions: One of :data:`REGIONS`
    :param seed: Seed of its parameters
    :param folder: What it has learned; None for nothing
    :return: The objective, with the encoder as its target encoder
    """
    th.manual_seed(seed)
    recordings = as_recordings(REGIONS[regions](1024, seed=seed).observations)
    encoder = JepaExtractor(recordings.observation_space, **EXTRACTOR)
    objective_class, kwargs = ARMS[arm]
    objective = objective_class(encoder, encoder.features_dim, **OBJECTIVE, **kwargs)
    if folder is None:
        encoder.measure_inputs(th.as_tensor(recordings.observations))
        objective.target_encoder.copy_buffers(encoder)
    else:
        # The encoder's file has no objective
        objective.load_state_dict(th.load(folder / "checkpoint.pth", weights_only=True)["objective"])
    return objective.eval()


def run(
    arms: list[str],
    regions: str,
    seeds: list[int],
    n_images: int,
    n_updates: int,
    folder: pathlib.Path,
    runs: FinishedRuns,
) -> None:
    """
    Run what is not finished.

    :param arms: Of :data:`ARMS`
    :param regions: One of :data:`REGIONS`
    :param seeds: Seeds of the images, the encoder and the masks
    :param n_images: How many to learn from
    :param n_updates: Updates of each pretraining
    :param folder: Where the pretrainings are kept
    :param runs: Where their results are
    """
    measurement = Measurement(n_images // 8, regions)
    for seed in seeds:
        recordings = as_recordings(REGIONS[regions](n_images, seed=seed).observations)
        if not runs.has(arm="pixels", seed=seed, updates=0):
            encoder = make_objective("I-JEPA", regions, seed, None).target_encoder.encoder
            inputs = encoder.token_inputs(measurement.observations)  # type: ignore[operator]
            runs.add(arm="pixels", seed=seed, updates=0, **measurement.probes(inputs))
        for arm in arms:
            if not runs.has(arm=arm, seed=seed, updates=0):
                untrained = measurement.measure(make_objective(arm, regions, seed, None))
                runs.add(arm=arm, seed=seed, updates=0, **untrained)
            if not runs.has(arm=arm, seed=seed, updates=n_updates):
                objective_class, kwargs = ARMS[arm]
                here = folder / f"{arm}-{n_updates}" / f"seed{seed}"
                start = time.process_time()
                pretrain(
                    recordings,
                    here,
                    objective_class,
                    dict(OBJECTIVE, **kwargs),
                    EXTRACTOR,
                    n_updates=n_updates,
                    batch_size=64,
                    learning_rate=3e-3,
                    # Measure the last encoder, and not the best one
                    eval_freq=n_updates,
                    seed=seed,
                    device="cpu",
                )
                measured = measurement.measure(make_objective(arm, regions, seed, here))
                runs.add(
                    arm=arm, seed=seed, updates=n_updates, **measured, seconds=round(time.process_time() - start, 1)
                )


def report(runs: FinishedRuns, n_updates: int, path: pathlib.Path) -> str:
    """
    Write a table and a figure.

    :param runs: What is finished
    :param n_updates: Of the runs in the figure
    :param path: Of the table and the figure, without an ending
    :return: The table
    """
    table = runs.table()
    is_pixels = table["arm"] == "pixels"
    parts = ["Mean over the seeds, and each of them. Without updates, the encoder of all arms is the same."]
    for number, rows in table[~is_pixels].groupby("updates"):
        parts += [f"**After {number} updates**", markdown(rows, METRICS)]
    parts += ["**From the pixels of a patch**", markdown(table[is_pixels], ["probe", "border_probe"])]
    of_noise = {noise: gaps_of_known_regions(noise) for noise in (0.5, 1.0, 2.0)}
    lines = [[f"{noise:g}", *(f"{gap:.2f}" for gap in gaps.values())] for noise, gaps in of_noise.items()]
    parts += [
        "**Centred gap of tokens that know their region, by their noise**",
        markdown_table(["noise", *of_noise[0.5]], lines),
    ]
    text = "\n\n".join(parts)
    path.with_suffix(".md").write_text(text + "\n")
    figure, grid = plt.subplots(1, 4, sharey=True, figsize=(15, 3), layout="constrained")
    panels = {
        "centered_target_gap": "similarity gap of the targets, centred",
        "centered_token_gap": "of the encoder's tokens, centred",
        "border_probe": "texture read at borders",
        "target_rank": "effective rank of the targets",
    }
    for axes, (metric, title) in zip(grid, panels.items(), strict=True):
        draw_arms(axes, runs.table(updates=n_updates), metric, title)
    figure.savefig(path.with_suffix(".png"), dpi=100)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--regions", choices=REGIONS, default="textures", help="of the images (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=4_000, help="to learn from (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=300, help="of each arm (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/pretraining"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pretraining"), help="results")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    path = arguments.out / arguments.regions
    runs = FinishedRuns(path.with_suffix(".csv"), ("arm", "seed", "updates"))
    folder = arguments.folder / arguments.regions
    run(arguments.arms, arguments.regions, arguments.seeds, arguments.images, arguments.updates, folder, runs)
    print(report(runs, arguments.updates, path))


if __name__ == "__main__":
    main()
