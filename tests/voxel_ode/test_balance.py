"""Sweeps over the water balance: noise of the pressure goes, a balanced one stays, nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.voxel_ode.cases_model import make_fields, make_model
from voxel_ode.balance import PressureSweeps
from voxel_ode.config_tools import Placement
from voxel_ode.fields import Fields
from voxel_ode.model import Scales


def case() -> tuple[Scales, Fields]:
    """Return scales and a reservoir without wells."""
    fields = make_fields((7, 6, 5))
    return make_model().scales, replace(fields, well_source=torch.zeros_like(fields.well_source))


def test_sweeps_settle_the_balance():
    """Many sweeps end where what enters a cell leaves it; from there more sweeps change nothing."""
    scales, fields = case()
    pressure, temperature = scales.physical(fields.state).double().unbind(1)
    few, many = (PressureSweeps(scales, fields, n) for n in (4, 800))
    start = few.imbalance(pressure, temperature).abs().max()
    assert few.imbalance(few.relaxed(pressure, temperature), temperature).abs().max() < start
    settled = many.relaxed(pressure, temperature)
    assert many.imbalance(settled, temperature).abs().max() < 1e-2 * start
    torch.testing.assert_close(few.relaxed(settled, temperature), settled, rtol=0, atol=0.02)


def test_wells_keep_their_drawdown():
    """At balance the flow out of a cell is what its well brings: injectors stand above, producers below."""
    scales, fields = case()
    flow = fields.masks[:, 1] > 0
    cells = flow[0].nonzero()
    source = torch.zeros_like(fields.well_source)
    for cell, rate in ((cells[0], 0.1), (cells[-1], -0.1)):
        source[(0, 0, *cell.tolist())] = rate
    temperature = torch.full(flow.shape, 90.0, dtype=torch.float64)
    rest = torch.full_like(temperature, 200.0)
    with_wells = PressureSweeps(scales, replace(fields, well_source=source), 200).relaxed(rest, temperature)
    difference = with_wells - PressureSweeps(scales, fields, 200).relaxed(rest, temperature)
    assert difference[(0, *cells[0].tolist())] > 0 > difference[(0, *cells[-1].tolist())]


def test_only_pressures_of_flow_cells_move():
    """Temperatures and all off the flow cells stay bit for bit; the limits see the relaxed state."""
    scales, fields = case()
    seen: list[torch.Tensor] = []
    sweeps = PressureSweeps(scales, fields, 3, then=lambda x, _: seen.append(x) or x)
    kept = sweeps(fields.state, fields.state)
    assert seen[0] is kept and torch.equal(kept[:, 1], fields.state[:, 1])
    moved = kept[:, 0] != fields.state[:, 0]
    assert moved.any() and not (moved & (fields.masks[:, 1] == 0)).any()


def test_a_negative_number_is_refused():
    """The flag counts sweeps."""
    with pytest.raises(ValueError, match="--pressure_sweeps -1"):
        Placement(pressure_sweeps=-1)
