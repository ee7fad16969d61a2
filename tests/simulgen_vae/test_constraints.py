"""Constraints: hard ones exact, soft ones measured and felt, laws that the simulations themselves keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError, UserError
from common.noise import gaussian
from simulgen_vae import balance, wave
from simulgen_vae.balance import Balance
from simulgen_vae.constraints import (
    CoefficientPenalty,
    Constraints,
    Settings,
    arrays_to_store,
    make_constraints,
    parse_bounds,
)
from simulgen_vae.grids import Grid
from simulgen_vae.objectives import Reconstruction, VaeObjective
from simulgen_vae.synthetic import GENERATORS
from tests.simulgen_vae.cases_vae import tiny_vae

T, M = 4, 6
TIME = torch.linspace(0, 1, T)


def made(names: tuple[str, ...] = ("u",), std: float = 1.0, **flags: object) -> Constraints:
    """Return constraints of a small mesh."""
    shape = (T, M, len(names))
    scale = torch.full((len(names),), std)
    return make_constraints(Settings(**flags), shape=shape, field_names=names, field_std=scale, time=TIME)


def known_nodes(path: Path, mode: str = "hard") -> str:
    """Write two known nodes and return the flag."""
    mask = np.zeros(M, dtype=bool)
    mask[[0, 3]] = True
    np.savez(path, mask=mask, value=np.arange(T * M).reshape(T, M) / 10.0)
    return f"{path}:{mode}"


def test_hard_limits_are_exact(tmp_path: Path):
    """Values end inside the bounds, known nodes have their values bit for bit, the rest is untouched."""
    flag = known_nodes(tmp_path / "known.npz")
    limits = made(bounds="-0.5,0.5:hard", dirichlet=flag)
    u = gaussian((3, T, M, 1), 0, "constraints")
    found = limits(u)
    with np.load(tmp_path / "known.npz") as file:
        value = torch.from_numpy(file["value"].astype(np.float32))
    free = [1, 2, 4, 5]
    assert torch.equal(found[:, :, [0, 3], 0], value[:, [0, 3]].expand(3, T, 2))
    assert torch.equal(found[:, :, free], u[:, :, free].clamp(-0.5, 0.5))
    assert limits.violations(found)["dirichlet_rms"] == 0.0
    inside = 0.1 * torch.ones(1, T, M, 1)
    assert torch.equal(limits(inside)[:, :, free], inside[:, :, free])
    assert torch.equal(limits.of_std(torch.ones(1, T, M, 1))[0, 0, :, 0], torch.tensor([0.0, 1, 1, 0, 1, 1]))


def test_clamped_points_still_learn():
    """The straight gradient is that of the field itself; the plain clamp has none outside."""
    limits = made(bounds="0,1")
    for function, expected in ((limits.straight, 1.0), (limits, 0.0)):
        u = torch.full((1, T, M, 1), 2.0, requires_grad=True)
        function(u).sum().backward()
        assert u.grad is not None and torch.equal(u.grad, torch.full_like(u, expected))
        assert torch.equal(function(u).detach(), torch.ones(1, T, M, 1))


def test_penalties_are_mean_squares(tmp_path: Path):
    """Outside by two standard deviations costs 4, known nodes off by one cost 1, inside nothing."""
    two = torch.full((1, T, M, 1), 2.0)
    assert float(made(bounds="-inf,1:soft", std=0.5).penalty(two)) == pytest.approx(4)
    assert float(made(bounds="-inf,1:soft").penalty(torch.zeros(1, T, M, 1))) == 0.0
    assert float(made(nonnegative="soft").penalty(torch.full((1, T, M, 1), -3.0))) == pytest.approx(9)
    nodes = made(dirichlet=known_nodes(tmp_path / "k.npz", "soft"), std=2.0)
    u = nodes.value[None] + 2.0
    assert float(nodes.penalty(u)) == pytest.approx(1.0)
    assert torch.equal(nodes(u), u) and nodes.is_soft and not nodes.is_hard


def test_bounds_of_several_fields():
    """A bound with a name is of that field alone; bounds of one field narrow each other."""
    limits = made(("t", "p"), bounds="t=0,1:hard;p=-inf,5:soft", nonnegative="hard")
    u = torch.full((1, T, M, 2), 9.0)
    u[:, 0] = -9.0
    found = limits(u)
    assert found[..., 0].min() == 0 and found[..., 0].max() == 1
    assert found[..., 1].min() == 0 and found[..., 1].max() == 9
    assert float(limits.violations(found)["bounds_worst"]) == 4.0
    assert limits.describe() == {"low": [0.0, 0.0], "high": [1.0, None], "soft_high": [None, 5.0]}


def test_part_of_the_mesh(tmp_path: Path):
    """Constraints of some nodes do to them what those of the whole mesh do."""
    limits = made(bounds="-0.2,0.2", dirichlet=known_nodes(tmp_path / "k.npz"))
    u, nodes = gaussian((2, T, M, 1), 1, "part"), torch.tensor([3, 1, 5])
    assert torch.equal(limits.on_nodes(nodes)(u[:, :, nodes]), limits(u)[:, :, nodes])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"bounds": "1,0"}, "--bounds 1,0: expected LO,HI with LO below HI"),
        ({"bounds": "0,1:firm"}, "mode firm, expected hard or soft"),
        ({"bounds": "v=0,1"}, "field v, expected one of u"),
        ({"bounds": "-2,-1", "nonnegative": "hard"}, "nothing is left of field 0"),
        ({"balance": "wave"}, "--balance wave: grid None, 4 frames"),
        ({"residual_weight": 1.0}, "no residual is set"),
    ],
)
def test_bad_flags(flags: dict[str, object], message: str):
    """What cannot be kept is refused with the flag, what was found and what was expected."""
    with pytest.raises(UserError, match=message):
        made(**flags)


def test_a_file_that_is_not_there():
    """Fixed values in no file are a data error."""
    with pytest.raises(DataError, match=r"absent\.npz: no such file"):
        made(dirichlet="absent.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask": np.ones(M, bool)}, "no readable npz file"),
        ({"mask": np.ones(M + 1, bool), "value": np.zeros(M)}, r"mask bool \(7,\), expected bool \(6,\)"),
        ({"mask": np.ones(M, bool), "value": np.zeros((2, M))}, r"value float64 \(2, 6\), expected"),
        ({"mask": np.ones(M, bool), "value": np.full(M, np.nan)}, "6 nodes, expected at least one, all with"),
        ({"mask": np.zeros(M, bool), "value": np.zeros(M)}, "0 nodes, expected at least one"),
        ({"mask": np.ones(M, bool), "value": np.array([None] * M)}, "no readable npz"),
    ],
)
def test_bad_known_nodes(tmp_path: Path, arrays: dict[str, np.ndarray], message: str):
    """A file of known nodes that does not fit the mesh is refused by name."""
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(
        DataError, match=rf"bad\.npz: .*{message}" if "no readable" not in message else message
    ):
        made(dirichlet=str(tmp_path / "bad.npz"))


def test_known_nodes_travel_with_the_model(tmp_path: Path):
    """What is stored gives the same constraints when the file has gone."""
    flag = known_nodes(tmp_path / "k.npz")
    settings = Settings(dirichlet=flag)
    stored = arrays_to_store(settings, (T, M, 1))
    (tmp_path / "k.npz").unlink()
    nodes = tuple(torch.from_numpy(v) for v in stored.values())
    again = make_constraints(
        settings, shape=(T, M, 1), field_names=("u",), field_std=torch.ones(1), time=TIME, nodes=nodes
    )
    assert again(torch.zeros(1, T, M, 1))[0, 2, 3, 0] == pytest.approx((2 * M + 3) / 10)
    assert not arrays_to_store(Settings(), (T, M, 1))


def test_heat_is_balanced_in_the_simulation():
    """The trapezoidal balance between frames closes with the number of frames; a scaled field breaks it."""
    generator, grid = GENERATORS["advdiff"], Grid(16, 8)
    params = generator.params(0, 1)
    sizes = []
    for frames in (20, 80):
        u = torch.from_numpy(generator.simulate(params, grid, frames)[0]).reshape(1, frames, -1, 1)
        law = Balance("advdiff", (8, 16), torch.from_numpy(generator.times(frames)))
        rate = law.residual(u.float(), torch.from_numpy(params)[None])[:, 2:] * frames
        wrong = law.residual(1.1 * u.float(), torch.from_numpy(params)[None])[:, 2:] * frames
        sizes.append(float(balance.rms(rate)))
        assert float(balance.rms(wrong)) > 4 * sizes[-1]
    assert sizes[1] < 0.5 * sizes[0]


def test_energy_falls_in_the_simulation():
    """No energy rises after the source's end in the simulation; backwards in time it does."""
    generator, grid = GENERATORS["wave"], Grid(32, 16)
    params = generator.params(0, 0)
    params[4] = 3.0  # the source ends at 2/3
    u = torch.from_numpy(wave.simulate(params, grid, 50)).float().reshape(1, 50, -1, 1)
    law = Balance("wave", (16, 32), torch.from_numpy(generator.times(50)))
    rows = torch.from_numpy(params)[None]
    assert float(law.residual(u, rows).max()) < 2e-3
    assert float(law.residual(u.flip(1), rows).max()) > 2e-2


def test_a_law_needs_its_own_parameters():
    """A law of another simulation is refused by the number of parameters."""
    law = Balance("wave", (2, 3), TIME)
    with pytest.raises(UserError, match="9 parameters and 1 fields, expected 6 and 1"):
        law.residual(torch.zeros(1, T, M, 1), torch.zeros(1, 9))
    limits = made()
    limits.balance = law
    with pytest.raises(UserError, match="the training has no parameters"):
        limits.penalty(torch.zeros(1, T, M, 1))


def test_soft_balance_lowers_the_violation():
    """Training with a soft law leaves less violation than training without, on the same steps."""
    generator, grid, frames = GENERATORS["advdiff"], Grid(8, 4), 9
    params = np.stack([generator.params(0, i) for i in range(8)])
    u = np.stack([generator.simulate(p, grid, frames)[0].reshape(frames, -1, 1) for p in params])
    from simulgen_vae.basis import fit_basis
    from tests.simulgen_vae.cases_predictors import data_of

    basis = fit_basis(data_of(u.astype(np.float32), params), range(8), 6)
    law = Balance("advdiff", (4, 8), torch.from_numpy(generator.times(frames)))
    limits = Constraints(grid.num_nodes, basis.field_std)
    limits.balance = law
    c, rows = basis.encode(torch.from_numpy(u).float()), torch.from_numpy(params)
    # Targets off the law: the network is to give up some of the fit for it.
    batch = {"c": 1.3 * c, "noise": torch.zeros(8, 8), "weight": torch.ones(8), "params": rows}
    left = []
    for weight in (0.0, 300.0):
        torch.manual_seed(0)
        vae = tiny_vae(frames=frames)
        penalty = CoefficientPenalty(limits, basis, weight)
        objective = VaeObjective(vae, Reconstruction(penalty=penalty), alpha=1e6)
        optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
        for _ in range(30):
            optimizer.zero_grad()
            objective(batch)["loss"].backward()
            optimizer.step()
        with torch.no_grad():
            left.append(float(balance.rms(law.residual(basis.decode(vae.reconstruct(c)), rows)).mean()))
    assert left[1] < 0.8 * left[0]
    assert parse_bounds("off", ("u",)) == []
