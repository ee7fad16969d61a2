"""Promises of the streaming statistics and the normalisers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.errors import DataError
from common.normalization import (
    Chain,
    ClippedZScore,
    Log1p,
    MinMax,
    Normalizer,
    Reservoir,
    RunningStats,
    ZScore,
    merged,
)


def data(shape=(7, 3, 11, 5), seed=0) -> np.ndarray:
    """Return noise [N, C, ...] with another scale in each channel."""
    x = np.random.default_rng(seed).standard_normal(shape)
    scale = np.array([1.0, 50.0, 1e-4][: shape[1]]).reshape(1, -1, *[1] * (len(shape) - 2))
    return x * scale + 3 * scale


def test_statistics_equal_numpy():
    """Count, mean, std, rms, min and max are NumPy's over all axes but the channel's."""
    x, stats = data(), RunningStats(3)
    stats.update(x)
    axes = (0, 2, 3)
    assert (stats.count == 7 * 11 * 5).all()
    np.testing.assert_allclose(stats.mean, x.mean(axes), rtol=1e-13)
    np.testing.assert_allclose(stats.std, x.std(axes), rtol=1e-13)
    np.testing.assert_allclose(stats.rms, np.sqrt((x**2).mean(axes)), rtol=1e-13)
    np.testing.assert_array_equal([stats.min, stats.max], [x.min(axes), x.max(axes)])


@pytest.mark.parametrize("cuts", [(1, 2), (3,), (1, 2, 3, 4, 5, 6)])
def test_any_grouping_gives_the_same(cuts):
    """Updates in one go, in pieces, or merged from several ranks agree to 1e-12."""
    x, whole, pieces = data(), RunningStats(3), RunningStats(3)
    whole.update(x)
    parts = []
    for part in np.split(x, cuts):
        pieces.update(part)
        parts.append(RunningStats(3))
        parts[-1].update(part)
    backwards = merged(parts[::-1])
    for other in (pieces, merged(parts), backwards):
        for name in ("count", "mean", "std", "min", "max"):
            np.testing.assert_allclose(getattr(other, name), getattr(whole, name), rtol=1e-12)


def test_large_offset_stays_accurate():
    """A std of 1 on an offset of 1e8 is found to 1e-7 in many small updates (naive sums lose it)."""
    x = np.random.default_rng(0).standard_normal((2000, 1, 10)) + 1e8
    stats = RunningStats(1)
    for part in np.split(x, 200):
        stats.update(part)
    assert stats.std[0] == pytest.approx(x.std(), rel=1e-7)
    assert stats.mean[0] == pytest.approx(x.mean(), rel=1e-14)
    naive = (x**2).mean() - x.mean() ** 2
    assert abs(naive - x.var()) > 1e-3


def test_masks_choose_the_values():
    """Only masked-in values count: a mask for all channels, one a channel, and an empty one."""
    x = data()
    mask = np.random.default_rng(1).random((7, 11, 5)) > 0.6
    shared, single = RunningStats(3), RunningStats(3)
    shared.update(np.where(mask[:, None], x, np.nan), mask)
    full = np.repeat(mask[:, None], 3, axis=1)
    full[:, 1] = ~mask
    single.update(x, full)
    for c in range(3):
        assert shared.mean[c] == pytest.approx(x[:, c][mask].mean(), rel=1e-12)
        assert single.std[c] == pytest.approx(x[:, c][full[:, c]].std(), rel=1e-12)
    before = shared.state_dict()
    shared.update(x, np.zeros_like(mask))
    assert shared.state_dict() == before


def test_channel_axis_and_torch():
    """The channel axis is free, tensors are taken too, and pieces larger than the work size agree."""
    x = data((5, 3, 40))
    a, b, c = RunningStats(3), RunningStats(3), RunningStats(1)
    a.update(x)
    b.update(torch.from_numpy(np.moveaxis(x, 1, 2).copy()), channel_axis=2)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-14)
    big = np.random.default_rng(0).random((1, 1, 3000, 3000), dtype=np.float32).transpose(2, 1, 0, 3)
    c.update(big)
    assert c.std[0] == pytest.approx(big.std(dtype=np.float64), rel=1e-10)


def test_statistics_refuse_bad_values():
    """NaN outside the mask, wrong channels, a wrong mask or a damaged state are errors."""
    with pytest.raises(DataError, match="channel 1: 1 of 3"):
        RunningStats(2).update(np.array([[0, 1.0], [0, np.nan], [0, 2]]))
    with pytest.raises(ValueError, match="channels"):
        RunningStats(2).update(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="mask"):
        RunningStats(2).update(np.zeros((4, 2)), np.zeros(3, bool))
    with pytest.raises(DataError, match="keys"):
        RunningStats.from_state_dict({"mean": [0.0]})


def test_statistics_survive_json():
    """The state goes through JSON unchanged, also for channels that saw nothing."""
    stats = RunningStats(3)
    stats.update(data())
    again = RunningStats.from_state_dict(json.loads(json.dumps(stats.state_dict(), allow_nan=False)))
    assert again.state_dict() == stats.state_dict()
    empty = RunningStats.from_state_dict(
        json.loads(json.dumps(RunningStats(2).state_dict(), allow_nan=False))
    )
    empty.update(np.array([[2.0, 3.0]]))
    np.testing.assert_array_equal(empty.min, [2, 3])


def stats_of(x: np.ndarray) -> RunningStats:
    """Return the statistics of x [N, C, ...]."""
    stats = RunningStats(x.shape[1])
    stats.update(x)
    return stats


X = np.abs(data())
NORMALISERS = [
    ZScore.from_stats(stats_of(X)),
    MinMax.from_stats(stats_of(X)),
    Log1p((1, 0, 1)),
    Chain((Log1p((1, 0, 1)), ZScore((0.1, 2, 3), (1, 2, 3)))),
    ClippedZScore.from_sample(X[:, 0], limit=1e9),
    ZScore((4.0,), (2.0,)),
]


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=lambda n: n.kind)
def test_invert_undoes_apply(normaliser):
    """invert(apply(x)) = x for NumPy and torch, which agree; types are kept, states go through JSON."""
    y = normaliser.apply(X)
    np.testing.assert_allclose(normaliser.invert(y), X, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(normaliser.apply(torch.from_numpy(X)).numpy(), y, rtol=1e-12)
    np.testing.assert_allclose(normaliser.invert(torch.from_numpy(y)).numpy(), X, rtol=1e-9, atol=1e-12)
    assert normaliser.apply(X.astype(np.float32)).dtype == np.float32
    assert normaliser.apply(torch.ones(2, 3, dtype=torch.int16)).dtype == torch.float32
    moved = normaliser.apply(np.moveaxis(X, 1, 3), channel_axis=3)
    np.testing.assert_array_equal(np.moveaxis(moved, 3, 1), y)
    again = Normalizer.from_state_dict(json.loads(json.dumps(normaliser.state_dict(), allow_nan=False)))
    assert again == normaliser


def test_ranges_after_normalisation():
    """Z-scores have mean 0 and std 1, min-max spans 0..1."""
    z, m = NORMALISERS[0].apply(X), NORMALISERS[1].apply(X)
    np.testing.assert_allclose(z.mean((0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(z.std((0, 2, 3)), 1, rtol=1e-12)
    np.testing.assert_allclose([m.min((0, 2, 3)), m.max((0, 2, 3))], [[0] * 3, [1] * 3], atol=1e-15)


def test_constant_channels_and_floors():
    """A constant channel gets std 1 and becomes 0; floors hold for channels that hardly vary."""
    x = np.stack([np.full(50, 7.3), np.linspace(100, 100.001, 50), np.linspace(0, 1, 50)], axis=1)
    z = ZScore.from_stats(stats_of(x), relative_floor=1e-3, floor=0.01)
    assert z.std[0] == 1 and z.std[1] == pytest.approx(0.1, rel=1e-4)
    assert z.std[2] == pytest.approx(x[:, 2].std())
    np.testing.assert_array_equal(z.apply(x)[:, 0], 0)
    m = MinMax.from_stats(stats_of(x))
    np.testing.assert_array_equal(m.apply(x)[:, 0], 0)
    np.testing.assert_allclose(m.invert(m.apply(x))[:, 0], 7.3)
    flat = ClippedZScore.from_sample(np.full(9, 4.0))
    np.testing.assert_array_equal(flat.apply(np.full((1, 1, 3), 4.0)), 0)


def test_clipped_z_score_ignores_spikes():
    """A few spikes hardly change mean and std, the result lies within +-5, gain and offset cancel."""
    rng = np.random.default_rng(3)
    clean = rng.standard_normal(100_000)
    spiky = clean.copy()
    spiky[:50] = 1e6
    a, b = ClippedZScore.from_sample(clean), ClippedZScore.from_sample(spiky)
    assert b.std == pytest.approx(a.std, rel=0.02) and b.mean == pytest.approx(a.mean, abs=0.02)
    assert np.abs(b.apply(spiky)).max() == 5.0
    c = ClippedZScore.from_sample(7 * clean + 100)
    np.testing.assert_allclose(c.apply(7 * clean + 100), a.apply(clean), atol=1e-9)
    low, high = np.percentile(clean, [0.1, 99.9])
    assert a.std == pytest.approx(np.clip(clean, low, high).std(), rel=1e-12)


def test_log1p_takes_negatives_as_zero():
    """Negative values of a flagged channel count as 0, other channels are untouched."""
    out = Log1p((1, 0)).apply(np.array([[-3.0, -3.0], [np.e - 1, 800.0]]))
    np.testing.assert_allclose(out, [[0, -3], [1, 800]])
    np.testing.assert_allclose(Log1p((1, 0)).invert(out), [[0, -3], [np.e - 1, 800]])


def test_bad_normalisers_are_refused():
    """Zero std, unmatched fields, unknown kinds, missing or extra keys and wrong channels are errors."""
    for make in (
        lambda: ZScore((0.0,), (0.0,)),
        lambda: ZScore((0.0, 1.0), (1.0,)),
        lambda: MinMax((1,), (0,)),
    ):
        with pytest.raises(ValueError):
            make()
    bad = [{"kind": "magic"}, {}, {"kind": "zscore", "mean": [0]}, {"kind": "chain"}]
    bad += [{"kind": "log1p", "flags": [1], "more": 1}, {"kind": "zscore", "mean": ["a"], "std": [1]}]
    for state in bad:
        with pytest.raises(DataError):
            Normalizer.from_state_dict(state)
    with pytest.raises(DataError, match="expected one of"):
        ZScore.from_state_dict(MinMax((0,), (1,)).state_dict())
    with pytest.raises(ValueError, match="expected 3 channels"):
        NORMALISERS[0].apply(np.zeros((5, 4, 2)))
    with pytest.raises(DataError):
        ClippedZScore.from_sample(np.array([]))


def test_reservoir_is_a_fair_repeatable_sample():
    """Same seed, same sample however the stream is cut; it is uniform, and merges over ranks."""
    x = np.arange(200_000, dtype=np.float64)
    one, cut, other = Reservoir(5000, 7), Reservoir(5000, 7), Reservoir(5000, 8)
    one.update(x)
    for part in np.split(x, [3, 10_001, 50_000]):
        cut.update(part.reshape(1, -1))
    other.update(x)
    np.testing.assert_array_equal(one.values, cut.values)
    assert len(one.values) == 5000 and one.count == 200_000
    assert (one.values != other.values).any()
    np.testing.assert_allclose(np.percentile(one.values, [10, 50, 90]) / 2e5, [0.1, 0.5, 0.9], atol=0.02)
    left, right = Reservoir(5000, 7, index=0), Reservoir(5000, 7, index=1)
    left.update(x[:150_000])
    right.update(x[150_000:])
    left.merge(right)
    assert left.count == 200_000
    assert (left.values < 150_000).mean() == pytest.approx(0.75, abs=0.03)


def test_small_streams_are_kept_whole():
    """Below the capacity every value is there, so percentiles are exact."""
    small = Reservoir(100, 0)
    small.update(np.arange(30))
    small.update(np.arange(30, 60))
    np.testing.assert_array_equal(small.values, np.arange(60))
