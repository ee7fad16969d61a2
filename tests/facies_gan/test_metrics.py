"""Measures against grids whose answers can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from common.noise import numpy_stream
from facies_gan import metrics as M
from facies_gan.gaussian import Covariance, gaussian_field, paste, simulate
from facies_gan.metrics_patterns import pattern_codes
from facies_gan.metrics_wells import _faces
from facies_gan.synthetic import make_channels, make_checkerboard
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import blocky_labels, is_copy, random_labels

BOARD = (np.indices((8, 8)).sum(0) % 2).astype(np.uint8)


def channel_grid() -> np.ndarray:
    """Return 12 x 12 cells with one horizontal channel, rows 4 to 6."""
    grid = np.zeros((12, 12), dtype=np.uint8)
    grid[4:7] = 1
    return grid


def truncated(seed: int, count: int, shape: tuple[int, int] = (80, 80), length: float = 4.0) -> np.ndarray:
    """Return independent truncated Gaussian grids of one process."""
    cover = Covariance((length, length), 2.0)
    return simulate(random_labels(shape, 2), 2, shape, count, seed=seed, covariance=cover)


def test_checkerboard_variogram():
    """On a checkerboard of single cells gamma is 1/2 at odd lags and 0 at even ones, on both axes."""
    curve = M.indicator_variogram(BOARD, 1, 4)
    assert np.allclose(curve, [[0.5, 0, 0.5, 0]] * 2)


def test_channel_variogram_and_transiogram():
    """A horizontal channel: no change along it; across it two of the eleven neighbours differ."""
    grid = channel_grid()
    curve = M.indicator_variogram(grid, 1, 2)
    assert np.allclose(curve[1], 0) and curve[0, 0] == pytest.approx(0.5 * 2 / 11)
    assert curve[0, 1] == pytest.approx(0.5 * 4 / 10)
    down = M.transiogram(grid, 1, 0, 2)[0]
    assert down[0] == pytest.approx(1 / 3) and down[1] == pytest.approx(2 / 3)
    assert np.allclose(M.transiogram(grid, 1, 1, 3)[1], 1)


def test_mean_of_curves_before_comparison():
    """Errors are between mean curves: two grids on both sides of the reference cancel."""
    a, b = channel_grid(), channel_grid()
    a[4], b[3] = 0, 1  # two and four rows of channel
    assert M.proportion_error([a, b], channel_grid(), 2) == pytest.approx(0)
    assert M.proportion_error(a, channel_grid(), 2) == pytest.approx(1 / 12)
    assert M.vertical_proportion_error(a, channel_grid(), 2) == pytest.approx(1 / 12)
    assert np.isnan(M.vertical_proportion_error(a[:5], a, 2))


def test_connectivity_by_hand():
    """Two channels: cells of one are connected at every lag, pairs across the gap are not."""
    grid = np.zeros((9, 10), dtype=np.uint8)
    grid[1:3] = grid[5:7] = 1
    tau = M.connectivity(grid, 1, 5)
    assert np.allclose(tau[1], 1)
    assert tau[0, 0] == 1 and np.isnan(tau[0, 1]) and tau[0, 2] == 0 and tau[0, 3] == 0
    assert M.gamma_connectivity(grid, 1) == pytest.approx(0.5) and M.number_of_bodies(grid, 1) == 2
    assert M.largest_body(grid, 1) == 20 and M.gamma_connectivity(grid, 2) == 0
    assert M.number_of_bodies(BOARD, 1) == 32 and M.small_bodies(BOARD, 2) == 64  # corners do not connect


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["000", "010", "000"], 1),
        (["111", "101", "111"], 0),
        (["110", "110", "001"], 2),
        (["000", "000", "000"], 0),
    ],
)
def test_euler_number(rows: list[str], expected: int):
    """Bodies minus holes: a cell, a ring, a square beside a cell, nothing."""
    grid = np.array([[int(c) for c in row] for row in rows], dtype=np.uint8)
    assert M.euler_number(grid, 1) == expected


def test_pattern_counts_by_hand():
    """Patterns of a checkerboard: two 2 x 2 patterns, 25 and 24 times; with stride 2 they are flat."""
    histogram = M.mph_histogram(BOARD, 2, 2)
    assert histogram.codes.tolist() == [0b0110, 0b1001] and histogram.counts.tolist() == [25, 24]
    assert set(pattern_codes(BOARD, 2, 2, 2).tolist()) == {0b0000, 0b1111}
    three = M.mph_histogram(np.array([[2, 1], [0, 2]], dtype=np.uint8), 2, 3)
    assert three.codes.tolist() == [2 * 27 + 1 * 9 + 0 * 3 + 2]
    assert pattern_codes(BOARD, 4, 2, 4).size == 0
    assert int(M.mph_histogram(np.full((4, 4), 15), 4, 16).codes[0]) == 2**64 - 1


def test_js_divergence():
    """0 for equal histograms, 1 bit for disjoint ones, symmetric, and a value by hand."""
    a, b = M.mph_histogram(BOARD, 2, 2), M.mph_histogram(channel_grid(), 2, 2)
    assert M.js_divergence(a, a) == 0 and M.js_divergence(a, b) == pytest.approx(1)
    p = M.Histogram(np.array([0, 1], dtype=np.uint64), np.array([1, 1]))
    q = M.Histogram(np.array([0], dtype=np.uint64), np.array([5]))
    expected = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    assert M.js_divergence(p, q) == M.js_divergence(q, p) == pytest.approx(expected)


def test_split_half_of_one_process():
    """Two samples of one process differ by about as much as the halves of one of them."""
    first, second = truncated(1, 12), truncated(2, 12)
    band = M.split_half(list(first), 2, max_lag=20)
    scores = M.compare(second, first, 2, max_lag=20)
    other = M.compare(truncated(3, 12, length=8.0), first, 2, max_lag=20)
    for name in ("variogram", "connectivity", "mph3", "mph4"):
        assert scores[name] / band[name] < 2.5, name
        assert other[name] > 4 * scores[name], name
    assert set(M.split_half(first[0], 2, max_lag=10)) == set(scores) - {"gamma", "bodies", "euler"}


def test_distances_and_mds():
    """The joint matrix is symmetric with a zero diagonal; MDS gives distances of a plane figure back."""
    images = [blocky_labels((40, 40), seed=i) for i in range(3)]
    matrix = M.pattern_distances([*images, images[0]], 2)
    assert np.array_equal(matrix, matrix.T) and np.all(np.diag(matrix) == 0) and matrix[0, 3] == 0
    points = np.array([[0.0, 0], [3, 0], [0, 4], [3, 4]])
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    found = M.classical_mds(distances)
    again = np.linalg.norm(found[:, None] - found[None], axis=2)
    assert np.allclose(again, distances)
    result = M.anodi(images[1:], images[0], 2)
    expected = matrix[1, 2], (matrix[0, 1] + matrix[0, 2]) / 2
    assert (result.between, result.within) == pytest.approx(expected)
    assert result.ratio == pytest.approx(expected[0] / expected[1])


def test_reference_crops():
    """Crops have the size asked for, differ in place, and stay inside."""
    crops = M.reference_crops(np.arange(10_000).reshape(100, 100), (40, 50), 9)
    assert len(crops) == 9 and all(c.shape == (40, 50) for c in crops)
    assert len({int(c[0, 0]) for c in crops}) == 9
    assert len(M.reference_crops(np.zeros((40, 50)), (40, 50), 9)) == 1


def test_copies_are_found():
    """A copied training image is flagged; independent draws of the same kind are not."""
    image = make_channels(0, 0, 128, 128)
    rng = numpy_stream(0, "test")
    best = M.best_match(np.stack([image[5:37, 60:92], 1 - image[5:37, 60:92]]), image)
    assert best[0] == 1 and best[1] < 1
    assert is_copy(M.copy_check(np.roll(image, 7, axis=1), image, rng))
    fresh = np.stack([make_channels(1, i, 128, 128) for i in range(4)])
    assert not is_copy(M.copy_check(fresh, image, rng))


def test_hard_data_match_by_hand():
    """Two of three data right: shares by facies, intersection over union."""
    wells = WellSet.from_cells(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0, 1, 1]))
    grid = np.array([[0, 1], [0, 0]], dtype=np.uint8)
    match = M.hard_data_match(grid, wells, 3)
    assert match.total == pytest.approx(2 / 3)
    assert match.by_facies[:2].tolist() == [1, 0.5] and np.isnan(match.by_facies[2])
    assert match.iou[:2].tolist() == [0.5, 0.5]
    assert np.isnan(M.hard_data_match(grid, WellSet.empty(), 2).total)


def test_change_probability_by_hand():
    """Every neighbour of a checkerboard differs; a channel changes at two faces a column."""
    assert M.change_probability(BOARD, 2).tolist() == [1, 1]
    grid = channel_grid()
    inner = 2 * 12 / (3 * 12 * 4 - 2 * 3)  # two changing faces a column; the ends lack a neighbour
    assert M.change_probability(grid, 2)[1] == pytest.approx(inner)


def test_seams():
    """The reference with its own cells as data has a ratio near 1; pasted data are far above it."""
    image = truncated(5, 1, (200, 200))[0]
    probability = M.change_probability(image, 2)
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 200, (2, 400))
    mask = np.zeros(image.shape, dtype=bool)
    mask[cells[0], cells[1]] = True
    own = WellSet.from_mask(mask, image)
    ratio = M.seam_ratio(image, own, probability)
    assert abs(ratio - 1) < 0.2
    others = truncated(6, 2, (200, 200))
    assert M.seam_ratio(paste(others, own), own, probability) > 3 * ratio
    smooth = np.zeros_like(image)
    assert M.seam_ratio(smooth, own, probability) == 0
    inner, outer = _faces(own.mask(image.shape), image)
    assert len(inner) == len(outer) and abs(len(inner) - 4 * len(own)) < 100


def test_isolated_cells():
    """A lone cell differs from all its neighbours, a pair does not; borders have fewer."""
    grid = np.zeros((5, 5), dtype=np.uint8)
    grid[2, 2] = grid[0, 0] = 1
    assert M.isolated_cells(grid).sum() == 2
    wells = WellSet.from_cells(np.array([2, 4]), np.array([2, 4]), np.array([1, 0]))
    assert M.isolated_share(grid, wells) == 0.5
    grid[2, 3] = 1
    assert M.isolated_share(grid, wells) == 0
    assert M.isolated_cells(BOARD).all()


def test_entropy_and_distance():
    """Entropy is 0 at data that all realisations honour and 1 bit where two facies are equally frequent."""
    a, b = np.zeros((9, 9), dtype=np.uint8), np.ones((9, 9), dtype=np.uint8)
    a[4, 4] = b[4, 4] = 1
    wells = WellSet.from_cells(np.array([4]), np.array([4]), np.array([1]))
    curve = M.entropy_by_distance([a, b], wells, 2, (0, 1, 4, 9))
    assert curve[:3].tolist() == [0, 1, 1] and np.isnan(curve[3])
    far = M.distance_to_data(wells, (9, 9))
    assert far[4, 4] == 0 and far[3, 3] == 1 and far[0, 8] == 4
    assert M.mean_hamming([a, b], 2) == pytest.approx(80 / 81) and np.isnan(M.mean_hamming([a], 2))


def test_hamming_is_the_mean_over_pairs():
    """The formula from probabilities equals the mean over pairs."""
    grids = [random_labels(seed=i) for i in range(5)]
    pairs = [np.mean(grids[i] != grids[j]) for i in range(5) for j in range(i)]
    assert M.mean_hamming(grids, 4) == pytest.approx(np.mean(pairs))


def test_calibration():
    """Certain and right forecasts have no error, wrong ones have all; proportions are the baseline."""
    truth = blocky_labels((20, 20))
    wells = WellSet.from_columns(truth, [2, 11])
    shares = M.proportions(truth, 2)
    right, wrong = M.calibration([truth] * 20, wells, shares), M.calibration([1 - truth] * 20, wells, shares)
    assert right.ece == 0 and wrong.ece == 1
    assert right.log_score < 0.1 < right.baseline_log_score < wrong.log_score
    noisy = [
        np.where(np.random.default_rng(i).random(truth.shape) < 0.5, truth, 1 - truth) for i in range(60)
    ]
    assert M.calibration(noisy, wells, shares).log_score == pytest.approx(1, abs=0.1)


def test_comparison_of_more_facies():
    """Four facies: every error of a grid with itself is 0; a checkerboard's classes are equally frequent."""
    board = make_checkerboard(0, 32, 32)
    assert M.proportions(board, 4).tolist() == [0.25] * 4
    scores = M.compare(board, board, 4, max_lag=8)
    for name in (
        "proportion",
        "variogram",
        "connectivity",
        "transiogram",
        "mph2",
        "mph4",
        "mph4_stride2",
        "mph2_stride4",
        "mph3_stride2",
    ):
        assert scores[name] == 0, name
    assert scores["bodies"] == 16 and scores["gamma"] == pytest.approx(1 / 16)


def test_field_has_the_covariance():
    """A simulated Gaussian field has mean 0, variance 1 and the covariance asked for."""
    cover = Covariance((3.0, 6.0), 1.5)
    fields = np.stack([gaussian_field((64, 64), cover, numpy_stream(0, "f", i)) for i in range(40)])
    assert abs(fields.mean()) < 0.1 and fields.var() == pytest.approx(1, abs=0.1)
    down = (fields[:, :-3] * fields[:, 3:]).mean()
    along = (fields[..., :-6] * fields[..., 6:]).mean()
    assert down == pytest.approx(np.exp(-1), abs=0.05) and along == pytest.approx(np.exp(-1), abs=0.07)


def test_strebelle_figures(real_data):
    """The known figures of the Strebelle image: connectivity, bodies, and one half against the other."""
    from facies_gan.gslib import read_grid

    image = read_grid(real_data / "facies/strebelle_250.sgems").codes[0, ::-1].astype(np.uint8)
    assert M.gamma_connectivity(image, 1) == pytest.approx(0.451, abs=5e-4)
    assert M.number_of_bodies(image, 1) == 3
    found = M.compare(image[:125], image[125:], 2, shares=M.proportions(image, 2))
    known = {
        "proportion": 0.019,
        "variogram": 0.0363,
        "connectivity": 0.0534,
        "mph2": 0.00073,
        "mph3": 0.00229,
    }
    known |= {"mph4": 0.00805, "mph4_stride2": 0.0194, "mph4_stride4": 0.0795}
    for name, value in known.items():
        assert found[name] == pytest.approx(value, rel=0.01), name


def test_entropy_of_the_nearest_datum():
    """Beside stripes of 4 columns a quarter of the cells may differ; noise leaves everything open."""
    stripes = np.tile(np.repeat(np.array([0, 1], np.uint8), 4), (64, 8))
    wells = WellSet.from_cells(np.array([32]), np.array([32]), stripes[[32], [32]], np.array([0]))
    none, one, two = M.entropy_of_nearest([stripes], wells, 2, (0, 1, 2))
    side = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))  # a quarter of the cells end their stripe
    assert one == pytest.approx(6 / 8 * side, rel=0.03)
    assert none == 0 and two > one
    noise = np.random.default_rng(0).integers(0, 2, (200, 200), dtype=np.uint8)
    far = WellSet.from_cells(np.array([100]), np.array([100]), noise[[100], [100]], np.array([0]))
    assert M.entropy_of_nearest([noise], far, 2, (1, 5)) == pytest.approx(1.0, abs=1e-3)
