"""The loss, the field rates and the curriculum of years."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.voxel_ode.cases_model import make_batch, make_fields, make_model, make_normalizer
from voxel_ode.losses import grid_losses, scalar_loss, weighted_sum
from voxel_ode.scalars import physical_rates, with_total
from voxel_ode.units import WATER_HEAT_CAPACITY, YEAR
from voxel_ode.unroll import UnrolledLoss, curriculum
from voxel_ode.wells import WellReader, Wells


def test_grid_losses_count_in_their_units():
    """An error of one unit everywhere is a loss of 1, in each channel by its own unit."""
    truth = torch.randn(2, 2, 3, 4, 5)
    units = torch.tensor([0.5, 2.0])
    error = units[:, None, None, None] * torch.tensor([1.0, 2.0])[:, None, None, None]
    found = grid_losses(truth + error, truth, torch.ones_like(truth), units)
    assert [float(x) for x in found] == pytest.approx([1.0, 4.0], rel=1e-4)


def test_pooled_samples_without_all_wells_do_not_count():
    """A sample that does not count leaves the scalar loss; the weights weigh the three parts."""
    prediction, truth = torch.tensor([[1.0] * 5, [3.0] * 5]), torch.zeros(2, 5)
    assert float(scalar_loss(prediction, truth, torch.tensor([1.0, 0.0]))) == pytest.approx(0.5)
    parts = [torch.tensor(x) for x in (1.0, 2.0, 3.0)]
    assert float(weighted_sum(parts, (1.0, 0.5, 2.0))) == pytest.approx(8.0)


def test_pooled_loss_is_off_for_incomplete_patches():
    """With the pooled head a patch that misses wells has no scalar loss; with the physical head it has."""
    batch = make_batch()
    batch["wells_complete"] = torch.tensor([False, False])
    for head, expected in (("pooled", True), ("physics", False)):
        loss = UnrolledLoss(make_model(scalar_head=head), (1, 1, 1), 1)(batch)
        assert (float(loss["scalar"].detach()) == 0) is expected


def test_rates_of_constant_temperatures():
    """Water is exact; energy is q c_w T, over the year a quarter old and three quarters new temperature."""
    now = torch.tensor([[40.0, 80.0, 220, 190, 90, 200]])
    later = torch.tensor([[30.0, 60.0, 220, 190, 90, 200]])
    rates = physical_rates(now, later, torch.tensor([[50.0, 45.0]]))
    expected = [50 * WATER_HEAT_CAPACITY * 30, 45 * WATER_HEAT_CAPACITY * 65, 50.0, 45.0]
    assert rates[0].tolist() == pytest.approx(expected)
    total = with_total(rates, torch.tensor([1e15]), torch.tensor([YEAR]))
    assert total[0].tolist() == pytest.approx([*expected[:2], 1e15 + expected[1] * YEAR, *expected[2:]])


def test_untrained_rates_are_physical():
    """Without a learned correction the network's scalars are the physical ones, within rounding of log1p."""
    model = make_model()
    nn.init.zeros_(model.scalar_head.out.weight)
    nn.init.zeros_(model.scalar_head.out.bias)
    fields = make_fields()
    _, z = model(fields)
    rates = physical_rates(fields.well_now, fields.well_next, fields.well_rates)
    expected = with_total(rates, fields.previous_total, fields.dt_s)
    torch.testing.assert_close(model.scales.physical_scalars(z), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(z, make_normalizer().scalars_to_normalized(expected), rtol=1e-5, atol=1e-5)


def test_field_energy_is_the_sum_over_wells():
    """The mean over wells weighted by their rates makes q T of the field the sum of q T of the wells."""
    cells = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 2, 1], [1, 2, 1]]).numpy()
    share = torch.tensor([0.3, 0.7, 0.4, 0.6], dtype=torch.float64).numpy()
    owner = torch.tensor([0, 0, 1, 1]).numpy()
    rate = torch.tensor([30.0, 50.0], dtype=torch.float64).numpy()
    wells = Wells(torch.tensor([-1, -1]).numpy(), rate, cells, share, owner)
    t = torch.randn(1, 2, 3, 2).double() * 10 + 80
    features = WellReader.of(wells, torch.ones(3, 2, 3, 2)).features(t + 100, t)
    found = physical_rates(features, features, torch.tensor([[0.0, 80.0]]))[0, 1]
    each = [
        30 * (0.3 * t[0, 0, 0, 0] + 0.7 * t[0, 1, 0, 0]),
        50 * (0.4 * t[0, 0, 2, 1] + 0.6 * t[0, 1, 2, 1]),
    ]
    assert float(found) == pytest.approx(float(sum(each)) * WATER_HEAT_CAPACITY, rel=1e-6)


def test_curriculum():
    """One year first, then doubled years in equal parts, ending at the largest; all steps are used."""
    assert curriculum(100, 1, 0.6) == [(1, 100)]
    assert curriculum(100, 8, 0.7) == [(1, 70), (2, 10), (4, 10), (8, 10)]
    assert curriculum(100, 3, 0.5) == [(1, 50), (2, 25), (3, 25)]
    assert curriculum(10, 4, 0.0) == [(2, 5), (4, 5)]
    assert curriculum(10, 4, 1.0) == [(1, 10)]
    for n in (1, 2, 7, 1000):
        assert sum(steps for _, steps in curriculum(n, 8, 0.6)) == n


class _Drift(nn.Module):
    """Stands for the network: adds a constant to the state, and remembers what it was given."""

    def __init__(self, real: Any, drift: float) -> None:
        super().__init__()
        self.config, self.scales = real.config, real.scales
        self.drift = nn.Parameter(torch.tensor(drift))
        self.seen: list[torch.Tensor] = []

    def static_features(self, fields: Any, *, once: bool) -> Any:
        return fields.masks[:, [1, 0]]

    def step(self, fixed: Any, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if state.requires_grad:
            state.retain_grad()
        self.seen.append(state)
        return state + self.drift * fixed, state

    def scalars(self, fixed: Any, trunk: Any, now: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros(len(now), 5)


def test_one_year_equals_the_plain_step():
    """With K = 1 the unrolled loss is the loss of the network's own forward."""
    model, batch = make_model(), make_batch()
    loss = UnrolledLoss(model, (1, 1, 1), 2)(batch)
    from voxel_ode.fields import Fields

    following, scalars = model(Fields.from_batch(batch))
    units = model.scales.delta_rms / model.scales.std
    grids = grid_losses(following, batch["states"][:, 1], batch["masks"][:, [1, 0]], units)
    expected = [*grids, scalar_loss(scalars, batch["scalars"][:, 0], torch.ones(2))]
    for name, value in zip(("grid_p", "grid_T", "scalar"), expected, strict=True):
        torch.testing.assert_close(loss[name], value)


def test_target_is_the_truth_of_each_year():
    """A state that drifts by d a year from a still truth is k d wrong in year k: targets are not re-based."""
    batch = make_batch(years=4)
    batch["states"][:] = batch["states"][:, :1]
    real = make_model()
    d = 0.1
    loss = UnrolledLoss(_Drift(real, d), (1, 1, 1), 4)(batch)
    unit = float(real.scales.delta_rms[1] / real.scales.std[1])
    assert float(loss["grid_T"].detach()) == pytest.approx(
        sum((k * d / unit) ** 2 for k in (1, 2, 3, 4)) / 4, rel=1e-4
    )


@pytest.mark.parametrize(("grad_steps", "attached"), [(1, []), (2, [3]), (3, [2, 3]), (9, [1, 2, 3])])
def test_gradients_stop_where_they_should(grad_steps: int, attached: list[int]):
    """Only the last states carry gradients: with 1 none is an input with gradient (pushforward)."""
    batch = make_batch(years=4)
    model = _Drift(make_model(), 0.1)
    UnrolledLoss(model, (1, 1, 0), grad_steps)(batch)["loss"].backward()
    assert [i for i, state in enumerate(model.seen) if state.requires_grad] == attached
    assert model.drift.grad is not None and float(model.drift.grad) != 0


def test_margin_cells_follow_the_truth():
    """Cells beside a cut have no loss and take the truth before the next year."""
    batch = make_batch((6, 5, 4), years=3, share=1.1)
    batch["loss_mask"][:, :2] = 0
    model = _Drift(make_model(), 0.5)
    loss = UnrolledLoss(model, (1, 1, 1), 3)(batch)
    domains = batch["masks"][:, [1, 0]]
    for k in (1, 2):
        assert torch.equal(model.seen[k][:, :, :2], batch["states"][:, k, :, :2])
        drifted = batch["states"][:, 0, :, 2:] + k * 0.5 * domains[:, :, 2:]
        torch.testing.assert_close(model.seen[k][:, :, 2:], drifted)
    spoiled = {**batch, "states": batch["states"].clone()}
    spoiled["states"][:, 1:, :, :2] += 7.0
    again = UnrolledLoss(_Drift(make_model(), 0.5), (1, 1, 1), 3)(spoiled)
    torch.testing.assert_close(again["loss"], loss["loss"])
