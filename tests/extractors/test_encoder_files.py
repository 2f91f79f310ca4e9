import inspect
import json

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, JepaExtractor, load_encoder, read_encoder, save_encoder
from sb3_jepa.extractors.files import FORMAT, describe_encoder, find_encoder_file, write_encoder
from sb3_jepa.extractors.teachers import TeacherFile
from tests.conftest import SMALL_PPO, FakeEnv

SPACE = spaces.Box(-5, 5, (6,))
IMAGE = spaces.Box(0, 255, (3, 16, 16), np.uint8)
EXTRACTOR = dict(embed_dim=8, num_heads=2, depth=1, standardize_frames=64)
ENDINGS = ("safetensors", "pth")


class OwnExtractor(JepaExtractor):
    """As users write them, with an argument of its own."""

    def __init__(self, observation_space: spaces.Space, width: int = 8, **kwargs):
        super().__init__(observation_space, embed_dim=width, **kwargs)


def make_model(policy: str = "JepaPolicy", space: spaces.Space = SPACE, **policy_kwargs):
    env = make_vec_env(lambda: FakeEnv(space), n_envs=2, seed=0)
    kwargs = dict(dict(features_extractor_kwargs=EXTRACTOR, net_arch=[8]), **policy_kwargs)
    return (PPO if policy == "JepaPolicy" else StockPPO)(policy, env, policy_kwargs=kwargs, **SMALL_PPO)


def assert_same(one: th.nn.Module, other: th.nn.Module) -> None:
    one_state, other_state = one.state_dict(), other.state_dict()
    assert one_state.keys() == other_state.keys()
    assert all(th.equal(value, other_state[name]) for name, value in one_state.items())


def write_as_before(encoder: JepaExtractor, folder, ending: str, **about) -> None:
    """As an earlier sb3_jepa did: parameters alone, and the description beside them."""
    space = dict(type="Box", low=-5.0, high=5.0, shape=[6], dtype="float32")
    about = dict(about, observation_space=space, features_extractor_kwargs=EXTRACTOR)
    (folder / "encoder.json").write_text(json.dumps(about))
    state = encoder.state_dict()
    if ending == "pth":
        th.save(state, folder / "encoder.pth")
    else:
        safetensors.torch.save_file(state, folder / "encoder.safetensors")


def rewrite(path, **changes) -> None:
    """Change what a file says of its encoder."""
    text = json.dumps({**describe_encoder(path), **changes})
    if path.suffix == ".pth":
        th.save(dict(th.load(path, weights_only=True), sb3_jepa=text), path)
    else:
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, dict(sb3_jepa=text))


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_encoder_that_was_saved_from_a_model_could_not_be_read_without_one(ending, tmp_path):
    model = make_model().learn(64)
    path = save_encoder(model, tmp_path / f"encoder.{ending}")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for found in (read_encoder(path), read_encoder(tmp_path), TeacherFile(path).make()):
        assert_same(found, model.policy.features_extractor)
        assert not found.training
    other = make_model()
    load_encoder(other, tmp_path)
    assert_same(other.policy.features_extractor, model.policy.features_extractor)


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_programs_can_read_the_file(ending, tmp_path):
    path = write_encoder(JepaExtractor(SPACE, **EXTRACTOR), tmp_path / f"encoder.{ending}", EXTRACTOR)
    if ending == "pth":
        content = th.load(path, weights_only=True)
        text, names = content["sb3_jepa"], content["state_dict"].keys()
    else:
        with safetensors.safe_open(path, "pt") as opened:
            text, names = opened.metadata()["sb3_jepa"], opened.keys()
    assert json.loads(text) == describe_encoder(path)
    assert set(names) == JepaExtractor(SPACE, **EXTRACTOR).state_dict().keys()
    # The file is as public as any other one
    (tmp_path / "any").write_text("")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize(
    ("space", "chosen"),
    [
        (IMAGE, dict(patch_size=4, frames=3)),
        (spaces.Box(-1, 1, (70,)), dict(numbers_per_token=3)),
        (spaces.MultiDiscrete([3] * 70), dict(numbers_per_token=3)),
        (
            spaces.Dict(mode=spaces.Discrete(3), image=IMAGE, vector=spaces.Box(-1, 1, (70,))),
            dict(patch_size=4, numbers_per_token=3),
        ),
        (
            spaces.Dict(small=IMAGE, large=spaces.Box(0, 255, (3, 64, 64), np.uint8)),
            dict(patch_size=None),
        ),
    ],
)
def test_a_file_relied_on_the_defaults_of_the_day(space, chosen, tmp_path):
    encoder = JepaExtractor(space, embed_dim=8, num_heads=2)
    path = write_encoder(encoder, tmp_path / "encoder.pth", dict(embed_dim=8, num_heads=2, frozen=True))
    kwargs = describe_encoder(path)["features_extractor_kwargs"]
    assert kwargs.items() >= dict(chosen, embed_dim=8, num_heads=2, depth=2, standardize_frames=1024).items()
    # One says how a model uses it, the other how fast it is
    accepted = inspect.signature(JepaExtractor).parameters.keys() - {"observation_space", "frozen", "compile_kwargs"}
    assert kwargs.keys() == accepted
    assert_same(read_encoder(path), encoder)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("names_file", [True, False])
def test_files_of_before(ending, names_file, tmp_path):
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    write_as_before(encoder, tmp_path, ending, **(dict(file=f"encoder.{ending}") if names_file else {}))
    for name in ("encoder.onnx", "encoder.py", "encoder.notes.md"):
        (tmp_path / name).write_text(name)
    path = find_encoder_file(tmp_path)
    assert path == tmp_path / f"encoder.{ending}"
    for found in (read_encoder(tmp_path), read_encoder(path), TeacherFile(tmp_path).make()):
        assert_same(found, encoder)
    assert describe_encoder(tmp_path)["features_extractor_kwargs"] == EXTRACTOR
    # Of save_encoder() there was nothing else
    (tmp_path / "encoder.json").unlink()
    model = make_model()
    load_encoder(model, path)
    assert_same(model.policy.features_extractor, encoder)
    with pytest.raises(
        ValueError, match=r"has none: save_encoder of an earlier sb3_jepa .*load_encoder\(model, path\)"
    ):
        read_encoder(path)


def test_of_two_files_the_description_names_one(tmp_path):
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    write_as_before(encoder, tmp_path, "pth", file="encoder.pth")
    (tmp_path / "encoder.safetensors").write_text("mine")
    assert_same(read_encoder(tmp_path), encoder)
    # One that is left behind does not speak for another file
    write_encoder(encoder, tmp_path / "encoder.pth", EXTRACTOR)
    (tmp_path / "encoder.json").write_text(json.dumps(dict(file="encoder.pth", features_extractor_kwargs={})))
    assert_same(read_encoder(tmp_path), encoder)


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_of_a_later_format_say_update(ending, tmp_path):
    path = save_encoder(make_model(), tmp_path / f"encoder.{ending}")
    rewrite(path, format=FORMAT + 1)
    for read in (read_encoder, describe_encoder, TeacherFile, lambda path: load_encoder(make_model(), path)):
        with pytest.raises(ValueError, match=rf"encoder\.{ending} has format {FORMAT + 1} .*: update it, pip install"):
            read(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_class_that_is_not_imported(ending, tmp_path, monkeypatch):
    kwargs = dict(width=16, num_heads=2, depth=1, standardize_frames=0)
    own = dict(features_extractor_class=OwnExtractor, features_extractor_kwargs=kwargs)
    model = make_model(**own)
    path = save_encoder(model, tmp_path / f"encoder.{ending}")
    for found in (read_encoder(path), TeacherFile(path).make()):
        assert type(found) is OwnExtractor
        assert_same(found, model.policy.features_extractor)
    # This module would leave a file, were it imported
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(path, features_extractor_class="harmful:OwnExtractor")
    with pytest.raises(ValueError, match=r"of the class harmful:OwnExtractor, and no JepaExtractor of that name is im"):
        read_encoder(path)
    assert not (tmp_path / "imported").exists()
    other = make_model(**own)
    load_encoder(other, path)
    assert_same(other.policy.features_extractor, model.policy.features_extractor)


def test_what_json_cannot_hold_is_still_loaded_into_a_model(tmp_path):
    def backend(graph, inputs):
        return graph.forward

    kwargs = dict(EXTRACTOR, compile_kwargs=dict(backend=backend))
    path = save_encoder(make_model(features_extractor_kwargs=kwargs), tmp_path / "compiled")
    assert read_encoder(path).compile_kwargs is None
    del kwargs["embed_dim"]
    own = dict(features_extractor_class=OwnExtractor, features_extractor_kwargs=kwargs)
    path = save_encoder(make_model(**own), tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"cannot be written as JSON. Load it with load_encoder\(model, path\)"):
        read_encoder(path)
    load_encoder(make_model(), path)


def test_encoders_of_other_classes_are_for_models_alone(tmp_path):
    from sb3_jepa import JepaCallback

    model = make_model("CnnPolicy", spaces.Box(0, 255, (3, 36, 36), np.uint8), features_extractor_kwargs={})
    model.learn(32, callback=JepaCallback())
    path = save_encoder(model, tmp_path / "encoder.pth")
    load_encoder(model, path)
    with pytest.raises(ValueError, match=r"of the class stable_baselines3\..*:NatureCNN, and no JepaExtractor"):
        read_encoder(path)


def test_an_encoder_of_nan_was_read(tmp_path):
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    with th.no_grad():
        encoder.encoder.class_token[..., 1] = th.nan
    with pytest.warns(UserWarning, match=r"holds NaN or infinite values, first in encoder\.class_token"):
        path = write_encoder(encoder, tmp_path / "encoder", EXTRACTOR)
    with pytest.raises(ValueError, match=rf"{path.name} holds NaN or infinite values, first in encoder\.class_token"):
        read_encoder(tmp_path)


@pytest.mark.parametrize("content", [None, "description"])
def test_no_encoder(content, tmp_path):
    if content == "description":
        write_as_before(JepaExtractor(SPACE, **EXTRACTOR), tmp_path, "pth", file="encoder.pth")
        (tmp_path / "encoder.pth").unlink()
    for read in (read_encoder, describe_encoder, TeacherFile, lambda path: load_encoder(make_model(), path)):
        with pytest.raises(ValueError, match=r"`path` must be an encoder .* or the folder of a pretraining"):
            read(tmp_path)
