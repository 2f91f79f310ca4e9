import pytest
import torch as th
from gymnasium import spaces

from sb3_jepa import JepaExtractor, read_encoder
from sb3_jepa.pretrain.encoder_files import find_encoder_file, write_pretrained

SPACE = spaces.Box(-5, 5, (6,))
EXTRACTOR = dict(embed_dim=8, num_heads=2, depth=1, standardize_frames=64)


def test_a_folder_holds_one_encoder(monkeypatch, tmp_path):
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    monkeypatch.setattr("sb3_jepa.encoders.find_spec", lambda _: None)
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


@pytest.mark.parametrize("content", [None, "encoder", "description"])
def test_no_encoder(content, tmp_path):
    if content is not None:
        write_pretrained(JepaExtractor(SPACE, **EXTRACTOR), tmp_path, SPACE, EXTRACTOR, {})
        find_encoder_file(tmp_path).unlink() if content == "description" else (tmp_path / "encoder.json").unlink()
    with pytest.raises(ValueError, match=r"There is no pretrained encoder|`path` must be an encoder"):
        read_encoder(tmp_path)
