"""Two processes train and predict as one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from common.checkpoint import load as load_checkpoint
from tests.launch import ROOT, torchrun
from tests.velocity_inversion.cases import CPU, RUN, rank_config, rank_inference
from velocity_inversion.infer import infer
from velocity_inversion.sources import open_source
from velocity_inversion.train import train


def test_two_ranks_equal_one_process(data: Path, tmp_path: Path):
    """Weights of 2 x 1 and 1 x 2 samples agree, sections too, ids keep their order."""
    script = ROOT / "tests/velocity_inversion/ranks.py"
    ended = torchrun(script, [str(data), str(tmp_path / "two")], tmp_path / "said.txt", timeout=300)
    assert ended.returncode == 0, ended.output[-3000:]
    one = tmp_path / "one"
    train(rank_config(data, one / "cache", batch_size=2), replace(RUN, out=one / "run"))
    infer(replace(rank_inference(data, one)), CPU, one / "predicted")
    expected, found = (
        load_checkpoint(tmp_path / name / "run/member_00/checkpoints/last.pt").state_dict
        for name in ("one", "two")
    )
    for name, value in expected.items():
        if value.is_floating_point():
            scale = float(value.abs().max()) or 1.0
            assert float((found[name] - value).abs().max()) <= 1e-5 * scale, name
    ids = open_source(data / "test").ids
    a, b = (np.load(tmp_path / n / "predicted/predictions.npz") for n in ("one", "two"))
    assert a.files == b.files == ids
    for name in ids:
        np.testing.assert_allclose(a[name], b[name], atol=0.5)  # m/s
