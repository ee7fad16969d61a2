"""The simulators obey their physics: bounds, balances, symmetry, convergence, streams by sample number."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import UserError
from common.noise import numpy_stream
from common.run import BasicOptions
from simulgen_vae import advdiff, wave
from simulgen_vae.config_data import MakeDataConfig
from simulgen_vae.fields import open_fields
from simulgen_vae.grids import Grid
from simulgen_vae.images import read_image_folder
from simulgen_vae.make_data import make_data
from simulgen_vae.synthetic import GENERATORS

GRID = Grid(32, 16)
PARAMS = {kind: [GENERATORS[kind].params(5, i) for i in range(3)] for kind in GENERATORS}


@pytest.mark.parametrize("i", range(3))
def test_temperature_stays_between_inlet_and_start(i: int):
    """The maximum principle: 0 <= T <= 1 everywhere, at any time."""
    u, _ = advdiff.simulate(PARAMS["advdiff"][i], GRID, 12)
    assert u.min() > -1e-10 and u.max() < 1 + 1e-10 and u.max() > 0.1


@pytest.mark.parametrize("i", range(3))
def test_heat_balance(i: int):
    """Heat content is inflow minus outflow, and is the integral of the temperature."""
    u, balance = advdiff.simulate(PARAMS["advdiff"][i], GRID, 12)
    content = u.sum(axis=(1, 2)) * GRID.hx * GRID.hy
    assert np.abs(balance[:, 0] - content).max() < 1e-10
    assert np.abs(balance[:, 0] - (balance[:, 1] - balance[:, 2])).max() < 1e-10
    assert (np.diff(balance[:, 2]) >= 0).all()


def test_darcy_flow_is_free_of_sources():
    """What flows into a cell flows out, and without a contrast the speed is that of the pressure drop."""
    flux_x, flux_y = advdiff.darcy_flux(advdiff.permeability(PARAMS["advdiff"][0], GRID), GRID)
    assert np.abs(np.diff(flux_x, axis=1) + np.diff(flux_y, axis=0)).max() < 1e-12
    uniform, none = advdiff.darcy_flux(np.ones((GRID.ny, GRID.nx)), GRID)
    assert np.allclose(uniform / GRID.hy, 0.5, atol=1e-12) and np.abs(none).max() < 1e-12


def test_heat_without_contrast_is_the_one_dimensional_solution():
    """With c = 0 the ellipse vanishes: T depends on x alone and obeys the 1-D equation."""
    params = PARAMS["advdiff"][0].copy()
    params[1] = 0.0
    u, _ = advdiff.simulate(params, GRID, 10)
    assert np.abs(u - u[:, :1]).max() < 1e-10
    line, _ = advdiff.simulate(params, Grid(32, 4), 10)
    assert np.abs(u[:, 0] - line[:, 0]).max() < 1e-10


@pytest.mark.parametrize("kind", sorted(GENERATORS))
@pytest.mark.parametrize("i", range(3))
def test_mirror_symmetry(kind: str, i: int):
    """The mirrored parameters give the mirrored field and picture: the declared symmetry is exact."""
    generator = GENERATORS[kind]
    symmetry = generator.symmetry(GRID)
    params = PARAMS[kind][i]
    u, _ = generator.simulate(params, GRID, 8)
    mirrored = symmetry.apply_params(params)
    assert np.abs(mirrored - params).max() > 1e-3
    v, _ = generator.simulate(mirrored, GRID, 8)
    expected = symmetry.apply_fields(u.reshape(8, -1, 1)).reshape(u.shape)
    assert np.abs(v - expected).max() < 1e-10
    picture = symmetry.apply_image(generator.picture(params, GRID))
    assert np.array_equal(generator.picture(mirrored, GRID), picture)


def test_wave_energy_falls_after_the_source():
    """Once the source has ended, the sponge only takes energy away."""
    times = GENERATORS["wave"].times(25)
    for params in PARAMS["wave"]:
        energy = wave.simulate_energy(params, GRID, 25)
        after = energy[times > 2 / params[4]]
        assert len(after) > 3 and (np.diff(after) < 0).all() and after[0] > 0.1 * energy.max()


def test_wave_travels_with_its_speed():
    """Ahead of the fastest wave the medium is at rest; the wave has passed behind it."""
    params = np.array([1.3, 0.5, 0.1, 1.0, 3.0, 0.5])
    grid = Grid(64, 32)
    u = wave.simulate(params, grid, 25)
    ahead = grid.centres()[0][0] > wave.SOURCE_X + wave.T_END * 0.6 + 4 * wave.SOURCE_SIGMA
    frame = u[14]  # at 0.6 of the time
    assert np.abs(frame[:, ahead]).max() < 0.02 * np.abs(frame).max()


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_grid_convergence(kind: str):
    """A finer grid comes closer to a much finer one."""
    smooth = {
        "advdiff": np.array([1.2, 0.0, 1.0, 0.5, 0.3, 0.2, 1.0, 0.0, 0.1]),
        "wave": np.array([1.0, 0.5, 0.2, 1.0, 1.5, 0.5]),
    }
    generator, errors = GENERATORS[kind], []
    grids = [Grid(2 * n, n) for n in (16, 32, 64)]
    fine, *_ = generator.simulate(smooth[kind], grids[-1], 6)
    for grid in grids[:-1]:
        u, _ = generator.simulate(smooth[kind], grid, 6)
        k = 64 // grid.ny
        coarse = fine.reshape(6, grid.ny, k, grid.nx, k).mean(axis=(2, 4))
        errors.append(np.linalg.norm(u - coarse) / np.linalg.norm(coarse))
    assert errors[1] < 0.62 * errors[0] and errors[1] < 0.1


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_a_sample_does_not_depend_on_the_number_of_samples(kind: str, tmp_path):
    """Sample i of a seed is the same bit for bit in a small and in a larger set, and differs by seed."""
    sets = []
    for num, seed in ((2, 7), (4, 7), (2, 8)):
        path = tmp_path / f"{num}_{seed}.h5"
        config = MakeDataConfig(kind=kind, num=num, nx=16, ny=8, frames=3, path=str(path), figures=False)
        make_data(config, BasicOptions(), seed)
        sets.append(open_fields(path))
    small, large, other = sets
    for i in range(2):
        assert np.array_equal(small.trajectory(i), large.trajectory(i))
        assert np.array_equal(small.params[i], large.params[i])
        assert np.array_equal(small.images[i], large.images[i])
    assert not np.array_equal(small.trajectory(0), other.trajectory(0))
    assert small.symmetry is not None and small.grid_shape == (8, 16)
    assert (small.balance is not None) == (kind == "advdiff")


def test_npy_set_equals_h5_set(tmp_path):
    """The npy form with CSV, pictures and symmetry holds what the HDF5 form holds."""
    for name in ("a.h5", "a.npy"):
        config = MakeDataConfig("wave", 3, 16, 8, 4, str(tmp_path / name), name[2:], figures=name == "a.h5")
        make_data(config, BasicOptions())
    h5 = open_fields(tmp_path / "a.h5")
    npy = open_fields(
        tmp_path / "a.npy",
        params=tmp_path / "a_params.csv",
        images=tmp_path / "a_images",
        symmetry=tmp_path / "a_symmetry.npz",
    )
    assert np.array_equal(npy.trajectory(2), h5.trajectory(2))
    assert np.allclose(npy.params, h5.params, rtol=1e-7) and npy.param_names == h5.param_names
    assert np.array_equal(npy.symmetry.node_permutation, h5.symmetry.node_permutation)
    assert np.array_equal(read_image_folder(tmp_path / "a_images"), npy.images)
    assert (tmp_path / "a_sample0.png").exists() and (tmp_path / "a_sample0_picture.png").exists()


def test_wave_refuses_what_cannot_be_stable():
    """Too long a step, or cells that are no squares, are refused before anything is computed."""
    with pytest.raises(UserError, match=r"max\(c\) dt / h"):
        wave.simulate(np.array([1.0, 0.5, 0.2, 2.0, 2.0, 0.5]), GRID, 2, courant=0.5)
    with pytest.raises(UserError, match="square"):
        wave.simulate(PARAMS["wave"][0], Grid(16, 16), 2)
    with pytest.raises(ValueError, match="square"):
        MakeDataConfig("wave", nx=20, ny=20)


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_parameters_lie_in_their_ranges(kind: str):
    """Every draw is inside the documented box, and the angle's two columns are a unit vector."""
    drawn = np.array([GENERATORS[kind].draw(numpy_stream(0, "x", i)) for i in range(300)])
    if kind == "advdiff":
        ranges = [(0.7, 2), (-2, 2), (0.5, 1.5), (0.25, 0.75), (0.1, 0.4), (0.05, 0.25), (-1, 1), (-1, 1)]
        ranges.append((0.02, 0.3))
        assert np.allclose(np.hypot(drawn[:, 6], drawn[:, 7]), 1)
    else:
        ranges = list(wave.RANGES)
    low, high = np.array(ranges).T
    assert (drawn >= low).all() and (drawn <= high).all()
    assert (np.ptp(drawn, axis=0) > 0.9 * (high - low)).all()


def test_an_existing_file_is_kept(tmp_path):
    """A data set is not replaced unless --overwrite says so."""
    path = tmp_path / "a.h5"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        make_data(MakeDataConfig("wave", 1, 16, 8, 2, str(path)), BasicOptions())
    assert path.read_bytes() == b"mine"
