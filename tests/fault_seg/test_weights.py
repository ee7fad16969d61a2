"""The shipped weights load offline, are what their card says, and find faults in cubes they never saw."""

from __future__ import annotations

import hashlib

import numpy as np

from fault_seg.infer import SHIPPED_WEIGHTS, load, predict
from fault_seg.metrics_fault import average_precision
from fault_seg.synthetic import make_sample, preset

CUBES = (161, 163, 166)  # held-out samples of seed 0
COMMITTED_AP = 0.87
TOLERANCE = 0.02


def test_file_is_whole_and_small():
    """The file has the SHA-256 that lies beside it, and is at most 8 MB."""
    stated = SHIPPED_WEIGHTS.with_suffix(".sha256").read_text().split()[0]
    assert hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest() == stated
    assert SHIPPED_WEIGHTS.stat().st_size <= 8_000_000
    assert (SHIPPED_WEIGHTS.parent / "MODEL_CARD.md").is_file()


def test_default_model_meets_its_figures():
    """The default model reaches the committed average precision on three held-out cubes."""
    model = load()
    assert model.path == SHIPPED_WEIGHTS and model.layout == "hr" and model.kind == "infer"
    assert set(model.attributes) == {"fsem", "fdip", "fstrike", "rgt", "dhr"}
    samples = [make_sample(0, index, preset("standard")) for index in CUBES]
    scores = [average_precision(predict(model, sample.image)["fsem"], sample.fsem) for sample in samples]
    assert np.mean(scores) >= COMMITTED_AP - TOLERANCE
