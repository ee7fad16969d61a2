"""Measures against brute force, analytic shifts and the edge cases of empty masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from common.noise import numpy_stream
from fault_seg import metrics_fault as mf
from fault_seg import metrics_fields as fields
from fault_seg.metrics import (
    mean_scores,
    score_cube,
    score_set,
    set_scores,
    threshold_curve,
    tune_threshold,
)
from fault_seg.metrics_section import ods_ois


def plane(shift: int, n: int = 24) -> np.ndarray:
    """Return a one-voxel plane y = 10 + shift."""
    mask = np.zeros((n, n, n), dtype=bool)
    mask[:, 10 + shift] = True
    return mask


def random_pair(seed: int = 0, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return a random probability (with ties) and labels in {-1, 0, 1}."""
    rng = numpy_stream(seed, "metrics")
    p = np.round(rng.random((n, n, n)), 2).astype(np.float32)
    labels = rng.choice([-1.0, 0.0, 1.0], size=p.shape, p=[0.1, 0.8, 0.1]).astype(np.float32)
    return p, labels


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0)])
def test_tolerance_forgives_two_voxels(shift, expected):
    """A plane shifted by up to two voxels along its normal is a perfect answer at tolerance 2."""
    assert mf.tolerant_iou_of(mf.tolerant_f1(plane(shift), plane(0))) == expected


def test_tolerance_ends_at_two_voxels():
    """A plane shifted by three voxels is a miss at tolerance 2."""
    assert mf.tolerant_iou_of(mf.tolerant_f1(plane(3), plane(0))) == 0.0


@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_hausdorff_of_a_shifted_plane(shift):
    """HD95 of a one-voxel plane shifted by k voxels is k."""
    assert mf.hd95(plane(shift), plane(0)) == pytest.approx(shift)


def test_perfect_prediction_scores_one():
    """The truth as its own prediction scores 1 in every ratio and 0 in every error."""
    labels = plane(0).astype(np.float32)
    scores = score_cube({"fsem": labels}, {"fsem": labels}, 0.5)
    for name in ("precision", "recall", "f1", "iou", "dice", "tol_iou", "tol_f1", "ap"):
        assert scores[name] == 1.0, name
    assert scores["hd95_voxels"] == 0.0
    assert scores["ece"] == 0.0


def test_constant_probability_has_the_base_rate():
    """AP of a constant probability is the share of fault voxels."""
    labels = plane(0).astype(np.float32)
    assert mf.average_precision(np.full(labels.shape, 0.3), labels) == pytest.approx(labels.mean())


def test_average_precision_equals_scikit_learn():
    """AP with ties and unlabelled voxels equals scikit-learn's on the labelled ones."""
    p, labels = random_pair()
    known = labels >= 0
    expected = average_precision_score(labels[known] > 0, p[known])
    assert mf.average_precision(p, labels) == pytest.approx(expected, abs=1e-12)


def test_ratios_against_brute_force():
    """Counted voxel by voxel, precision, recall, IoU and Dice agree; label -1 counts nowhere."""
    p, labels = random_pair()
    tp = fp = fn = 0
    for value, label in zip(p.ravel(), labels.ravel(), strict=True):
        if label >= 0:
            tp += value >= 0.7 and label == 1
            fp += value >= 0.7 and label == 0
            fn += value < 0.7 and label == 1
    scores = score_cube({"fsem": p}, {"fsem": labels}, 0.7)
    assert scores["precision"] == pytest.approx(tp / (tp + fp))
    assert scores["recall"] == pytest.approx(tp / (tp + fn))
    assert scores["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert scores["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert scores["f1"] == pytest.approx(scores["dice"])


def brute_tolerant_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the tolerant F1 from all pairwise distances."""
    a, b = np.argwhere(predicted).astype(float), np.argwhere(true).astype(float)
    near = np.linalg.norm(a[:, None] - b[None], axis=2) <= 2
    p, r = near.any(axis=1).mean(), near.any(axis=0).mean()
    return 2 * p * r / (p + r)


def test_tolerant_score_against_brute_force():
    """Tolerant F1 from 33 offsets equals the one from all pairwise distances, at every threshold."""
    p, labels = random_pair(1)
    labels[numpy_stream(2, "thin").random(labels.shape) < 0.08] = 1
    labels[:, :, 6:][labels[:, :, 6:] == 1] = 0
    thresholds = np.array([0.5, 0.9, 0.97, 0.99])
    curve = threshold_curve(p, labels, thresholds, "tol_f1")
    for threshold, value in zip(thresholds, curve, strict=True):
        predicted, true = mf.fault_masks(p, labels, threshold)
        expected = brute_tolerant_f1(predicted, true)
        assert mf.tolerant_f1(predicted, true) == pytest.approx(expected)
        assert value == pytest.approx(expected)


def test_ball_has_33_offsets():
    """The ball of radius 2 has 33 voxels in 3-D and 13 in 2-D."""
    assert len(mf.ball_offsets(2, 3)) == 33
    assert len(mf.ball_offsets(2, 2)) == 13


def test_hausdorff_against_brute_force():
    """HD95 equals the larger 95th percentile of nearest distances between sparse masks."""
    rng = numpy_stream(3, "hd")
    a, b = (rng.random((12, 12, 12)) < 0.02 for _ in range(2))
    i, j = np.argwhere(a), np.argwhere(b)
    distance = np.linalg.norm(i[:, None] - j[None], axis=2)
    expected = max(np.percentile(distance.min(axis=1), 95), np.percentile(distance.min(axis=0), 95))
    assert mf.hd95(a, b) == pytest.approx(expected)


def test_empty_masks_are_defined():
    """Two empty masks agree, one empty mask fails, and distances or AP without faults are NaN."""
    none, some = np.zeros((8, 8, 8)), plane(-7, 8).astype(np.float64)
    both = score_cube({"fsem": none}, {"fsem": none}, 0.5)
    assert both["iou"] == both["f1"] == both["tol_iou"] == both["precision"] == both["recall"] == 1.0
    assert np.isnan(both["ap"])
    assert np.isnan(both["hd95_voxels"])
    for prediction, truth in ((none, some), (some, none)):
        one = score_cube({"fsem": prediction}, {"fsem": truth}, 0.5)
        assert one["iou"] == one["f1"] == one["tol_iou"] == one["dice"] == 0.0
        assert np.isnan(one["hd95_voxels"])
    mean = mean_scores([both, score_cube({"fsem": some}, {"fsem": some}, 0.5)])
    assert mean["hd95_voxels"] == 0.0
    assert mean["hd95_undefined"] == 1.0


def test_calibration_error():
    """ECE is 0 when a fault share of p belongs to p, and |p - share| for one constant p."""
    labels = np.zeros((10, 10, 10))
    labels[:3] = 1
    assert mf.expected_calibration_error(np.full(labels.shape, 0.3), labels) == pytest.approx(0, abs=1e-9)
    assert mf.expected_calibration_error(np.full(labels.shape, 0.8), labels) == pytest.approx(0.5)


def brute_section_f1(p: np.ndarray, labels: np.ndarray, threshold: float, x: int) -> float:
    """Return the tolerant F1 of one inline section from pairwise distances."""
    predicted, true = mf.fault_masks(p[:, :, x], labels[:, :, x], threshold)
    if not (predicted.any() and true.any()):
        return 0.0
    return brute_tolerant_f1(predicted, true)


def test_section_scores_against_brute_force():
    """OIS is the mean of the best F1 of each section; ODS is at least the pooled F1 of any one threshold."""
    p, labels = random_pair(4)
    labels[:, :, 5] = np.minimum(labels[:, :, 5], 0)
    thresholds = np.array([0.2, 0.5, 0.8, 0.95])
    scores = ods_ois([p], [labels], thresholds)
    sections = [x for x in range(12) if (labels[:, :, x] > 0).any()]
    assert len(sections) == 11
    best = [max(brute_section_f1(p, labels, t, x) for t in thresholds) for x in sections]
    assert scores["ois"] == pytest.approx(np.mean(best))
    for threshold in thresholds:
        assert scores["ods"] >= ods_ois([p], [labels], np.array([threshold]))["ods"]


def test_tuned_threshold_is_the_best():
    """No candidate of a fine sweep beats the tuned threshold, also when the values crowd near 0."""
    p, labels = random_pair(5)
    smooth = 0.02 * p + 0.01 * (labels > 0)
    threshold = tune_threshold([smooth], [labels], "iou")
    best = threshold_curve(smooth, labels, np.linspace(0, 0.04, 81), "iou").max()
    assert threshold_curve(smooth, labels, np.array([threshold]), "iou")[0] >= best - 0.01
    with pytest.raises(ValueError, match="none of"):
        tune_threshold([p], [labels], "accuracy")


def test_angles_wrap():
    """Strike 179 and dip 80 against strike 1 and dip 100 is one plane but for two degrees of strike."""
    one, other = (np.array([80 / 180]), np.array([179 / 180])), (np.array([100 / 180]), np.array([1 / 180]))
    assert fields.strike_error_deg(one[1], other[1])[0] == pytest.approx(2)
    assert fields.dip_error_deg(*one, *other)[0] == pytest.approx(0, abs=1e-9)
    assert fields.normal_angle_deg(*one, *other)[0] == pytest.approx(2 * np.sin(np.radians(80)), abs=0.01)


def test_angle_between_a_vertical_and_a_dipping_plane():
    """Planes of one strike differ by the difference of their dips; voxels off the fault do not count."""
    shape = (4, 4, 4)
    fault = np.zeros(shape, dtype=bool)
    fault[0] = True
    dip, strike = np.full(shape, 60 / 180), np.full(shape, 30 / 180)
    true_dip = np.where(fault, 85 / 180, 0)
    scores = fields.angle_scores(dip, strike, true_dip, np.where(fault, 30 / 180, 0), fault)
    assert scores["angle_median_deg"] == pytest.approx(25)
    assert scores["dip_error_deg"] == pytest.approx(25)
    assert scores["strike_error_deg"] == pytest.approx(0)
    assert scores["fdip_mae"] == pytest.approx(25 / 180)


@pytest.mark.parametrize(("sizes", "spread"), [((500, 3, 0, 90), 40.0), ((1, 1), 80.0), ((7,), 5.0)])
def test_pooled_median_against_numpy(sizes: tuple[int, ...], spread: float):
    """The median over the fault voxels of all cubes is numpy's; big cubes count for more than small ones."""
    rng = numpy_stream(3, "pooled angles")
    predictions, truths, angles = [], [], []
    for i, size in enumerate(sizes):
        fsem = np.zeros((20, 10, 5), np.float32)
        fsem.ravel()[rng.permutation(fsem.size)[:size]] = 1
        fdip, fstrike, true_fstrike = (rng.random(fsem.shape) for _ in range(3))
        true_fdip = np.clip(fdip + (i + 1) * spread / 180 * rng.random(fsem.shape), 0, 1)
        predictions.append({"fdip": fdip, "fstrike": fstrike})
        truths.append({"fsem": fsem, "fdip": true_fdip, "fstrike": true_fstrike})
        angles.append(fields.normal_angle_deg(fdip, fstrike, true_fdip, true_fstrike)[fsem > 0])
    expected = np.median(np.concatenate(angles))
    assert fields.pooled_angle_median(predictions, truths) == pytest.approx(expected, abs=0.0051)
    cubes = [score_cube(p, t, 0.5) for p, t in zip(predictions, truths, strict=True)]
    scores = set_scores(cubes, predictions, truths)
    assert scores["angle_median_pooled_deg"] == pytest.approx(expected, abs=0.0051)
    assert scores["angle_median_deg"] == pytest.approx(np.mean([np.median(a) for a in angles if a.size]))


def test_pooled_median_at_the_ends():
    """Equal normals have 0, perpendicular ones 90 degrees; without any fault voxel there is no median."""
    half, zero = np.full((2, 2, 2), 0.5), np.zeros((2, 2, 2))
    truth = {"fsem": zero + 1, "fdip": half, "fstrike": zero}
    for fstrike, angle in ((zero, 0), (half, 90)):
        assert fields.pooled_angle_median([{"fdip": half, "fstrike": fstrike}], [truth]) == pytest.approx(
            angle, abs=0.0051
        )
    assert np.isnan(fields.pooled_angle_median([{"fdip": half, "fstrike": zero}], [{**truth, "fsem": zero}]))


def test_rgt_scores_do_not_see_scale_and_offset():
    """An affine copy of the truth has no error after the fit; horizons lie where they should."""
    z, y, _ = np.meshgrid(np.arange(32.0), np.arange(16.0), np.arange(12.0), indexing="ij")
    true = fields.min_max(z + 0.25 * y)
    scores = fields.rgt_scores(3 * true - 7, true)
    assert scores["rgt_mae"] == pytest.approx(0, abs=1e-12)
    assert scores["rgt_mae_min_max"] == pytest.approx(0, abs=1e-12)
    assert scores["rgt_ssim"] == pytest.approx(1)
    assert scores["horizon_p90_samples"] == pytest.approx(0, abs=1e-9)
    assert scores["rgt_share_increasing"] == 1.0


def test_horizon_error_of_a_shifted_cube():
    """A time field moved down by 1.5 samples has horizon errors of 1.5 samples."""
    z = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 6, 5))
    errors = fields.horizon_errors((z - 1.5) / 39, z / 39)
    assert errors.size > 0
    np.testing.assert_allclose(errors, 1.5, atol=1e-9)


def test_horizon_depth_against_brute_force():
    """The first crossing of a level, interpolated in the trace, equals a search sample by sample."""
    rgt = np.cumsum(numpy_stream(6, "rgt").random((12, 5, 4)) - 0.2, axis=0)
    depth = fields.horizon_depth(rgt, 0.8)
    for y, x in itertools.product(range(5), range(4)):
        expected = np.nan
        for k in range(11):
            if rgt[k, y, x] < 0.8 <= rgt[k + 1, y, x]:
                expected = k + (0.8 - rgt[k, y, x]) / (rgt[k + 1, y, x] - rgt[k, y, x])
                break
        np.testing.assert_allclose(depth[y, x], expected)


def test_psnr_and_correlation_are_known():
    """An error of a tenth of the range everywhere is 20 dB; a negative copy has correlation -1."""
    true = numpy_stream(7, "dhr").random((16, 8, 8))
    span = true.max() - true.min()
    assert fields.psnr(true + 0.1 * span, true) == pytest.approx(20)
    assert fields.correlation(-2 * true + 1, true) == pytest.approx(-1)
    assert fields.psnr(true, true) == float("inf")


def test_bandwidth_grows_with_frequency():
    """Compressing a wavelet in time by two doubles its bandwidth."""

    def cube(sigma: float) -> np.ndarray:
        t = (np.arange(256) - 128) / sigma
        return np.broadcast_to(((1 - t**2) * np.exp(-0.5 * t**2))[:, None, None], (256, 3, 3))

    assert fields.bandwidth_ratio(cube(3), cube(6)) == pytest.approx(2, rel=0.05)


def test_score_set_scores_what_is_there():
    """A set without angles and rgt has fault measures with ODS and OIS, and none of the others."""
    pairs = [random_pair(seed) for seed in (8, 9)]
    scores = score_set([{"fsem": p} for p, _ in pairs], [{"fsem": y} for _, y in pairs], 0.5)
    assert {"ods", "ois", "ap", "tol_iou"} <= set(scores)
    assert not any(name.startswith(("rgt", "angle", "dhr")) for name in scores)
