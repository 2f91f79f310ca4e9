"""A page that shows what a model has learned, for readers without TensorBoard."""

import base64
import html
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.common import checks
from sb3_jepa.common.files import replace_when_complete
from sb3_jepa.diagnostics import area_under_curve, pictures
from sb3_jepa.inspection.episodes import play_episodes
from sb3_jepa.inspection.latent_model import LatentModel
from sb3_jepa.inspection.portrait import Portrait
from sb3_jepa.report.curves import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The curves of a training that are shown, by the ends of their names, and what they tell
CURVES = {
    "rollout/ep_rew_mean": "Return of the last 100 episodes.",
    "embedding_variance": "How far embeddings of different observations lie apart. Healthy: it rises at first, to "
    "between 0.1 and 1. Collapsed: it falls by orders of magnitude.",
    "effective_rank": "How many dimensions are used. Healthy: a quarter of them or more. Towards 1: collapse, "
    "even if the variance looks healthy.",
    "participation_ratio": "In how many directions the embeddings vary. Towards 1: in a single one.",
    "prediction_loss": "Error of the predicted embedding. On its own it says nothing: it also falls when all "
    "embeddings become one.",
    "imitation/held_out_error": "Imitation's error on episodes that were not learned from.",
    "occupancy_iou": "Of the hidden cells that hold something or are predicted to, the share that are both. 1: free "
    "and occupied space are told apart exactly.",
    "prediction_to_copy_ratio": "The prediction loss, divided by that of a predictor that copies. Below 1: it knows "
    "something of what comes next.",
    "smallest_deviation": "Standard deviation of the dimension that varies least. Near 0: it is dead.",
    "largest_deviation": "Standard deviation of the dimension that varies most.",
    "target_cosine": "Cosine between an observation's embedding and the target, the next one's. 1 for all: collapsed.",
    "rl_gradient_norm": "Gradient that reaches the encoder from actor and critic.",
    "jepa_gradient_norm": "Gradient that reaches the encoder from the JEPA.",
    "gradient_cosine": "Cosine between the two. Below 0 they pull in opposite directions.",
}
PICTURES = {
    "trajectory": "One episode in latent space, and as a strip of colours, step by step. Healthy: a path, with colours "
    "that change. Grey: all observations look alike to the encoder.",
    "unrolled": "The predictor, fed with its own predictions. Useful as far as it stays below the copy; above 1 the "
    "mean embedding would be the better guess.",
    "spectrum": "Variance of the embeddings, direction by direction. Healthy: a slope. A cliff after a few bars: "
    "only these are used. All far below the dashed line: collapsed.",
    "birds_eye": "LiDAR from above. Red: something is there, and is predicted to be free. On the right, what the "
    "encoder holds to be like the cell with the cross.",
    "attention": "What the embedding is read from, as a multiple of what even attention would give.",
}
SURPRISE = (
    "Squared distance between the next embedding and what the predictor expected, for what happened and with the next "
    "observation of another time. AUC 1: it always tells them apart; 0.5: never."
)
CHUNKS = (
    "How far the actions that it decides on are from those of demonstrations that it has not learned from. Healthy: "
    "below both lines in grey, and rising along the chunk."
)
PROBES = "Linear regression from the embedding to variables of the environment. 1: it is all there; 0: nothing."
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em; color: #222 }
.verdict { border-left: 8px solid; padding: .6em 1em; background: #f6f6f6 }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 1em }
figure { margin: 0; max-width: 800px; border: 1px solid #ddd; padding: .5em } figure img { width: 100% }
figcaption { font-size: 14px } table { border-collapse: collapse } td, th { padding: .2em 1em; text-align: left }
"""


def write_report(
    model: BaseAlgorithm,
    env: VecEnv,
    out: str | pathlib.Path,
    curves: Mapping[str, Curve] | None = None,
    n_steps: int = 2000,
    horizon: int = 10,
    read: Callable[[VecEnv], np.ndarray] | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """
    Let a model act, and write a page about its encoder and predictor: one file, without anything from a network. If
    that fails, an older file stays as it was.

    :param model: Of any algorithm
    :param env: With the observations that the model takes
    :param out: The file to write
    :param curves: Of its training, by name
    :param n_steps: Steps that it acts, in all environments together
    :param horizon: How many steps the predictor is unrolled
    :param read: For linear probes: gives variables of the environments before each step, ``(environments, variables)``
    :param names: Of these variables; by default those that ``read`` has in an attribute ``names``, and else numbers
    :param title: Of the page; by default the names of algorithm and policy
    :raises ValueError: If the model has no encoder, or a number is not positive
    :raises ImportError: If Matplotlib is not installed
    """
    env, out = checks.instance("env", env, VecEnv), checks.path("out", out)
    n_steps, horizon = checks.whole_number("n_steps", n_steps), checks.whole_number("horizon", horizon)
    read, names = checks.optional(checks.function, "read", read), checks.optional(checks.texts, "names", names)
    title = checks.text("title", title, may_be_empty=True)
    curves = _check_curves(curves)
    # Fail before the model acts, if Matplotlib is not installed
    pictures.new_figure(1, 1, "")
    latent_model = LatentModel(model)
    episodes = play_episodes(model, env, n_steps, read=read)
    portrait = Portrait(latent_model, episodes, horizon)
    title = title or f"{type(model).__name__} with {type(model.policy).__name__}"
    sections = [_summary(portrait, title)]
    shown = {
        name: pictures.curve_figure(*curve, name)
        for end in CURVES
        for name, curve in curves.items()
        if _ends(name, end)
    }
    captions = {name: text for name in shown for end, text in CURVES.items() if _ends(name, end)}
    sections.append(_section("Training", shown, captions))
    sections.append(_section("Encoder", portrait.pictures(), PICTURES))
    others, texts = _scores(portrait, getattr(read, "names", None) if names is None else names)
    sections.append(_section("Predictor and probes", others, texts))
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )
    with replace_when_complete(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _check_curves(curves: Any) -> dict[str, Curve]:
    if not isinstance(curves, (Mapping, type(None))):
        checks.refuse("curves", "a dictionary of curves, time steps and values by name, or None", curves)
    return dict(curves or {})


def _ends(name: str, end: str) -> bool:
    # Separate encoders log at jepa/<network>/<name>
    return name == end or (name.startswith("jepa/") and name.endswith(f"/{end}"))


def _summary(portrait: Portrait, title: str) -> str:
    verdict = portrait.verdict
    n_steps = sum(len(episode.actions) for episode in portrait.episodes)
    facts = {
        "time steps of training": f"{portrait.latent_model.model.num_timesteps:,}",
        "looked at": f"{n_steps:,} steps of {len(portrait.episodes)} episodes or parts of such, played by the model",
        "mean reward of a step": f"{np.mean(np.concatenate([episode.rewards for episode in portrait.episodes])):.3g}",
        "embedding variance": f"{portrait.variance:.3g} (untrained: {portrait.first_variance:.3g})",
        "effective rank": f"{portrait.rank:.1f} of {portrait.embeddings.shape[1]}",
        "participation ratio": f"{portrait.participation:.1f}",
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    return (
        f"<h1>{html.escape(title)}</h1>\n"
        f'<p class="verdict" style="border-color: {pictures.COLOURS[verdict.label]}"><b>{verdict.label.upper()}</b>: '
        f"{html.escape(verdict.reason)}</p>\n<table>{rows}</table>"
    )


def _scores(portrait: Portrait, names: Sequence[str] | None) -> "tuple[dict[str, Figure], dict[str, str]]":
    figures, captions = {}, {}
    if portrait.verdict.label == "diverged":
        return {}, {}
    surprises = portrait.surprises()
    fit = getattr(portrait.latent_model.model, "fit", None)
    if fit is not None:
        figures["chunks"] = pictures.chunk_figure(fit.error_by_step, fit.error_of_last_action, fit.error_of_mean_action)
        captions["chunks"] = f"{CHUNKS} {fit}"
    if surprises is not None:
        figures["surprise"] = pictures.surprise_figure(*surprises, area_under_curve(*surprises))
        captions["surprise"] = SURPRISE
    r2 = portrait.probe(names)
    if r2:
        figures["probes"] = pictures.probe_figure(r2)
        captions["probes"] = PROBES
    return figures, captions


def _section(title: str, figures: "Mapping[str, Figure]", captions: Mapping[str, str]) -> str:
    if not figures:
        return ""
    cards = "\n".join(
        f'<figure id="{html.escape(name)}"><img alt="{html.escape(name)}" src="data:image/png;base64,{_png(figure)}">'
        f"<figcaption>{html.escape(captions[name])}</figcaption></figure>"
        for name, figure in figures.items()
    )
    return f'<h2>{title}</h2>\n<div class="grid">\n{cards}\n</div>'


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=pictures.DPI)
    return base64.b64encode(buffer.getvalue()).decode()
