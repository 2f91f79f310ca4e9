import pytest
import torch as th
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_jepa import DmtJepa, JepaExtractor, Salt, SaltTeacher, TJepa, pretrain
from sb3_jepa.extractors.files import describe_encoder
from tests.pretrain.test_training import (
    EXTRACTOR,
    SMALL,
    SPACE,
    Interrupted,
    assert_same,
    interrupt,
    make_images,
    make_recordings,
    rows_of,
    state_of,
)


@pytest.mark.parametrize(
    "method",
    [
        dict(objective_class=TJepa),
        dict(objective_class=SaltTeacher, patience=5, weight_decay=0.1),
        dict(objective_class=Salt, criterion="probe_r2"),
        dict(objective_class=DmtJepa),
    ],
)
def test_one_seed_gives_one_encoder_also_after_interruptions(method, monkeypatch, tmp_path):
    recordings, settings = make_recordings(), {**SMALL, **method}
    if method["objective_class"] is Salt:
        teacher = JepaExtractor(SPACE, **EXTRACTOR)
        settings["objective_kwargs"] = dict(SMALL["objective_kwargs"], teacher=teacher)
    if method["objective_class"] is DmtJepa:
        recordings, settings["features_extractor_kwargs"] = make_images(), dict(EXTRACTOR, patch_size=4)
    pretrain(recordings, tmp_path / "whole", **settings)
    th.rand(3)
    # Before anything but the untrained encoder was evaluated; in the middle, right after an evaluation and later
    for after in (1, 2, 5):
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            with pytest.raises(Interrupted):
                pretrain(recordings, tmp_path / "interrupted", **settings)
        th.rand(after)
    pretrain(recordings, tmp_path / "interrupted", **settings)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "interrupted"))
    rows = rows_of(tmp_path / "whole")
    assert [row["time/updates"] for row in rows] == ["0", "2", "4", "6"]
    assert rows == rows_of(tmp_path / "interrupted")
    one, other = (describe_encoder(tmp_path / name) for name in ("whole", "interrupted"))
    assert one == other
    pretrain(recordings, tmp_path / "other", **{**settings, "seed": 1})
    assert any(
        not th.equal(value, state_of(tmp_path / "other")[name]) for name, value in state_of(tmp_path / "whole").items()
    )


def test_tensorboard_has_each_curve_once_also_after_an_interruption(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(make_recordings(), tmp_path, **SMALL)
    pretrain(make_recordings(), tmp_path, **SMALL)
    events = EventAccumulator(str(tmp_path)).Reload()
    names = ("validation_loss", "probe_r2", "embedding_variance", "effective_rank", "momentum")
    for name in names:
        assert [event.step for event in events.Scalars(f"jepa/{name}")] == [0, 2, 4, 6]
    assert [event.step for event in events.Scalars("jepa/prediction_loss")] == [2, 4, 6]
    for row, event in zip(rows_of(tmp_path), events.Scalars("jepa/probe_r2"), strict=True):
        assert event.value == pytest.approx(float(row["jepa/probe_r2"]), rel=1e-5)


def test_what_is_finished_is_not_done_again(monkeypatch, tmp_path):
    path = pretrain(make_recordings(), tmp_path, **SMALL)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    monkeypatch.setattr(th.optim.AdamW, "step", lambda *_: pytest.fail("it was finished"))
    assert pretrain(make_recordings(), tmp_path, **SMALL) == path
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}


def test_schedules_are_the_same_wherever_they_are_in_memory(tmp_path):
    class Schedule:
        def __call__(self, progress_remaining: float) -> float:
            return 1.0 - 0.01 * progress_remaining

    schedules = [Schedule(), Schedule()]
    for schedule in schedules:
        kwargs = dict(SMALL, objective_kwargs=dict(SMALL["objective_kwargs"], momentum=schedule))
        pretrain(make_recordings(), tmp_path, **kwargs)
    assert len(rows_of(tmp_path)) == 4


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(monkeypatch, tmp_path):
    save, n_saved = th.save, []

    def fail(state, file):
        n_saved.append(file)
        if len(n_saved) == 3:
            file.write(b"half of it")
            raise OSError("No space left on device")
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(th, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            pretrain(make_recordings(), tmp_path / "full", **SMALL)
    assert th.load(tmp_path / "full" / "checkpoint.pth", weights_only=True)["progress"][0] == 2
    assert not list((tmp_path / "full").glob(".*"))
    pretrain(make_recordings(), tmp_path / "full", **SMALL)
    pretrain(make_recordings(), tmp_path / "whole", **SMALL)
    assert_same(state_of(tmp_path / "full"), state_of(tmp_path / "whole"))
