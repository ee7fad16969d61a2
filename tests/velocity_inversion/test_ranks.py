"""Two processes train and predict as one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.launch import ROOT, torchrun
from tests.toy_runs import records
from tests.velocity_inversion.cases import CPU, RUN, rank_config, rank_inference
from velocity_inversion.infer import infer
from velocity_inversion.sources import open_source
from velocity_inversion.train import train


def test_two_ranks_equal_one_process(data: Path, tmp_path: Path):
    """2 x 1 and 1 x 2 samples a step give the same scores and sections; ids keep their order."""
    script = ROOT / "tests/velocity_inversion/ranks.py"
    ended = torchrun(script, [str(data), str(tmp_path / "two")], tmp_path / "said.txt", timeout=300)
    assert ended.returncode == 0, ended.output[-3000:]
    one = tmp_path / "one"
    train(rank_config(data, one / "cache", batch_size=2), replace(RUN, out=one / "run"))
    infer(replace(rank_inference(data, one)), CPU, one / "predicted")
    # weights without influence (biases before a norm, biases of keys) follow rounding; what counts does not
    one_scores, two_scores = (records(tmp_path / name / "run/member_00") for name in ("one", "two"))
    scores = [{k: v for k, v in line.items() if k.startswith("valid_")} for line in one_scores]
    others = [{k: v for k, v in line.items() if k.startswith("valid_")} for line in two_scores]
    assert any(scores) and len(scores) == len(others)
    for line, other in zip(scores, others, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    ids = open_source(data / "test").ids
    a, b = (np.load(tmp_path / n / "predicted/predictions.npz") for n in ("one", "two"))
    assert a.files == b.files == ids
    for name in ids:
        np.testing.assert_allclose(a[name], b[name], rtol=3e-5)
