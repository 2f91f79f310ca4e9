"""What was saved when the modules lay elsewhere names them by their old paths."""

import subprocess
import sys

import pytest

OLD_PATHS = [
    *("policies.JepaPolicy", "contrib.MaskableJepaPolicy", "contrib.RecurrentPPO", "extractors.JepaExtractor"),
    *("buffers.JepaRolloutBuffer", "replay.FrameReplayBuffer", "frames.FrameStacks"),
    *("objectives.methods.Salt", "objectives.methods.TJepa", "teachers.TeacherFile", "surprises.VecSurprise"),
]
SCRIPT = """
import pickle, sys
for path in sys.argv[1:]:
    module, name = path.rsplit(".", 1)
    # As a pickle without a frame names a class
    found = pickle.loads(f"c{module}\\n{name}\\n.".encode())
    # A pickle that is written now names where the class is
    assert pickle.loads(pickle.dumps(found)) is found and found.__name__ == name, path
"""


def test_pickles_that_name_old_paths_give_the_classes():
    pytest.importorskip("sb3_contrib")
    command = [sys.executable, "-c", SCRIPT, *(f"sb3_jepa.{path}" for path in OLD_PATHS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_path_that_never_was_is_still_missing():
    with pytest.raises(ModuleNotFoundError, match=r"sb3_jepa\.nothing"):
        __import__("sb3_jepa.nothing")
