import base64
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_jepa import PPO, JepaCallback, JepaExtractor, JepaPolicy
from sb3_jepa.envs.for_model import make_env_for
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.report.__main__ import attribute_reader, main
from sb3_jepa.report.page import write_report
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STATE_NAMES = ["x", "x_dot", "theta", "theta_dot"]
ALWAYS = {"trajectory", "spectrum", "attention"}
OF_PREDICTOR = {"unrolled", "surprise"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the curves of a short training, and its model."""
    folder = tmp_path_factory.mktemp("runs")
    env = make_pixel_vec_env("CartPole-v1", n_envs=2, seed=0, frame_size=32)
    model = PPO(JepaPolicy, env, policy_kwargs=SMALL_POLICY, tensorboard_log=str(folder), **SMALL_PPO)
    model.learn(3 * 32)
    model.save(folder / "PPO_1" / "model")
    return folder / "PPO_1"


@pytest.fixture(scope="module")
def page(run):
    """The file that the command line writes about it."""
    out = run / "page.html"
    main(
        [str(run), "--env", "CartPole-v1", "--steps", "200", "--out", str(out), "--probe-names", "x", "v", "angle", "w"]
    )
    return out


def figures_of(page) -> set[str]:
    return set(re.findall(r'<figure id="([^"]+)">', page.read_text()))


def figure_width(page) -> int:
    """Of a picture, in pixels."""
    png = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", page.read_text())[1])
    # As the header of the format has it
    return int.from_bytes(png[16:20], "big")


def test_the_page_shows_everything(page):
    shown = figures_of(page)
    assert shown >= ALWAYS | OF_PREDICTOR | {"probes"}
    assert shown >= {"rollout/ep_rew_mean", "jepa/embedding_variance", "jepa/prediction_to_copy_ratio"}
    text = page.read_text()
    assert "96" in text.split("time steps of training")[1][:40]
    # A judgement, and nothing that a network would be needed for
    assert re.search(r"<b>(HEALTHY|LOW RANK|COLLAPSED)</b>", text)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "url(" not in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt install chromium)")
def test_a_browser_without_a_network_shows_all_pictures(page, tmp_path):
    # What the page looks like from inside, told through its title
    count = "document.title = [...document.images].filter(i => i.complete && i.naturalWidth > 300).length + ' shown'"
    spied = tmp_path / "page.html"
    spied.write_text(page.read_text().replace("</body>", f"<script>onload = () => {{{count}}}</script></body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000"]
    result = subprocess.run(
        [*command, *offline, "--dump-dom", spied.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    n_pictures = len(figures_of(page))
    assert n_pictures > 10
    assert f"<title>{n_pictures} shown</title>" in result.stdout
    screenshot = tmp_path / "page.png"
    subprocess.run(
        [*command, *offline[:1], f"--screenshot={screenshot}", "--window-size=1240,3000", page.as_uri()],
        capture_output=True,
        check=True,
        timeout=120,
    )
    from PIL import Image

    pixels = np.asarray(Image.open(screenshot).convert("L"))
    # Not a blank page: something dark in each of its upper thirds
    assert all((part < 100).mean() > 1e-3 for part in np.array_split(pixels[:1800], 3))


def test_the_page_uses_a_wide_window(page):
    style = page.read_text().split("<style>")[1].split("</style>")[0]
    body = style.split("body {")[1].split("}")[0]
    assert "width" not in body
    assert "grid-template-columns: repeat(auto-fit," in style
    # As wide as they were drawn, so that none is blurred
    assert figure_width(page) == int(re.search(r"max-width: (\d+)px", style.split("figure {")[1])[1])


@pytest.mark.parametrize(("attribute", "names"), [(None, STATE_NAMES), ("state", STATE_NAMES), ("x_threshold", None)])
def test_what_is_probed_has_the_names_of_the_state(attribute, names):
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
    read, found = attribute_reader(env, attribute)
    assert found == names
    assert read(env).shape == (2, len(names or ["x_threshold"]))


def test_as_a_module(run, tmp_path):
    command = [sys.executable, "-m", "sb3_jepa.report", str(run / "model.zip"), "--env", "CartPole-v1"]
    subprocess.run([*command, "--steps", "60", "--out", "page.html"], check=True, cwd=tmp_path, capture_output=True)
    assert figures_of(tmp_path / "page.html") >= ALWAYS | OF_PREDICTOR | {"jepa/effective_rank"}


def test_curves_are_those_beside_the_model_or_in_the_folder_that_is_given(run, tmp_path):
    # Below the folder of a single model there may be anything
    (tmp_path / "other").mkdir()
    shutil.copy(next(run.glob("events*")), tmp_path / "other")
    shutil.copy(run / "model.zip", tmp_path / "model.zip")
    out = tmp_path / "page.html"
    arguments = [str(tmp_path / "model.zip"), "--env", "CartPole-v1", "--steps", "60", "--out", str(out)]
    main(arguments)
    assert "jepa/effective_rank" not in figures_of(out)
    main([*arguments, "--curves", str(run)])
    assert "jepa/effective_rank" in figures_of(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.zip", "--env", "CartPole-v1"], "`path` must be a saved model"),
        (["RUN", "--env", "CartPole-v1", "--steps", "0"], "`n_steps` must be a positive whole number, got 0"),
        (["RUN", "--env", "CartPole-v17"], "`env_id` must be the ID of an environment, got 'CartPole-v17'"),
        (["RUN", "--env", "Pendulum-v1"], r"gives Discrete\(2\), and Pendulum-v1 .* takes Box\(-2.0"),
        (["RUN", "--env", "CartPole-v1", "--probe", "nothing"], "no attribute 'nothing'"),
        (["RUN", "--env", "CartPole-v1", "--steps", "40", "--probe-names", "x"], "`names` must be as many as the 4"),
        (["RUN", "--env", "CartPole-v1", "--probe", "spec"], "'spec' of the environments holds no numbers"),
        (["RUN", "--env", "CartPole-v1", "--vecnormalize", "nothing.pkl"], "nothing.pkl"),
        (["RUN", "--env", "CartPole-v1", "--algorithm", "json:loads"], r'"module:class".*json:loads'),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(arguments, message, run, capsys, tmp_path):
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--out", str(tmp_path / "page.html")])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_alternating_training_off_policy_and_vectors(tmp_path):
    env = make_vec_env("CartPole-v1", n_envs=1, seed=0)
    kwargs = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR)
    model = stable_baselines3.DQN("MlpPolicy", env, policy_kwargs=kwargs, learning_starts=64, seed=0, device="cpu")
    model.learn(200, callback=JepaCallback())
    model.save(tmp_path / "model")
    main([str(tmp_path), "--env", "CartPole-v1", "--steps", "100", "--out", str(tmp_path / "page.html")])
    assert figures_of(tmp_path / "page.html") >= ALWAYS | OF_PREDICTOR | {"probes"}


def test_an_encoder_without_a_predictor(tmp_path):
    kwargs = dict(features_extractor_class=JepaExtractor, features_extractor_kwargs=SMALL_EXTRACTOR)
    model = stable_baselines3.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=kwargs)
    write_report(model, make_env_for(model, "Pendulum-v1", n_envs=2), tmp_path / "page.html", n_steps=50, title="<own>")
    assert figures_of(tmp_path / "page.html") == ALWAYS
    assert "<h1>&lt;own&gt;</h1>" in (tmp_path / "page.html").read_text()


def test_observations_are_normalized_as_in_the_training(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    model = PPO(JepaPolicy, env, policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(96)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    arguments = [str(tmp_path), "--env", "CartPole-v1", "--steps", "40", "--out", str(tmp_path / "page.html")]
    main([*arguments, "--vecnormalize", str(tmp_path / "vecnormalize.pkl")])
    assert figures_of(tmp_path / "page.html") >= ALWAYS | OF_PREDICTOR


def test_a_failure_leaves_the_old_page(page, run, monkeypatch, tmp_path):
    old = page.read_text()
    model = PPO.load(run / "model", device="cpu")
    env = make_env_for(model, "CartPole-v1", n_envs=1)
    with pytest.raises(ValueError, match="`names` must be as many as the 4 variables"):
        write_report(model, env, page, n_steps=200, read=lambda venv: np.array(venv.get_attr("state")), names=["x"])
    assert page.read_text() == old
    with pytest.raises(ValueError, match="`horizon` must be a positive whole number"):
        write_report(model, env, page, n_steps=50, horizon=0)
    assert page.read_text() == old


def test_the_page_survives_any_name_of_a_curve(tmp_path):
    """A broken formula in it was the end of the whole page."""
    model = PPO("JepaPolicy", "CartPole-v1", policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    name = "jepa/$\\frac{<a$/prediction_loss"
    curves = {name: (np.arange(3), np.arange(3.0))}
    env = make_env_for(model, "CartPole-v1", n_envs=1)
    write_report(model, env, tmp_path / "page.html", curves, n_steps=20, title="$\\frac$")
    text = (tmp_path / "page.html").read_text()
    assert "<h1>$\\frac$</h1>" in text
    assert f'<figure id="{name.replace("<", "&lt;")}">' in text


def test_needs_an_encoder(tmp_path):
    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="has no encoder"):
        write_report(model, make_env_for(model, "CartPole-v1"), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
