"""Random streams are functions of their names; correlated fields have the covariance they claim."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from common import noise


def test_streams_do_not_depend_on_order():
    """A stream gives the same numbers whatever was drawn before, elsewhere or globally."""
    first = noise.gaussian((5,), 7, "z", 3)
    torch.manual_seed(99)
    np.random.seed(99)
    noise.gaussian((1000,), 7, "z", 2)
    noise.numpy_stream(7, "z", 3).standard_normal(100)
    assert torch.equal(first, noise.gaussian((5,), 7, "z", 3))


def test_streams_leave_global_generators_alone():
    """Drawing changes no global random state of torch, NumPy or Python."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    noise.gaussian((10,), 0, "z")
    noise.correlated_gaussian((8, 8), 2.0, noise.numpy_stream(0, "field"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


def test_streams_differ_in_every_part_of_their_name():
    """Seed, purpose, each index and the number of indices give streams without correlation."""
    names = [
        (0, "a", 1),
        (1, "a", 1),
        (0, "b", 1),
        (0, "a", 2),
        (0, "a", 1, 0),
        (0, "a"),
        (0, "a", 11),
        (-1, "a"),
    ]
    drawn = np.stack([noise.numpy_stream(*name).standard_normal(4000) for name in names])
    torch_drawn = np.stack([noise.gaussian((4000,), *name).numpy() for name in names])
    for rows in (drawn, torch_drawn):
        correlation = np.corrcoef(rows) - np.eye(len(names))
        assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_streams_are_known_numbers():
    """The numbers of a stream are part of the contract: a change would break exact resume across versions."""
    assert noise.stream_key(0, "a", 1) == noise.stream_key(0, "a", np.int64(1))
    assert noise.stream_key(0, "z", 17) == 14208135957991867392573109644717393301
    assert noise.numpy_stream(0, "z", 17).integers(1_000_000, size=3).tolist() == [422687, 515140, 836271]


def test_neighbouring_streams_are_white():
    """The first draw of consecutive indices is standard normal: indices are mixed, not added to a seed."""
    first = np.array([float(noise.gaussian((1,), 0, "z", i)) for i in range(2000)])
    assert abs(first.mean()) < 4 / np.sqrt(2000) and abs(first.std() - 1) < 0.07
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4 / np.sqrt(2000)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("shape", "lengths"), [((96, 81), (3.0, 5.0)), ((400,), 4.0), ((24, 20, 31), 2.0)])
def test_covariance_of_correlated_fields(shape: tuple[int, ...], lengths, periodic: bool):
    """The mean is 0, the variance 1 and the covariance exp(-h^2 / 2 l^2) along every axis."""
    rng = noise.numpy_stream(1, "field", len(shape))
    fields = np.stack([noise.correlated_gaussian(shape, lengths, rng, periodic=periodic) for _ in range(60)])
    fields = fields.astype(np.float64)
    assert fields.dtype == np.float64 and fields.shape[1:] == shape
    assert abs(fields.mean()) < 0.08
    assert fields.var() == pytest.approx(1.0, abs=0.08)
    for axis, length in enumerate(np.broadcast_to(lengths, len(shape))):
        moved = np.moveaxis(fields, axis + 1, -1)
        for lag in (1, 2, 4, 8):
            found = (moved[..., lag:] * moved[..., :-lag]).mean()
            assert found == pytest.approx(np.exp(-(lag**2) / (2 * length**2)), abs=0.08), (axis, lag)


def test_opposite_edges():
    """Opposite edges of a field are independent, and alike only when it is periodic."""
    rng = noise.numpy_stream(2, "field")

    def edge_correlation(periodic: bool) -> float:
        fields = [noise.correlated_gaussian((20, 30), 3.0, rng, periodic=periodic) for _ in range(300)]
        return float(np.mean([(f[:, 0] * f[:, -1]).mean() for f in fields]))

    assert abs(edge_correlation(False)) < 0.1
    assert edge_correlation(True) == pytest.approx(np.exp(-1 / 18), abs=0.1)


def test_zero_length_is_white():
    """A correlation length of 0 leaves an axis white; float32 comes out, the same for the same stream."""
    field = noise.correlated_gaussian((200, 64), (0.0, 4.0), noise.numpy_stream(3, "field"))
    assert field.dtype == np.float32
    assert abs((field[1:] * field[:-1]).mean()) < 0.1
    assert (field[:, 1:] * field[:, :-1]).mean() > 0.8
    again = noise.correlated_gaussian((200, 64), (0.0, 4.0), noise.numpy_stream(3, "field"))
    assert (field == again).all()


@pytest.mark.parametrize("lengths", [-1.0, (1.0, -2.0), (1.0, 2.0, 3.0)])
def test_bad_lengths(lengths):
    """Negative lengths, or as many as there are no axes, are refused."""
    with pytest.raises(ValueError, match=r"."):
        noise.correlated_gaussian((8, 8), lengths, noise.numpy_stream(0, "field"))
