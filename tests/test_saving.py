import os

import pytest

from sb3_jepa.saving import replace_when_complete


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.zip"
    path.write_text("old")

    def save():
        with replace_when_complete(path) as unfinished:
            unfinished.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.zip"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "first.zip").write_text("old")
    (tmp_path / "latest.zip").symlink_to(tmp_path / "first.zip")
    for name, text in (("latest.zip", "new"), ("latest", "newer")):
        with replace_when_complete(tmp_path / name, suffix=".zip") as unfinished:
            unfinished.write_text(text)
        assert (tmp_path / "latest.zip").is_symlink()
        assert (tmp_path / "first.zip").read_text() == text


def test_a_completed_save_replaces_the_old_file(tmp_path):
    path = tmp_path / "new folder" / "model.zip"
    for text in ("old", "new"):
        with replace_when_complete(path) as unfinished:
            unfinished.write_text(text)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["model.zip"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
