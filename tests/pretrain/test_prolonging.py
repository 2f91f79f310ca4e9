import json
import sys

import pytest
import torch as th
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_jepa import JepaExtractor, SaltTeacher, pretrain, pretrain_salt, read_encoder
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.pretrain.training import make_optimizer
from tests.pretrain.test_salt import SMALL_SALT
from tests.pretrain.test_training import (
    EXTRACTOR,
    SMALL,
    SPACE,
    Interrupted,
    assert_same,
    interrupt,
    make_recordings,
    rows_of,
    script_measurements,
    state_of,
)

LONGER = dict(SMALL, n_updates=11)


def mtimes(folder) -> dict:
    return {file: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_longer_pretraining_was_taken_for_another_one(monkeypatch, tmp_path):
    names = ("whole", "interrupted")
    for name in names:
        pretrain(make_recordings(), tmp_path / name, **SMALL)
    short = rows_of(tmp_path / "whole")
    before = th.load(tmp_path / "whole" / "checkpoint.pth", weights_only=True)["encoder"]
    pretrain(make_recordings(), tmp_path / "whole", **LONGER)
    for after in (7, 9):
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            with pytest.raises(Interrupted):
                pretrain(make_recordings(), tmp_path / "interrupted", **LONGER)
    pretrain(make_recordings(), tmp_path / "interrupted", **LONGER)
    # It has learned on, and ends where it would have ended without an interruption
    one, other = (th.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in names)
    assert any(not th.equal(value, one["encoder"][name]) for name, value in before.items())
    assert_same(one["encoder"], other["encoder"])
    assert_same(*(state_of(tmp_path / name) for name in names))
    # The curves go on
    rows = rows_of(tmp_path / "whole")
    assert rows == rows_of(tmp_path / "interrupted")
    assert rows[:4] == short
    steps = [0, 2, 4, 6, 8, 10, 11]
    assert [int(row["time/updates"]) for row in rows] == steps
    events = EventAccumulator(str(tmp_path / "whole")).Reload()
    # Files of one second are in any order
    assert sorted(event.step for event in events.Scalars("jepa/validation_loss")) == steps
    # What is finished is not done again, and a shorter one is another
    finished = mtimes(tmp_path / "whole")
    pretrain(make_recordings(), tmp_path / "whole", **LONGER)
    with pytest.raises(ValueError, match=r"another pretraining.*n_updates is 11 there and 6 here"):
        pretrain(make_recordings(), tmp_path / "whole", **SMALL)
    assert finished == mtimes(tmp_path / "whole")


def test_a_folder_holds_one_encoder_file_also_where_safetensors_was_installed_since(monkeypatch, tmp_path):
    settings = {**SMALL, "objective_class": SaltTeacher}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors", None)
        path = pretrain(make_recordings(), tmp_path, **settings)
    before = path.read_bytes()
    (tmp_path / "encoder.safetensors").write_text("mine")
    assert pretrain(make_recordings(), tmp_path, **{**settings, "n_updates": 20}) == path == tmp_path / "encoder.pth"
    assert path.read_bytes() != before
    assert (tmp_path / "encoder.safetensors").read_text() == "mine"


def test_patience_counts_anew(monkeypatch, tmp_path):
    losses = [5.0, 3.0, 4.0, 4.0, 3.5, 2.0, 9.0, 9.0]
    seen = script_measurements(monkeypatch, validation_loss=losses)
    settings = {**SMALL, "objective_class": SaltTeacher, "n_updates": 20, "patience": 2}
    pretrain(make_recordings(), tmp_path, **settings)
    assert len(seen) == 4
    for _ in range(2):
        pretrain(make_recordings(), tmp_path, **{**settings, "n_updates": 40})
        assert len(seen) == 8
    # The best is still that of before until there is a better one
    assert_same(state_of(tmp_path), seen[5])


def test_the_second_stage_of_salt_is_prolonged_with_the_teacher_it_has(tmp_path):
    pretrain_salt(make_recordings(), tmp_path, **SMALL_SALT)
    teacher = mtimes(tmp_path / "teacher")
    pretrain_salt(make_recordings(), tmp_path, **{**SMALL_SALT, "n_updates": 18})
    assert rows_of(tmp_path)[-1]["time/updates"] == "16"
    with pytest.raises(ValueError, match=r"`teacher_updates` must be those of the teacher that .*, 2, got 3"):
        pretrain_salt(make_recordings(), tmp_path, teacher_updates=3, **{**SMALL_SALT, "n_updates": 18})
    assert teacher == mtimes(tmp_path / "teacher")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_pretraining_that_an_earlier_version_began_goes_on(weight_decay, monkeypatch, tmp_path):
    settings = {**SMALL, "objective_class": SaltTeacher, "weight_decay": weight_decay}
    pretrain(make_recordings(), tmp_path / "whole", **settings)
    folder = tmp_path / "before"
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(Interrupted):
            pretrain(make_recordings(), folder, **settings)
    # All parameters were in one group, and the description in a file of its own
    state = th.load(folder / "checkpoint.pth", weights_only=True)
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    optimizer, trained = make_optimizer(
        encoder, SaltTeacher(encoder, 8, **SMALL["objective_kwargs"]), 1e-3, weight_decay
    )
    optimizer.load_state_dict(state["optimizer"])
    in_one_group = th.optim.AdamW(trained, lr=1e-3, weight_decay=weight_decay, fused=True)
    in_one_group.state.update(optimizer.state)
    state["optimizer"] = in_one_group.state_dict()
    file = folder / state.pop("encoder_file")
    th.save(state, folder / "checkpoint.pth")
    described = dict(describe_encoder(folder), file="encoder.pth", features_extractor_kwargs=EXTRACTOR)
    th.save(read_encoder(folder).state_dict(), folder / "encoder.pth")
    file.unlink()
    (folder / "encoder.json").write_text(json.dumps(described))
    assert pretrain(make_recordings(), folder, **settings) == folder / "encoder.pth"
    assert_same(state_of(folder), state_of(tmp_path / "whole"))
    assert describe_encoder(folder) == describe_encoder(tmp_path / "whole")
    # The description is in the encoder's file now
    assert not (folder / "encoder.json").exists()
