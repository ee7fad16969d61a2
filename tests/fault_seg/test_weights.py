"""The shipped weights load offline, are what their card says, and find faults in cubes they never saw."""

from __future__ import annotations

import hashlib

from fault_seg.infer import SHIPPED_WEIGHTS, load, predict
from fault_seg.metrics import mean_scores, score_cube
from fault_seg.synthetic import make_sample, preset

CUBES = (161, 163, 166)  # held-out samples of seed 0
COMMITTED = {
    "ap": (0.93, 0.02),
    "iou": (0.71, 0.03),
    "tol_iou": (0.97, 0.02),
    "dhr_psnr_db": (28.5, 0.5),
}  # with slack
COMMITTED_ANGLE_DEG = 4.2


def test_file_is_whole_and_small():
    """The file has the SHA-256 that lies beside it, and is at most 8 MB."""
    stated = SHIPPED_WEIGHTS.with_suffix(".sha256").read_text().split()[0]
    assert hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest() == stated
    assert SHIPPED_WEIGHTS.stat().st_size <= 8_000_000
    assert (SHIPPED_WEIGHTS.parent / "MODEL_CARD.md").is_file()


def test_default_model_meets_its_figures():
    """The default model reaches the committed figures on three held-out cubes, at its own threshold."""
    model = load()
    assert model.path == SHIPPED_WEIGHTS and model.layout == "hr" and model.kind == "infer"
    assert set(model.attributes) == {"fsem", "fdip", "fstrike", "rgt", "dhr"}
    scores = []
    for index in CUBES:
        sample = make_sample(0, index, preset("standard"))
        truth = {name: getattr(sample, name) for name in (*model.attributes, "image")}
        scores.append(score_cube(predict(model, sample.image), truth, model.threshold))
    found = mean_scores(scores)
    for name, (committed, slack) in COMMITTED.items():
        assert found[name] >= committed - slack, name
    assert found["angle_median_deg"] <= COMMITTED_ANGLE_DEG + 1.0
