import sys
import warnings

import numpy as np
import pytest
import torch as th
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sb3_jepa.diagnostics import UnrolledErrors, assess, pictures, spectrum
from sb3_jepa.diagnostics.pictures import COLOURS
from sb3_jepa.diagnostics.verdict import Verdict

HEALTHY = assess(1.0, 8.0, 16, 0.5)
FIRST_VARIANCE = 0.5


def render(figure) -> np.ndarray:
    """The picture, ``(height, width, 3)``; whatever Matplotlib objects to is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.set_dpi(60)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)
    # Something is drawn on it
    assert picture.std() > 1.0
    return picture


def title_of(figure) -> str:
    return figure.get_suptitle()


def embeddings_of(n_steps: int = 30, embed_dim: int = 16, deviation: float = 1.0) -> th.Tensor:
    """A path that turns around, as that of a pole."""
    th.manual_seed(0)
    phase = th.linspace(0, 6, n_steps)[:, None]
    return deviation * (th.sin(phase + th.arange(embed_dim)) + 0.1 * th.randn(n_steps, embed_dim)) + 3.0


@pytest.mark.parametrize("label", COLOURS)
def test_the_verdict_stands_in_the_title_in_its_colour(label):
    verdict = Verdict(label, "")
    figures = [
        pictures.spectrum_figure(embeddings_of(), FIRST_VARIANCE, 5.0, verdict),
        pictures.unrolled_figure(UnrolledErrors(th.ones(3), th.ones(3)), verdict),
        pictures.trajectory_figure(embeddings_of(), FIRST_VARIANCE, None, verdict),
        pictures.attention_figure(np.zeros((1, 1, 8, 8), np.uint8), np.ones((1, 1, 2, 2)), 4, "attention", verdict),
        pictures.attention_bars({"": np.ones((2, 3))}, "attention", verdict),
    ]
    for figure in figures:
        assert title_of(figure).startswith(f"{label.upper()}: ")
        assert figure._suptitle.get_color() == COLOURS[label]


def test_without_a_verdict_the_title_is_black():
    figure = pictures.attention_bars({"": np.ones((2, 3))}, "attention")
    assert title_of(figure) == "attention"
    assert figure._suptitle.get_color() == "black"


@pytest.mark.parametrize(
    ("deviation", "first_variance", "embed_dim"),
    [
        (1e-6, FIRST_VARIANCE, 16),
        (0.0, FIRST_VARIANCE, 16),
        (0.0, 0.0, 16),
        (0.0, 0.0, 1),
        (1.0, 0.0, 2),
        (1e4, 1e-3, 1),
    ],
)
def test_figures_of_any_embeddings(deviation, first_variance, embed_dim):
    embeddings = embeddings_of(30, embed_dim, deviation)
    render(pictures.spectrum_figure(embeddings, first_variance, 1.0, HEALTHY))
    for n_steps in (1, 2):
        render(pictures.trajectory_figure(embeddings[:n_steps], first_variance, None, HEALTHY))


def test_spectrum():
    embeddings = embeddings_of()
    figure = pictures.spectrum_figure(embeddings, FIRST_VARIANCE, 7.25, HEALTHY)
    render(figure)
    share = float(spectrum(embeddings)[0] / spectrum(embeddings).sum())
    assert title_of(figure) == f"HEALTHY: rank 7.2 of 16, {share:.0%} in one direction"
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert len(heights) == 16
    variance = float(embeddings.var(dim=0, correction=0).mean())
    assert np.mean(heights) == pytest.approx(variance, rel=1e-4)
    # The lines are the means, of then and now
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([FIRST_VARIANCE, variance], rel=1e-4)
    low, high = axes.get_ylim()
    assert low < min(heights) <= max(heights) < high
    # ... of then only if it is known
    assert len(pictures.spectrum_figure(embeddings, 0.0, 7.0, HEALTHY).axes[0].lines) == 1


@pytest.mark.parametrize(
    ("predictor", "copy", "title"),
    [
        ([0.25, 0.5], [0.5, 1.0], "0.50 x copy"),
        ([0.25], [0.5], "0.50 x copy"),
        # Of collapsed targets, in units of a variance of next to nothing
        ([0.0, 0.0], [0.0, 0.0], "nan x copy"),
        ([1e30, 1e35], [0.0, 0.0], "nan x copy"),
    ],
)
def test_unrolled(predictor, copy, title):
    figure = pictures.unrolled_figure(UnrolledErrors(th.tensor(predictor), th.tensor(copy)), HEALTHY)
    render(figure)
    assert title in title_of(figure)
    of_copy, of_predictor, of_mean = figure.axes[0].lines
    assert of_predictor.get_xdata().tolist() == list(range(1, len(predictor) + 1))
    assert of_predictor.get_ydata() == pytest.approx(predictor)
    assert of_copy.get_ydata() == pytest.approx(copy)
    assert set(of_mean.get_ydata()) == {1.0}


def strip_of(figure) -> np.ndarray:
    """The strip of colours, as it is rendered: ``(width, 3)`` in [0, 255]."""
    picture = render(figure)
    box = figure.axes[1].get_window_extent()
    row = picture.shape[0] - round((box.y0 + box.y1) / 2)
    return picture[row, round(box.x0) + 3 : round(box.x1) - 3]


def test_a_collapsed_episode_is_a_grey_strip_and_a_healthy_one_is_not():
    # Two components vary by much, as those of a circle do
    healthy = strip_of(pictures.trajectory_figure(embeddings_of(), FIRST_VARIANCE, None, HEALTHY))
    assert (healthy.std(axis=0)[:2] > 20).all()
    # Standard deviation a hundredth of what it was at the start
    collapsed = strip_of(pictures.trajectory_figure(embeddings_of(deviation=0.01), FIRST_VARIANCE, None, HEALTHY))
    assert (np.abs(collapsed - 127.5) < 6).all()
    # A scale of its own would colour it
    unknown = strip_of(pictures.trajectory_figure(embeddings_of(deviation=0.01), 0.0, None, HEALTHY))
    assert (unknown.std(axis=0)[:2] > 20).all()


def test_colours_are_components_on_one_scale():
    embeddings = embeddings_of()
    colours, components, shares = pictures.trajectory_colours(embeddings, 0.0)
    assert colours.shape == components.shape == (30, 3)
    assert colours.min() >= 0.0
    assert colours.max() <= 1.0
    deviations = components.std(axis=0)
    assert deviations[0] == pytest.approx(1.0, rel=1e-4)
    assert np.allclose(deviations**2 / deviations[0] ** 2, shares / shares[0], rtol=1e-3)
    inside = np.abs(components) < 2.5
    assert np.allclose(colours[inside], 0.5 + components[inside] / 5)


@pytest.mark.parametrize("shape", [(16, 24), (24, 16, 3)])
@pytest.mark.parametrize("n_steps", [1, 2, 30])
def test_a_film_lies_under_the_strip(shape, n_steps):
    frames = np.random.default_rng(0).integers(0, 256, (n_steps, *shape), dtype=np.uint8)
    figure = pictures.trajectory_figure(embeddings_of(n_steps), FIRST_VARIANCE, frames, HEALTHY)
    render(figure)
    assert title_of(figure) == f"HEALTHY: an episode of {n_steps - 1} steps"
    film = np.asarray(figure.axes[2].images[0].get_array())
    # Each has a line at its right
    n_shown = film.shape[1] // (shape[1] + 1)
    assert film.shape[:2] == (shape[0], n_shown * (shape[1] + 1))
    assert n_shown == n_steps if n_steps < 3 else 2 < n_shown < 10
    # The first and the last among them
    assert np.array_equal(film[:, : shape[1]], frames[0])
    assert np.array_equal(film[:, -shape[1] - 1 : -1], frames[-1])


@pytest.mark.parametrize("is_rgb", [True, False])
@pytest.mark.parametrize("n_maps", [1, 3])
def test_attention_is_laid_over_the_frames(is_rgb, n_maps):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 24, 3), dtype=np.uint8)
    images = images / 255.0 if is_rgb else images[..., 0]
    maps = np.random.default_rng(0).random((2, n_maps, 2, 3))
    figure = pictures.attention_figure(images, maps, 8, "attention")
    render(figure)
    # The last one is the colour bar
    *all_axes, _ = figure.axes
    # A map of all frames is laid over the newest one
    shown = [(row, frame) for row in range(2) for frame in range(3)] if n_maps > 1 else [(0, 2), (1, 2)]
    for axes, (row, frame) in zip(all_axes, shown, strict=True):
        image, overlay = axes.images
        assert np.array_equal(image.get_array(), images[row, frame])
        # In units of even attention
        expected = maps[row, frame if n_maps > 1 else 0] * n_maps * 6
        assert np.allclose(overlay.get_array(), expected)
        assert overlay.get_extent() == [-0.5, 23.5, 15.5, -0.5]
        assert axes.get_xlim() == (-0.5, 23.5)
        assert axes.get_ylim() == (15.5, -0.5)
    if n_maps > 1:
        assert [axes.get_title() for axes in all_axes[:3]] == ["-2", "-1", "newest"]


def test_a_patch_lies_where_it_is_and_may_reach_over_the_edge():
    # 20 x 20 pixels, patches of 8: the last row and column have 4 pixels of the picture
    maps = np.zeros((1, 1, 3, 3))
    maps[0, 0, 2, 0] = 1.0
    figure = pictures.attention_figure(np.zeros((1, 1, 20, 20), np.uint8), maps, 8, "attention")
    picture = render(figure)
    box = figure.axes[0].get_window_extent()

    def brightness(x: float, y: float) -> float:
        column = round(box.x0 + (x + 0.5) / 20 * box.width)
        row = round(picture.shape[0] - box.y1 + (y + 0.5) / 20 * box.height)
        return picture[row, column].sum()

    assert brightness(4, 18) > 5 * brightness(4, 13)
    assert brightness(4, 18) > 5 * brightness(10, 18)
    # Where there is no attention, the picture is as it was
    assert brightness(4, 13) == brightness(10, 18) == brightness(18, 18) == 0


@pytest.mark.parametrize("n_numbers", [1, 40])
def test_bars_for_what_is_no_image(n_numbers):
    weights = {"speed": np.random.default_rng(0).random((3, n_numbers)), "mode": np.full((3, 1), 0.25)}
    figure = pictures.attention_bars(weights, "attention")
    render(figure)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([*weights["speed"].mean(axis=0), 0.25])
    if n_numbers <= 15:
        names = [label.get_text() for label in axes.get_xticklabels()]
        assert names == [*(f"speed[{index}]" for index in range(n_numbers)), "mode[0]"]
    else:
        assert axes.get_xlabel() == "number (speed, mode)"


def test_bars_of_a_vector_without_a_key():
    figure = pictures.attention_bars({"": np.ones((3, 20))}, "attention")
    render(figure)
    assert figure.axes[0].get_xlabel() == "number (of the vector)"


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-jepa\[plot\]"'):
        pictures.spectrum_figure(embeddings_of(), FIRST_VARIANCE, 5.0, None)


def test_no_window_knows_of_a_figure():
    import matplotlib.pyplot as plt

    pictures.attention_bars({"": np.ones((3, 20))}, "attention")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["a$b_{", "$a$b_{$", "$\\frac$", "\\$", "a_b^", "", "<b>", "50% of $x$"])
def test_any_name_is_shown_as_it_is(name):
    """Matplotlib takes what is between two dollars for a formula, and a broken one for an error."""
    curve = pictures.curve_figure(np.arange(3), np.arange(3.0), name)
    probes = pictures.probe_figure({name: 0.5, "other": 0.2})
    bars = pictures.attention_bars({name: np.ones((3, 2))}, name)
    many_bars = pictures.attention_bars({name: np.ones((3, 20))}, name)
    for figure in (curve, probes, bars, many_bars):
        render(figure)
    # The same pixels as those of a text in which nothing is looked for
    as_it_is = pictures.curve_figure(np.arange(3), np.arange(3.0), "")
    as_it_is.suptitle(name, color="black", fontsize=9.5, fontweight="bold", parse_math=False)
    assert np.array_equal(render(curve), render(as_it_is))
