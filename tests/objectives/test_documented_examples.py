import inspect
import re
import textwrap

import pytest

from sb3_jepa import DmtJepa, MaskedPrediction, NextLatentPrediction, Salt, SaltTeacher, TJepa


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("method", [NextLatentPrediction, MaskedPrediction, TJepa, SaltTeacher, Salt, DmtJepa])
def test_the_example_of_a_method_runs(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"::\n\n((?:    .*\n|\n)+?)(?=\S)", inspect.getdoc(method))
    # With a shorter training
    for number, smaller in (("10_000", "400"), ("1_000", "8"), ("policy_kwargs=", "n_steps=32, policy_kwargs=")):
        example = example.replace(number, smaller)
    exec(textwrap.dedent(example), {})
