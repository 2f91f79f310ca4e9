import json

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_jepa import JepaExtractor, read_encoder
from sb3_jepa.extractors.pretrained import find_encoder_file, write_pretrained

SPACE = spaces.Box(-5, 5, (6,))
EXTRACTOR = dict(embed_dim=8, num_heads=2, depth=1, standardize_frames=64)


def test_a_folder_holds_one_encoder(monkeypatch, tmp_path):
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    monkeypatch.setattr("sb3_jepa.extractors.files.find_spec", lambda _: None)
    first = write_pretrained(encoder, tmp_path, SPACE, EXTRACTOR, {})
    assert first.suffix == ".pth"
    monkeypatch.undo()
    with th.no_grad():
        encoder.encoder.class_token += 1.0
    second = write_pretrained(encoder, tmp_path, SPACE, EXTRACTOR, {})
    assert second.suffix == ".safetensors"
    assert find_encoder_file(tmp_path) == second
    state, found = encoder.state_dict(), read_encoder(tmp_path).state_dict()
    assert found.keys() == state.keys()
    assert all(th.equal(found[name], value) for name, value in state.items())
    assert not first.exists()
    # Others may read it as they may read what else is written
    assert second.stat().st_mode == second.with_suffix(".json").stat().st_mode


def test_files_of_others_were_deleted_or_taken_for_the_encoder(monkeypatch, tmp_path):
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    others = ("encoder.onnx", "encoder.py", "encoder.notes.md", "encoder.txt")
    for name in others:
        (tmp_path / name).write_text(name)
    for is_installed in (None, True, True):
        with monkeypatch.context() as patch:
            patch.setattr("sb3_jepa.extractors.files.find_spec", lambda _, found=is_installed: found)
            path = write_pretrained(encoder, tmp_path, SPACE, EXTRACTOR, {})
        assert find_encoder_file(tmp_path) == path
        assert {file.name for file in tmp_path.iterdir()} == {*others, path.name, "encoder.json"}
    assert all((tmp_path / name).read_text() == name for name in others)
    # One that nothing names is somebody's own
    (tmp_path / "encoder.pth").write_text("mine")
    write_pretrained(encoder, tmp_path, SPACE, EXTRACTOR, {})
    assert (tmp_path / "encoder.pth").read_text() == "mine"
    assert read_encoder(tmp_path).features_dim == 8


def test_folders_whose_description_names_no_file(tmp_path):
    path = write_pretrained(JepaExtractor(SPACE, **EXTRACTOR), tmp_path, SPACE, EXTRACTOR, {})
    description = tmp_path / "encoder.json"
    described = json.loads(description.read_text())
    assert described.pop("file") == path.name
    description.write_text(json.dumps(described))
    (tmp_path / "encoder.onnx").write_text("")
    assert find_encoder_file(tmp_path) == path


def test_a_pretrained_encoder_of_nan_was_read(tmp_path):
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    with th.no_grad():
        encoder.encoder.class_token[..., 1] = th.nan
    with pytest.warns(UserWarning, match=r"holds NaN or infinite values, first in encoder\.class_token"):
        path = write_pretrained(encoder, tmp_path, SPACE, EXTRACTOR, {})
    with pytest.raises(ValueError, match=rf"{path.name} holds NaN or infinite values, first in encoder\.class_token"):
        read_encoder(tmp_path)


def test_numbers_of_numpy_became_texts(tmp_path):
    kwargs = {name: np.int64(value) for name, value in EXTRACTOR.items()} | dict(final_norm=np.bool_(True))
    about = dict(scores=np.arange(2), rate=np.float32(0.5))
    write_pretrained(JepaExtractor(SPACE, **kwargs), tmp_path, SPACE, kwargs, about)
    described = json.loads((tmp_path / "encoder.json").read_text())
    assert described["features_extractor_kwargs"] == dict(EXTRACTOR, final_norm=True)
    assert (described["scores"], described["rate"]) == ([0, 1], 0.5)
    assert read_encoder(tmp_path).features_dim == 8


@pytest.mark.parametrize("content", [None, "encoder", "description"])
def test_no_encoder(content, tmp_path):
    if content is not None:
        write_pretrained(JepaExtractor(SPACE, **EXTRACTOR), tmp_path, SPACE, EXTRACTOR, {})
        find_encoder_file(tmp_path).unlink() if content == "description" else (tmp_path / "encoder.json").unlink()
    with pytest.raises(ValueError, match=r"There is no pretrained encoder|`path` must be an encoder"):
        read_encoder(tmp_path)
