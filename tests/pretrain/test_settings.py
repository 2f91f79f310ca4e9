import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa import Recordings, SaltTeacher, pretrain, read_encoder
from sb3_jepa.extractors.files import describe_encoder
from tests.pretrain.test_training import (
    EXTRACTOR,
    SMALL,
    SPACE,
    make_recordings,
)


def make_other_recordings() -> Recordings:
    """As many, and as long episodes, of other observations."""
    recordings = make_recordings()
    return Recordings(SPACE, recordings.observations[::-1].copy(), recordings.episodes)


def test_numbers_of_numpy_became_texts_that_no_encoder_can_be_made_of(tmp_path):
    numbers = dict(n_updates=np.int64(6), batch_size=np.int32(32), learning_rate=np.float32(0.5), seed=np.uint8(3))
    kwargs = dict(
        features_extractor_kwargs={name: np.int64(value) for name, value in EXTRACTOR.items()},
        objective_kwargs={name: np.int64(value) for name, value in SMALL["objective_kwargs"].items()},
    )
    path = pretrain(make_recordings(), tmp_path, **{**SMALL, **numbers, **kwargs})
    assert read_encoder(path).features_dim == 8
    settings = describe_encoder(tmp_path)["settings"]
    assert settings["features_extractor_kwargs"] == EXTRACTOR
    assert settings["objective_kwargs"] == SMALL["objective_kwargs"]
    assert {name: settings[name] for name in numbers} == dict(n_updates=6, batch_size=32, learning_rate=0.5, seed=3)
    # The same training, however its numbers are written
    assert pretrain(make_recordings(), tmp_path, **{**SMALL, **numbers, "n_updates": 6}) == path


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors", "encoder.json", "progress.csv"])
def test_an_encoder_or_curves_of_another_training_were_overwritten(name, tmp_path):
    (tmp_path / name).write_text("time/iterations,rollout/ep_rew_mean\n1,2.0\n")
    with pytest.raises(ValueError, match=rf"`folder` holds .*{name}.* another folder"):
        pretrain(make_recordings(), tmp_path, **SMALL)
    assert {file.name: file.read_text()[:4] for file in tmp_path.iterdir()} == {name: "time"}


def test_files_beside_the_encoder_are_left_alone(tmp_path):
    (tmp_path / "encoder.onnx").write_text("mine")
    pretrain(make_recordings(), tmp_path, **SMALL)
    assert (tmp_path / "encoder.onnx").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=1), "seed is 0 there and 1 here"),
        (dict(objective_class=SaltTeacher), "objective_class is TJepa there and SaltTeacher here"),
        (dict(features_extractor_kwargs=dict(EXTRACTOR, depth=2)), "features_extractor_kwargs is .* there and"),
        (dict(learning_rate=0.1, n_updates=8), "n_updates is 6 there and 8 here; learning_rate is 0.001 there"),
        (dict(source=make_recordings(11)), "n_observations is 200 there and 220 here"),
        (dict(source=make_other_recordings()), "recordings is [0-9a-f]{8} there and [0-9a-f]{8} here"),
        (dict(labels=np.zeros((200, 1))), "labels is None there and [0-9a-f]{8} here"),
        (
            dict(
                source=Recordings(
                    spaces.Box(-9, 9, (6,)), *(vars(make_recordings())[n] for n in ("observations", "episodes"))
                )
            ),
            "observation_space is Box.-5.0, 5.0, .* there and Box.-9.0, 9.0",
        ),
    ],
)
def test_another_pretraining_is_not_overwritten(change, message, tmp_path):
    arguments = dict(SMALL, source=make_recordings(), folder=tmp_path)
    pretrain(**arguments)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"`folder` holds another pretraining.*{message}"):
        pretrain(**{**arguments, **change})
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}
