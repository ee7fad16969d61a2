"""The POD front end is orthonormal, as good as an exact SVD, and sees training rows only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from simulgen_vae.basis import Basis, fit_basis, identity_basis
from simulgen_vae.dataset import load_coefficients
from simulgen_vae.fields import open_fields
from simulgen_vae.grids import Grid
from simulgen_vae.reduced import TrajectoryPod, fit_trajectory_pod, reduce_all
from tests.simulgen_vae.cases_data import case, mirror, write_case

ROWS = np.arange(8)


def fields_of(data, rows=ROWS) -> torch.Tensor:
    """Return [n, T, M, V] of some rows."""
    return torch.from_numpy(np.stack([data.trajectory(int(i)) for i in rows]))


def exact_tail(data, rank: int) -> float:
    """Return the error that no basis of this rank can beat, from a float64 SVD of standardised frames."""
    u = fields_of(data).double().numpy().reshape(-1, data.num_nodes, data.num_fields)
    std = u.std(axis=(0, 1))
    x = ((u - u.mean(axis=0)) / std).reshape(len(u), -1)
    return float(np.sqrt((np.linalg.svd(x, compute_uv=False)[rank:] ** 2).sum()))


def projection_error(basis: Basis, data) -> float:
    """Return the norm of what the basis leaves out of the standardised training frames."""
    x = basis.standardize(fields_of(data)).flatten(0, 1).double()
    modes = basis.modes.double()
    return float((x - x @ modes @ modes.T).norm())


@pytest.mark.parametrize(("nx", "ny", "fields"), [(8, 4, 2), (64, 20, 1)], ids=["exact", "randomised"])
@pytest.mark.parametrize("rank", [3, 12])
def test_streaming_basis_equals_exact_svd(tmp_path, nx: int, ny: int, fields: int, rank: int):
    """The projection error is within 1 % of the exact SVD's, the modes orthonormal, the energy exact."""
    data = case(tmp_path / "a.h5", nx=nx, ny=ny, fields=fields, frames=9)
    basis = fit_basis(data, ROWS, rank)
    best = exact_tail(data, rank)
    assert projection_error(basis, data) <= 1.01 * best + 1e-4
    gram = basis.modes.T.double() @ basis.modes.double()
    assert (gram - torch.eye(rank)).abs().max() < 2e-6
    total = exact_tail(data, 0) ** 2
    assert float(basis.energy) == pytest.approx(1 - best**2 / total, abs=2e-6)


@pytest.mark.parametrize(("nx", "ny"), [(8, 4), (64, 20)], ids=["exact", "randomised"])
def test_full_rank_is_the_identity(tmp_path, nx: int, ny: int):
    """With as many modes as frames or channels, decoding undoes encoding; sigma is the std of c."""
    data = case(tmp_path / "a.h5", nx=nx, ny=ny)
    basis = fit_basis(data, ROWS, 10_000)
    u = fields_of(data)
    assert torch.allclose(basis.decode(basis.encode(u)), u, atol=2e-5)
    c = basis.encode(u)
    assert c.shape == (8, basis.num_modes, 6)
    assert torch.allclose(basis.sigma, c.transpose(1, 2).flatten(0, 1).std(0, correction=0), atol=1e-3)
    assert float((c**2).mean()) == pytest.approx(float((basis.standardize(u) ** 2).mean()), rel=1e-4)


def test_rank_follows_the_energy(tmp_path):
    """More energy takes more modes, and the rank is the smallest that reaches it."""
    data = case(tmp_path / "a.h5")
    low, high = (fit_basis(data, ROWS, energy=e) for e in (0.9, 0.9999))
    assert low.num_modes < high.num_modes
    fewer = fit_basis(data, ROWS, high.num_modes - 1)
    assert float(fewer.energy) < 0.9999 <= float(high.energy)


def test_a_rank_below_the_energy_is_said(tmp_path, capsys, monkeypatch):
    """When the cap is reached first, a warning says what is held."""
    monkeypatch.setattr("simulgen_vae.basis.MODES_CAP", 2)
    basis = fit_basis(case(tmp_path / "a.h5"), ROWS)
    assert basis.num_modes == 2 and "2 modes hold" in capsys.readouterr().err


def test_units_do_not_matter(tmp_path):
    """Two fields in unequal units count alike: scaling one changes neither modes nor coefficients."""
    data = case(tmp_path / "a.h5", fields=2)
    scaled = np.stack([data.trajectory(i) for i in range(12)]) * np.array([1.0, 4096.0], dtype=np.float32)
    other = case(tmp_path / "b.h5", u=scaled)
    first, second = fit_basis(data, ROWS, 5), fit_basis(other, ROWS, 5)
    u, v = fields_of(data), fields_of(other)
    assert torch.allclose(first.encode(u), second.encode(v), atol=1e-3)
    assert float(second.field_std[1] / first.field_std[1]) == pytest.approx(4096, rel=1e-5)


@pytest.mark.parametrize(("nx", "ny"), [(8, 4), (64, 20)], ids=["exact", "randomised"])
def test_other_rows_are_never_seen(tmp_path, nx: int, ny: int):
    """Poison in validation and test rows changes no bit of basis, statistics or POD."""
    clean = case(tmp_path / "a.h5", nx=nx, ny=ny)
    u = np.stack([clean.trajectory(i) for i in range(12)])
    u[8:] = 1e6
    poisoned = case(tmp_path / "b.h5", u=u)
    a, b = (fit_basis(d, ROWS, 4) for d in (clean, poisoned))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert not np.array_equal(reduce_all(clean, a)[8:], reduce_all(poisoned, b)[8:])
    pods = [fit_trajectory_pod(reduce_all(d, a, ROWS), 5) for d in (clean, poisoned)]
    assert torch.equal(pods[0].modes, pods[1].modes) and torch.equal(pods[0].scales, pods[1].scales)
    a, b = (identity_basis(d, ROWS) for d in (clean, poisoned))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_identity_basis(tmp_path):
    """The front end `none` has one channel a node and loses nothing."""
    data = case(tmp_path / "a.h5", fields=2)
    basis = identity_basis(data, ROWS)
    u = fields_of(data)
    assert basis.is_identity and basis.num_modes == 64 and basis.scale == 1
    assert torch.allclose(basis.decode(basis.encode(u)), u, rtol=1e-5, atol=1e-4)
    some = torch.tensor([0, 7])
    c = basis.encode(u)
    assert torch.equal(basis.decode_standardized(c, some), basis.decode_standardized(c)[..., some])


def test_chosen_channels_are_those_of_the_whole_field(tmp_path):
    """Decoding some channels equals decoding all of them."""
    data = case(tmp_path / "a.h5")
    basis = fit_basis(data, ROWS, 4)
    c = basis.encode(fields_of(data))
    some = torch.tensor([3, 0, 31])
    whole = basis.decode_standardized(c)
    assert torch.allclose(basis.decode_standardized(c, some), whole[..., some], atol=1e-5)


def test_mirrored_coefficients(tmp_path):
    """On a basis fitted with the symmetry, R c + o are the coefficients of the mirrored field."""
    grid = Grid(8, 4)
    data = case(tmp_path / "a.h5", symmetry=mirror(grid), grid_shape=(4, 8))
    basis = fit_basis(data, ROWS, energy=1 - 1e-9, symmetry=data.symmetry)
    u = fields_of(data)
    matrix, offset = basis.mirror(data.symmetry)
    c = basis.encode(u)
    mirrored = torch.einsum("rs,nst->nrt", matrix, c) + offset[:, None]
    assert torch.allclose(mirrored, basis.encode(data.symmetry.apply_fields(u)), atol=2e-3)
    assert (mirrored - c).abs().max() > 0.1
    plain = fit_basis(data, ROWS, 3)
    both = fit_basis(data, ROWS, 3, symmetry=data.symmetry)
    v = data.symmetry.apply_fields(u)
    errors = [float((b.decode(b.encode(v)) - v).norm()) for b in (plain, both)]
    assert errors[1] < errors[0]


def test_state_round_trip(tmp_path):
    """The plain tensors of a basis and of a POD make them again; damage is refused."""
    data = case(tmp_path / "a.h5")
    basis = fit_basis(data, ROWS, 4)
    again = Basis.from_dict(dict(basis.state_dict()))
    u = fields_of(data)
    assert torch.equal(again.encode(u), basis.encode(u))
    with pytest.raises(DataError, match="without sigma"):
        Basis.from_dict({k: v for k, v in basis.state_dict().items() if k != "sigma"})
    with pytest.raises(DataError, match="do not agree"):
        Basis.from_dict({**basis.state_dict(), "node_mean": torch.zeros(5)})
    pod = fit_trajectory_pod(reduce_all(data, basis), 5)
    same = TrajectoryPod.from_dict(dict(pod.state_dict()), 4)
    assert torch.equal(same.decode(torch.ones(1, 5)), pod.decode(torch.ones(1, 5)))
    with pytest.raises(DataError, match="do not agree"):
        TrajectoryPod.from_dict({**pod.state_dict(), "scales": torch.zeros(3)}, 4)


def test_trajectory_pod(tmp_path):
    """Scores are white, modes orthonormal, the error that of the exact SVD; beyond N - 1 modes are zero."""
    data = case(tmp_path / "a.h5")
    basis = fit_basis(data, ROWS, 6)
    c = reduce_all(data, basis, ROWS)
    pod = fit_trajectory_pod(c, 20)
    assert pod.rank == 7 and (pod.scales[7:] == 0).all() and (pod.modes[7:] == 0).all()
    zeta = pod.encode(torch.from_numpy(c))
    assert torch.allclose(zeta[:, :7].T @ zeta[:, :7] / 8, torch.eye(7), atol=1e-3)
    assert torch.allclose(pod.modes[:7] @ pod.modes[:7].T, torch.eye(7), atol=1e-4)
    assert torch.allclose(pod.decode(zeta), torch.from_numpy(c), atol=1e-4)
    three = pod.first(3)
    rest = three.decode(three.encode(torch.from_numpy(c))) - torch.from_numpy(c)
    flat = c.reshape(8, -1) - c.reshape(8, -1).mean(0)
    best = np.sqrt((np.linalg.svd(flat.astype(np.float64), compute_uv=False)[3:] ** 2).sum())
    assert float(rest.norm()) == pytest.approx(best, rel=1e-3)


def test_two_samples_that_are_equal(tmp_path):
    """A sample that stands twice lowers the rank and leaves no mode of rounding."""
    data = case(tmp_path / "a.h5")
    c = reduce_all(data, fit_basis(data, ROWS, 6), [0, 1, 1, 2])
    pod = fit_trajectory_pod(c, 8)
    assert pod.rank == 2 and torch.isfinite(pod.modes).all()


@pytest.mark.parametrize(("frames", "nx", "ny"), [(1, 8, 4), (6, 5, 1)], ids=["static", "five nodes"])
def test_small_data(tmp_path, frames: int, nx: int, ny: int):
    """T = 1 and M = 5 work."""
    data = case(tmp_path / "a.h5", frames=frames, nx=nx, ny=ny)
    basis = fit_basis(data, ROWS, energy=1 - 1e-9)
    u = fields_of(data)
    assert torch.allclose(basis.decode(basis.encode(u)), u, atol=1e-3)


def test_memory_bound(tmp_path, capsys):
    """A tight bound lowers the rank with a warning; an impossible one says what is needed."""
    data = case(tmp_path / "a.h5", nx=64, ny=20, frames=9)
    dim = 64 * 20
    bound = (3 * 4 * dim * 9 + 16 * dim * 30) / 2**30
    basis = fit_basis(data, ROWS, 40, max_memory=bound + 1e-9)
    assert basis.num_modes == 10 and "10 modes fit instead of 40" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"needs at least 0\.0\d GiB"):
        fit_basis(data, ROWS, 40, max_memory=1e-5)


def test_a_constant_field_is_refused(tmp_path):
    """A field without variation cannot be standardised and is named."""
    u = np.stack([case(tmp_path / "a.h5", fields=2).trajectory(i) for i in range(12)])
    u[..., 1] = 3.0
    with pytest.raises(DataError, match="the field f1 is 3 everywhere"):
        fit_basis(case(tmp_path / "b.h5", u=u), ROWS, 4)


def test_burgers(real_data):
    """On public Burgers data 56 whole-trajectory modes reach the published error of 0.0020."""
    data = open_fields(real_data / "simulgen" / "burgers_mini.npz")
    assert data.shape == (1200, 17, 16, 1) and data.num_params == 16
    assert np.array_equal(data.params[7].astype(np.float32), data.trajectory(7)[0, :, 0])
    basis = fit_basis(data, np.arange(800))
    c = reduce_all(data, basis)
    pod = fit_trajectory_pod(c[:800], 56)
    u = fields_of(data, np.arange(800, 1200))
    v = basis.decode(pod.decode(pod.encode(torch.from_numpy(c[800:]))))
    error = ((v - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)).mean()
    assert float(error) == pytest.approx(0.0020, abs=2e-4)


def test_cached_coefficients(tmp_path, capsys):
    """The cache equals what is computed bit for bit, follows the content, and heals when damaged."""
    data = case(tmp_path / "a.h5")
    basis = fit_basis(data, ROWS, 4)
    folder = tmp_path / "cache"
    plain = load_coefficients(data, basis)
    assert np.array_equal(load_coefficients(data, basis, folder), plain)
    (file,) = folder.iterdir()
    changed = case(tmp_path / "b.h5", u=np.stack([data.trajectory(i) + 1 for i in range(12)]))
    load_coefficients(changed, basis, folder)
    assert len(list(folder.iterdir())) == 2
    file.write_bytes(b"broken")
    assert (
        np.array_equal(load_coefficients(data, basis, folder), plain)
        and "damaged cache" in capsys.readouterr().err
    )


def test_lazy_reading_opens_files_per_process(tmp_path):
    """After a fork the child reads through its own handle, and the parent's still works."""
    import os

    data = open_fields(write_case(tmp_path / "a.h5"))
    expected = data.trajectory(3)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(data.trajectory(3), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(data.trajectory(3), expected)
