"""Do the targets of DMT-JEPA tell regions apart (arXiv 2405.17995)? Against I-JEPA, on textures.

    python examples/pretraining/textures.py

All arms learn from the same images with as many updates, and differ in their targets: the tokens of the momentum
encoder (I-JEPA), or what is made of those of their neighbours. Measured on images that none of them has seen: how much
more similar adjacent targets are within a region than across a border, and how well a linear probe reads the texture of
a patch from its token, also where two textures meet. What the results hold is kept and not run again.
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
from experiments import FinishedRuns, class_accuracy, draw_arms, markdown
from toys import IMAGE_SIZE, PATCH_SIZE, as_recordings, textured_images

from sb3_jepa import DmtJepa, JepaExtractor, MaskedPrediction, pretrain
from sb3_jepa.diagnostics import effective_rank, similarity_gap
from sb3_jepa.objectives import ObjectiveInput
from sb3_jepa.parts.random_numbers import isolated_random_numbers

EXTRACTOR: dict[str, Any] = dict(embed_dim=32, patch_size=PATCH_SIZE, num_heads=2, output="mean")
# In so short a training, a momentum of 0.996 would keep the target encoder near its start
OBJECTIVE: dict[str, Any] = dict(predictor_dim=24, predictor_depth=1, predictor_heads=2, momentum=(0.99, 1.0))
ARMS: dict[str, tuple[type[MaskedPrediction], dict[str, Any]]] = {
    "I-JEPA": (MaskedPrediction, {}),
    "DMT": (DmtJepa, {}),
    "DMT, mean": (DmtJepa, dict(target_transform_kwargs=dict(aggregation="mean"))),
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
    Images that nobody learns from, and what is measured on them.

    :param n_images: How many there are to fit probes to, and as many to measure on
    """

    def __init__(self, n_images: int):
        fitted, held_out = (textured_images(n_images, seed=seed) for seed in (101, 102))
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
            # What all patches of an image have in common makes every cosine large, and says nothing of any of them
            centered = vectors - vectors.mean(dim=1, keepdim=True)
            gaps[f"centered_{name}_gap"] = float(similarity_gap(centered, regions, GRID))
        return dict(
            **gaps,
            **self.probes(tokens),
            target_rank=float(effective_rank(targets.flatten(0, 1))),
            token_rank=float(effective_rank(tokens[held_out].flatten(0, 1))),
        )


def make_objective(arm: str, seed: int, folder: pathlib.Path | None) -> MaskedPrediction:
    """
    :param arm: One of :data:`ARMS`
    :param seed: Seed of its parameters
    :param folder: What it has learned; None for nothing
    :return: The objective, with the encoder as its target encoder
    """
    th.manual_seed(seed)
    recordings = as_recordings(textured_images(1024, seed=seed).observations)
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
    arms: list[str], seeds: list[int], n_images: int, n_updates: int, folder: pathlib.Path, runs: FinishedRuns
) -> None:
    """
    Run what is not finished.

    :param arms: Of :data:`ARMS`
    :param seeds: Seeds of the images, the encoder and the masks
    :param n_images: How many to learn from
    :param n_updates: Updates of each pretraining
    :param folder: Where the pretrainings are kept
    :param runs: Where their results are
    """
    measurement = Measurement(n_images // 8)
    for seed in seeds:
        recordings = as_recordings(textured_images(n_images, seed=seed).observations)
        if not runs.has(arm="pixels", seed=seed, updates=0):
            inputs = make_objective("I-JEPA", seed, None).target_encoder.encoder.token_inputs(measurement.observations)  # type: ignore[operator]
            runs.add(arm="pixels", seed=seed, updates=0, **measurement.probes(inputs))
        for arm in arms:
            if not runs.has(arm=arm, seed=seed, updates=0):
                runs.add(arm=arm, seed=seed, updates=0, **measurement.measure(make_objective(arm, seed, None)))
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
                    # What is measured here is the last encoder, and not the best one
                    eval_freq=n_updates,
                    seed=seed,
                    device="cpu",
                )
                measured = measurement.measure(make_objective(arm, seed, here))
                runs.add(
                    arm=arm, seed=seed, updates=n_updates, **measured, seconds=round(time.process_time() - start, 1)
                )


def report(runs: FinishedRuns, n_updates: int, folder: pathlib.Path) -> str:
    """
    Write a table and a figure.

    :param runs: What is finished
    :param n_updates: Of the runs in the figure
    :param folder: Where to write
    :return: The table
    """
    table = runs.table()
    is_pixels = table["arm"] == "pixels"
    parts = ["Mean over the seeds, and each of them. Without updates, the encoder of all arms is the same."]
    for number, rows in table[~is_pixels].groupby("updates"):
        parts += [f"**After {number} updates**", markdown(rows, METRICS)]
    parts += ["**From the pixels of a patch**", markdown(table[is_pixels], ["probe", "border_probe"])]
    text = "\n\n".join(parts)
    (folder / "textures.md").write_text(text + "\n")
    figure, grid = plt.subplots(1, 4, sharey=True, figsize=(15, 3), layout="constrained")
    panels = {
        "centered_target_gap": "similarity gap of the targets, centred",
        "centered_token_gap": "of the encoder's tokens, centred",
        "border_probe": "texture read at borders",
        "target_rank": "effective rank of the targets",
    }
    for axes, (metric, title) in zip(grid, panels.items(), strict=True):
        draw_arms(axes, runs.table(updates=n_updates), metric, title)
    figure.savefig(folder / "textures.png", dpi=100)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=4_000, help="to learn from (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=300, help="of each arm (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/pretraining/textures"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pretraining"), help="results")
    arguments = parser.parse_args()

    th.set_num_threads(1)
    runs = FinishedRuns(arguments.out / "textures.csv", ("arm", "seed", "updates"))
    run(arguments.arms, arguments.seeds, arguments.images, arguments.updates, arguments.folder, runs)
    print(report(runs, arguments.updates, arguments.out))


if __name__ == "__main__":
    main()
