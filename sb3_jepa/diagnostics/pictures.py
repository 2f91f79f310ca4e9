"""Pictures of embeddings, as figures of Matplotlib. Drawn to be read at the size of a card in TensorBoard."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_jepa.diagnostics.latents import UnrolledErrors, principal_components, spectrum
from sb3_jepa.diagnostics.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"healthy": "#1a7f37", "low rank": "#b35900", "collapsed": "#b3261e", "diverged": "#b3261e"}
# The size of a card of TensorBoard in inches of 100 pixels, drawn twice as sharp
WIDTH, HEIGHT = 4.0, 2.15
DPI = 200
SMALL = 7.5
# The colour scale ends at this multiple of even attention
HIGHEST_MULTIPLE = 4.0
# Do not draw eigenvalues below this fraction of the untrained encoder's mean
LOWEST_FRACTION = 1e-8


def new_figure(width: float, height: float, title: str, verdict: Verdict | None = None) -> "Figure":
    """
    :param width: In inches
    :param height: In inches
    :param title: Of the whole figure
    :param verdict: If given, it stands in the title, in its colour
    :return: An empty figure, which no window knows of
    :raises ImportError: If Matplotlib is not installed
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Pictures need Matplotlib: pip install "sb3-jepa[plot]"') from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    colour = "black"
    if verdict is not None:
        title, colour = f"{verdict.label.upper()}: {title}", COLOURS[verdict.label]
    figure.suptitle(_plain(title), color=colour, fontsize=9.5, fontweight="bold")
    return figure


def _plain(text: str) -> str:
    """A name as it is: between two dollars, Matplotlib would look for a formula."""
    return text.replace("$", r"\$")


def _new_axes(title: str, verdict: Verdict | None = None, height: float = HEIGHT) -> "tuple[Figure, Axes]":
    figure = new_figure(WIDTH, height, title, verdict)
    axes = figure.add_subplot()
    axes.tick_params(which="both", labelsize=SMALL)
    return figure, axes


def spectrum_figure(embeddings: th.Tensor, first_variance: float, rank: float, verdict: Verdict | None) -> "Figure":
    """
    Eigenvalues of the embeddings' covariance, on a logarithmic axis.

    :param embeddings: ``(samples, embed_dim)``
    :param first_variance: Embedding variance of the untrained encoder, a dashed line; 0 if it is not known
    :param rank: Effective rank
    :param verdict: On the encoder
    :return: Figure
    """
    eigenvalues = spectrum(embeddings).cpu().numpy()
    embed_dim = len(eigenvalues)
    first_share = float(eigenvalues[0]) / max(float(eigenvalues.sum()), 1e-30)
    figure, axes = _new_axes(f"rank {rank:.1f} of {embed_dim}, {first_share:.0%} in one direction", verdict)
    reference = first_variance if first_variance > 0 else max(float(eigenvalues.mean()), 1e-12)
    lowest = LOWEST_FRACTION * reference
    axes.bar(np.arange(1, embed_dim + 1), np.maximum(eigenvalues, lowest), width=1.0, color="#4477aa")
    if first_variance > 0:
        axes.axhline(first_variance, color="black", linestyle="--", linewidth=1, label="mean, untrained")
    axes.axhline(max(float(eigenvalues.mean()), lowest), color="#cc3311", linewidth=1.5, label="mean, now")
    # Give the first few more room: they matter most
    axes.set_xscale("log")
    axes.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= embed_dim])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()
    axes.set_yscale("log")
    axes.set_ylim(lowest, max(10.0 * embed_dim * reference, 2.0 * float(eigenvalues.max())))
    axes.set_xlim(0.5, embed_dim + 0.5)
    axes.set_xlabel("direction", fontsize=SMALL)
    axes.set_ylabel("variance", fontsize=SMALL)
    axes.legend(fontsize=SMALL, loc="upper right", ncols=2)
    return figure


def unrolled_figure(errors: UnrolledErrors, verdict: Verdict | None) -> "Figure":
    """
    Error of the unrolled predictor by horizon, beside that of a copy.

    :param errors: By horizon
    :param verdict: On the encoder
    :return: Figure
    """
    first_ratio = float(errors.predictor[0] / errors.copy[0]) if errors.copy[0] > 0 else float("nan")
    figure, axes = _new_axes(f"1 step: {first_ratio:.2f} x copy's error", verdict)
    horizons = np.arange(1, len(errors.predictor) + 1)
    axes.plot(horizons, errors.copy.cpu().numpy(), color="grey", marker="s", markersize=4, label="copy")
    axes.plot(horizons, errors.predictor.cpu().numpy(), color="#cc3311", marker="o", markersize=4, label="predictor")
    axes.axhline(1.0, color="black", linestyle="--", linewidth=1, label="mean embedding")
    axes.set_yscale("log")
    axes.set_xlabel("steps ahead", fontsize=SMALL)
    axes.set_ylabel("error / target variance", fontsize=SMALL)
    # Show a wide range, so that nearly equal errors look equal
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.05), max(high, 5.0))
    axes.legend(fontsize=SMALL, loc="upper left", ncols=3, handlelength=1.2, columnspacing=1.0)
    return figure


def trajectory_colours(embeddings: th.Tensor, first_variance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Each embedding as a colour: its three principal components as red, green and blue. They share one scale, and that
    is never finer than a third of what the untrained encoder varied by: what does not vary stays grey.

    :param embeddings: ``(steps, embed_dim)``
    :param first_variance: Embedding variance of the untrained encoder; 0 if it is not known
    :return: Colours ``(steps, 3)`` in [0, 1], components ``(steps, 3)`` in units of that scale, shares ``(3,)``
    """
    components, shares = principal_components(embeddings)
    finest = (embeddings.shape[1] * first_variance) ** 0.5 / 3.0
    scale = max(float(components[:, 0].square().mean().sqrt()), finest, 1e-12)
    components = components / scale
    colours = (0.5 + components / 5.0).clamp(0.0, 1.0)
    return colours.cpu().numpy(), components.cpu().numpy(), shares.cpu().numpy()


def trajectory_figure(
    embeddings: th.Tensor, first_variance: float, frames: np.ndarray | None, verdict: Verdict | None
) -> "Figure":
    """
    One episode in latent space: as a path through its first two principal components, and as a strip of colours under
    some of its frames.

    :param embeddings: ``(steps, embed_dim)``, in order
    :param first_variance: Embedding variance of the untrained encoder; 0 if it is not known
    :param frames: What was seen, ``(steps, height, width)`` or ``(steps, height, width, 3)``; None if it is no picture
    :param verdict: On the encoder
    :return: Figure
    """
    colours, components, shares = trajectory_colours(embeddings, first_variance)
    n_steps = len(embeddings)
    figure = new_figure(WIDTH, HEIGHT, f"an episode of {n_steps - 1} steps", verdict)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.0, 1.1], height_ratios=[1.0, 1.0])
    path = figure.add_subplot(grid[:, 0])
    path.plot(components[:, 0], components[:, 1], color="lightgrey", linewidth=0.7, zorder=1)
    path.scatter(components[:, 0], components[:, 1], c=colours, s=7, edgecolors="grey", linewidths=0.2, zorder=2)
    path.scatter(components[:1, 0], components[:1, 1], s=45, facecolors="none", edgecolors="black", zorder=3)
    start = (components[0, 0], components[0, 1])
    path.annotate("start", start, xytext=(5, 5), textcoords="offset points", fontsize=SMALL)
    limit = max(3.0, 1.1 * float(np.abs(components[:, :2]).max()))
    path.set_xlim(-limit, limit)
    path.set_ylim(-limit, limit)
    path.set_xticks([])
    path.set_yticks([])
    path.set_xlabel(f"component 1 ({shares[0]:.0%})", fontsize=SMALL)
    path.set_ylabel(f"component 2 ({shares[1]:.0%})", fontsize=SMALL)
    strip = figure.add_subplot(grid[:, 1] if frames is None else grid[0, 1])
    strip.imshow(colours[None], aspect="auto", extent=(-0.5, n_steps - 0.5, 0, 1), interpolation="nearest")
    strip.set_yticks([])
    strip.set_xlabel("step", fontsize=SMALL)
    strip.tick_params(labelsize=SMALL)
    if frames is not None:
        film = figure.add_subplot(grid[1, 1])
        chosen = np.linspace(0, len(frames) - 1, min(3, len(frames))).round().astype(int)
        show_image(film, np.concatenate([_framed(frames[index]) for index in chosen], axis=1))
        film.set_xlabel(f"at step {', '.join(map(str, chosen))}", fontsize=SMALL)
    return figure


def attention_figure(
    images: np.ndarray,
    maps: np.ndarray,
    patch_size: int,
    title: str,
    verdict: Verdict | None = None,
    steps: Sequence[int] | None = None,
) -> "Figure":
    """
    The class token's attention, laid over the frames. Where a token was left out there is none; even attention is even
    over those that there are.

    :param images: Some observations, ``(observations, frames, height, width)`` or ``(..., 3)``
    :param maps: ``(observations, frames, rows, columns)``; with one map for all frames, it is laid over the newest
    :param patch_size: Side of a patch in pixels
    :param title: Of the figure
    :param verdict: On the encoder
    :param steps: When each observation was seen
    :return: Figure
    """
    height, width = images.shape[2:4]
    if maps.shape[1] == 1:
        # If one map is for all frames, show only the newest frame, three observations in a row
        pairs = list(zip(images[:, -1], maps[:, 0], strict=True))
        n_columns = 3
    else:
        pairs = [pair for row in zip(images, maps, strict=True) for pair in zip(*row, strict=True)]
        n_columns = images.shape[1]
    figure = new_figure(WIDTH, HEIGHT, title, verdict)
    even = 1.0 / max(1, np.count_nonzero(maps, axis=(1, 2, 3)).max())
    overlay = None
    for index, (image, weights) in enumerate(pairs):
        axes = figure.add_subplot(-(-len(pairs) // n_columns), n_columns, index + 1)
        show_image(axes, image)
        extent = (-0.5, weights.shape[1] * patch_size - 0.5, weights.shape[0] * patch_size - 0.5, -0.5)
        multiples = weights / even
        # Where there is no attention, leave the picture as it is
        opacity = 0.8 * np.clip(multiples / HIGHEST_MULTIPLE, 0.0, 1.0)
        overlay = axes.imshow(
            multiples, "autumn_r", alpha=opacity, vmin=0, vmax=HIGHEST_MULTIPLE, extent=extent, interpolation="nearest"
        )
        # Patches may extend beyond the image
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        if maps.shape[1] > 1 and index < n_columns:
            axes.set_title("newest" if index == n_columns - 1 else f"{index + 1 - n_columns}", fontsize=SMALL, pad=2)
        if maps.shape[1] == 1 and steps is not None:
            axes.set_title(f"step {steps[index]}", fontsize=SMALL, pad=2)
    if overlay is not None:
        bar = figure.colorbar(overlay, ax=figure.axes, shrink=0.9, aspect=20)
        bar.set_label("times even attention", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    return figure


def attention_bars(weights: Mapping[str, np.ndarray], title: str, verdict: Verdict | None = None) -> "Figure":
    """
    The class token's attention to what is no image: numbers and categories.

    :param weights: For each key ``(observations, numbers)``
    :param title: Of the figure
    :param verdict: On the encoder
    :return: Figure
    """
    names = [_plain(f"{key}[{index}]") for key, array in weights.items() for index in range(array.shape[1])]
    values = np.concatenate([array.T for array in weights.values()])
    figure, axes = _new_axes(title, verdict)
    places = np.arange(len(names))
    axes.bar(places, values.mean(axis=1), yerr=values.std(axis=1), color="#4477aa", ecolor="grey")
    if len(names) <= 16:
        axes.set_xticks(places, names, rotation=90, fontsize=SMALL)
    else:
        axes.set_xlabel(f"number ({_plain(', '.join(weights)) or 'of the vector'})", fontsize=SMALL)
    axes.set_ylabel("attention", fontsize=SMALL)
    return figure


def show_image(axes: "Axes", image: np.ndarray) -> None:
    """
    :param axes: Where to show it, without ticks
    :param image: ``(height, width)`` for grey or ``(height, width, 3)``, uint8 or from 0 to 1
    """
    highest: Any = 255 if image.dtype == np.uint8 else 1.0
    axes.imshow(image, cmap="gray", vmin=0, vmax=highest)
    axes.set_xticks([])
    axes.set_yticks([])


def _framed(image: np.ndarray) -> np.ndarray:
    """With a black line at its right."""
    padding = [(0, 0), (0, max(1, image.shape[1] // 32)), *[(0, 0)] * (image.ndim - 2)]
    return np.pad(image, padding)


def curve_figure(steps: np.ndarray, values: np.ndarray, name: str) -> "Figure":
    """
    A curve of the training.

    :param steps: Time steps ``(points,)``
    :param values: ``(points,)``
    :param name: Of the curve
    :return: Figure
    """
    figure, axes = _new_axes(name)
    axes.plot(steps, values, color="#4477aa", marker="." if len(steps) < 30 else "")
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 100 * finite.min():
        axes.set_yscale("log")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    return figure


def surprise_figure(true: np.ndarray, swapped: np.ndarray, area: float) -> "Figure":
    """
    How surprised the predictor is by what happened, and by what did not.

    :param true: Surprise of true transitions ``(samples,)``
    :param swapped: Surprise where the next observation is one of another time ``(samples,)``
    :param area: Area under the ROC curve
    :return: Figure
    """
    figure, axes = _new_axes(f"true or swapped: AUC {area:.2f}")
    both = np.concatenate((true, swapped))
    positive = both[both > 0]
    lowest, highest = (positive.min(), positive.max()) if len(positive) else (1e-12, 1.0)
    bins = np.geomspace(lowest, max(highest, lowest * 1.01), 40)
    for values, colour, label in ((true, "#4477aa", "true next observation"), (swapped, "#cc3311", "swapped")):
        axes.hist(np.clip(values, bins[0], bins[-1]), bins=list(bins), color=colour, alpha=0.6, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("surprise", fontsize=SMALL)
    axes.set_ylabel("transitions", fontsize=SMALL)
    axes.legend(fontsize=SMALL)
    return figure


def probe_figure(r2: Mapping[str, float]) -> "Figure":
    """
    What linear probes read from the embedding.

    :param r2: Of each variable, on held-out episodes
    :return: Figure
    """
    height = max(HEIGHT, 0.8 + 0.25 * len(r2))
    figure, axes = _new_axes("R² of linear probes, held-out episodes", height=height)
    bars = axes.barh([_plain(name) for name in r2], [max(0.0, value) for value in r2.values()], color="#4477aa")
    axes.bar_label(bars, [f"{value:.2f}" for value in r2.values()], padding=3, fontsize=SMALL)
    axes.set_xlim(0.0, 1.1)
    axes.invert_yaxis()
    return figure


def chunk_figure(by_step: Sequence[float], of_last_action: Sequence[float], of_mean_action: float) -> "Figure":
    """
    How far a policy's chunks of actions are from demonstrations, step by step.

    :param by_step: Error of each step of the chunk
    :param of_last_action: The same of repeating the action before the chunk
    :param of_mean_action: Of always doing the mean action
    :return: Figure
    """
    figure, axes = _new_axes("error of chunks on held-out episodes")
    steps = np.arange(1, len(by_step) + 1)
    axes.plot(steps, by_step, color="#4477aa", marker=".", label="the policy")
    axes.plot(steps, of_last_action, color="#aaaaaa", marker=".", label="the last action again")
    axes.axhline(of_mean_action, color="#aaaaaa", linestyle="--", label="the mean action")
    axes.set_xlabel("step of the chunk")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def map_figure(positions: np.ndarray, values: np.ndarray, title: str) -> "Figure":
    """
    Values over places in a plane.

    :param positions: ``(samples, 2)``
    :param values: ``(samples,)``; of several columns the first is drawn
    :param title: Of the figure
    :return: Figure
    """
    figure, axes = _new_axes(title, height=1.5 * HEIGHT)
    values = values if values.ndim == 1 else values[:, 0]
    # High values on top
    order = np.argsort(values)
    x, y = positions[order].T
    drawn = axes.scatter(x, y, c=values[order], s=5, cmap="viridis", linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    figure.colorbar(drawn, ax=axes).ax.tick_params(labelsize=SMALL)
    return figure
