"""Geological time solved from slopes, on layers whose time is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.noise import numpy_stream
from fault_seg.geotime import monotone, normalise_rgt, reflection_slopes, solve_geological_time
from fault_seg.synthetic import make_sample, preset

SHAPE = (48, 44, 40)


def coordinates(shape: tuple[int, int, int] = SHAPE) -> list[torch.Tensor]:
    """Return the index cubes z, y, x."""
    return list(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))


def layers(time: torch.Tensor) -> torch.Tensor:
    """Return a smooth random layering read at `time` (samples)."""
    series = numpy_stream(0, "layers").standard_normal(4000)
    fine = torch.tensor(np.convolve(series, np.hanning(33), "same"), dtype=torch.float32)
    place = (time + 300) * 4
    row = place.long()
    return torch.lerp(fine[row], fine[row + 1], place - row)


def error(tau: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Return |tau - time| after the best constant shift."""
    difference = tau - time
    return (difference - difference.mean()).abs()


def test_slopes_of_dipping_layers():
    """Planes z = 0.4 y - 0.2 x + c have slopes 0.4 and -0.2 up to the edges, and full planarity."""
    z, y, x = coordinates()
    p, q, planarity = reflection_slopes(layers(z - 0.4 * y + 0.2 * x))
    assert (p - 0.4).abs().max() < 0.01
    assert (q + 0.2).abs().max() < 0.01
    assert planarity.min() > 0.99


def test_slopes_ignore_amplitude_and_empty_cubes():
    """Slopes do not depend on the units of the image; an empty image has no slope and no planarity."""
    z, y, _ = coordinates((24, 20, 18))
    image = layers(z - 0.3 * y)
    for a, b in zip(reflection_slopes(image), reflection_slopes(3e6 * image), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    p, q, planarity = reflection_slopes(torch.zeros(24, 20, 18))
    assert not (p.any() or q.any() or planarity.any())


@pytest.mark.parametrize(("slope_y", "slope_x"), [(0.0, 0.0), (0.3, -0.15), (-0.6, 0.4)])
def test_dipping_planes_are_exact(slope_y, slope_x):
    """The time of dipping planes is solved to a fraction of a sample."""
    z, y, x = coordinates()
    time = z - slope_y * y - slope_x * x
    wrong = error(solve_geological_time(layers(time)), time)
    assert wrong.mean() < 0.1
    assert wrong.max() < 0.4


def test_gentle_folds_are_followed():
    """On folded layers the solved time is far nearer to the truth than flat time."""
    z, y, x = coordinates()
    time = z - 3 * torch.sin(2 * np.pi * y / 44) * torch.cos(2 * np.pi * x / 60)
    wrong = error(solve_geological_time(layers(time)), time).mean()
    assert wrong < 0.2
    assert wrong < 0.2 * error(z, time).mean()


def test_fault_weights_keep_the_slopes_out():
    """False dips in a slab harm the time less when the slab is marked as fault."""
    z, y, x = coordinates()
    time = z - 0.4 * y
    slab = (y > 17) & (y < 27) & (x < 25)
    image = torch.where(slab, layers(z + 0.5 * y), layers(time))
    marked = error(solve_geological_time(image, slab.float()), time).mean()
    assert marked < 0.8 * error(solve_geological_time(image), time).mean()


@pytest.mark.parametrize("decimate", [2, (2, 1, 2), 3])
def test_decimated_solve_agrees(decimate):
    """Solving on a coarser grid, odd sizes included, changes the time by a small part of a sample."""
    z, y, x = coordinates((47, 41, 38))
    time = z - 2 * torch.sin(2 * np.pi * y / 41) - 0.2 * x
    image = layers(time)
    difference = error(solve_geological_time(image, decimate=decimate), solve_geological_time(image))
    assert difference.mean() < 0.15


@pytest.mark.parametrize("shape", [(40, 30, 1), (40, 1, 30), (40, 5, 20), (1, 8, 8), (9, 1, 1)])
def test_thin_cubes_and_lines(shape):
    """Lines and thin cubes are solved too, with finite values of the right shape."""
    z, y, x = coordinates(shape)
    tau = solve_geological_time(layers(z - 0.2 * y - 0.2 * x))
    assert tau.shape == shape
    assert torch.isfinite(tau).all()


def test_a_line_is_solved_like_a_cube():
    """A 2-D line of dipping layers gets their time."""
    z, y, _ = coordinates((60, 50, 1))
    time = z - 0.3 * y
    assert error(solve_geological_time(layers(time)), time).mean() < 0.1


def test_dead_traces_do_not_spoil_the_rest():
    """Zeroed traces carry no weight: the live ones keep their time to a fraction of a sample."""
    z, y, x = coordinates()
    time = z - 0.3 * y
    live = ~((y > 15) & (y < 20) & (x < 25))
    tau = solve_geological_time(torch.where(live, layers(time), 0.0))
    assert error(tau[live], time[live]).mean() < 0.5


def test_normalised_time():
    """Normalised time spans 0..1 over live voxels, grows downwards for either sign, and is 0 in dead ones."""
    z, y, _ = coordinates((10, 6, 5))
    live = torch.ones(1, 6, 5, dtype=torch.bool)
    live[:, 0] = False
    for tau in (z + 0.1 * y, -(z + 0.1 * y) * 7):
        rgt = normalise_rgt(tau, live)
        alive = rgt[:, 1:]
        assert alive.min() == 0
        assert alive.max() == 1
        assert (alive[1:] > alive[:-1]).all()
        assert not rgt[:, 0].any()


def test_monotone_is_the_nearest_rising_trace():
    """Pool adjacent violators: 1 3 2 4 becomes 1 2.5 2.5 4, rising traces stay as they are."""
    rgt = np.array([[1.0, 3, 2, 4], [0, 1, 2, 3]]).T[:, :, None]
    np.testing.assert_allclose(monotone(rgt)[:, :, 0].T, [[1, 2.5, 2.5, 4], [0, 1, 2, 3]])


def test_monotone_leaves_faults_alone():
    """A fall of time across a fault voxel stays; a fall away from it is repaired."""
    rgt = np.array([1.0, 2, 5, 3, 4, 3.5])[:, None, None]
    fault = np.zeros(rgt.shape, dtype=bool)
    fault[2] = True
    np.testing.assert_allclose(monotone(rgt, fault).ravel(), [1, 2, 5, 3, 3.75, 3.75])


def test_time_is_finite_beside_a_mute():
    """A cube that fades into zeros, as beside a mute, has finite slopes and time everywhere."""
    sample = make_sample(0, 380, preset("mixed"))  # its zeroed edge once gave one NaN, and so a NaN volume
    assert (sample.dhr == 0).mean() > 0.1
    image = torch.from_numpy(sample.dhr)
    assert all(torch.isfinite(values).all() for values in reflection_slopes(image))
    assert torch.isfinite(solve_geological_time(image, torch.from_numpy(sample.fsem))).all()
