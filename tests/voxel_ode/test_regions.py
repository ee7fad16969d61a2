"""Forecasts computed in parts: slabs, tiles and the static stem kept apart equal the whole grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.noise import numpy_stream
from tests.voxel_ode.cases_model import make_model
from tests.voxel_ode.cases_rollout import is_partition, slab_fields
from voxel_ode.regions import (
    Region,
    active_boxes,
    bytes_a_cell,
    plan_regions,
    reach_in_coarse_cells,
)
from voxel_ode.rollout import GridRollout
from voxel_ode.rollout_core import Rollout

SHAPE = (33, 11, 10)
LAYERS = [(2, 9), (23, 31)]
MODELS = [
    {"multiscale": 0},
    {"multiscale": 2, "receptive_field_radius": 2},
    {"multiscale": 1, "kernel_mode": "dense", "norm": "running"},
    {"multiscale": 1, "kernel_mode": "separable", "scalar_head": "pooled"},
    {"multiscale": 0, "flux_inputs": False, "predict": "absolute"},
]


def whole(changes: dict) -> tuple[torch.nn.Module, torch.nn.Module, list]:
    """Return (model, fields, two years of the plain rollout) on a grid with two active slabs."""
    model = make_model(**changes).eval()
    fields = slab_fields(SHAPE, LAYERS)
    with torch.no_grad():
        return model, fields, list(Rollout(model, fields).steps(2))


def assert_same(found: list, expected: list) -> None:
    """Compare states and scalars of two rollouts to rounding."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.state, other.state, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.scalars, other.scalars, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_slabs_equal_the_whole_grid(changes: dict):
    """Active slabs, each in its own box, give what the whole grid gives; fewer cells are computed."""
    model, fields, expected = whole(changes)
    active = (fields.masks[:, 0] > 0).any(0).numpy()
    regions = plan_regions(active, model)
    assert len(regions) == 2 and is_partition(regions, active)
    assert sum(r.num_cells for r in regions) < 0.75 * np.prod(SHAPE)
    with torch.no_grad():
        assert_same(list(GridRollout(model, fields, regions).steps(2)), expected)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("changes", [MODELS[1], MODELS[3]], ids=str)
def test_tiles_equal_the_whole_grid(changes: dict, keep: bool):
    """Tiles with a halo of the receptive radius equal the whole grid, with the static stem kept or not."""
    model, fields, expected = whole(changes)
    active = (fields.masks[:, 0] > 0).any(0).numpy()
    regions = plan_regions(active, model, tile=(4, 8, 6))
    assert len(regions) > 6 and is_partition(regions, active)
    with torch.no_grad():
        assert_same(list(GridRollout(model, fields, regions, keep_static=keep).steps(2)), expected)


def test_too_small_a_halo_would_show():
    """With a third of the halo the tiles differ: the equality above is no accident."""
    model, fields, expected = whole({"multiscale": 0, "depth": 2, "receptive_field_radius": 2})
    halo, rest = model.receptive_radius // 3, (slice(0, SHAPE[1]), slice(0, SHAPE[2]))
    regions = [
        Region((slice(0, 27 + halo), *rest), (slice(0, 27), *rest)),
        Region((slice(27 - halo, 33), *rest), (slice(27, 33), *rest)),
    ]
    with torch.no_grad():
        found = next(GridRollout(model, fields, regions).steps(1))
    assert not torch.allclose(found.state, expected[0].state, rtol=1e-5, atol=1e-5)


def test_parts_within_reach_share_a_box():
    """Cells nearer than a kernel reaches lie in one box, others in boxes of their own."""
    active = np.zeros((20, 4, 4), dtype=bool)
    active[2], active[6] = True, True
    assert len(active_boxes(active, 1, 3)) == 2
    assert len(active_boxes(active, 1, 4)) == 1
    assert active_boxes(active, 4, 1) == [(slice(0, 8), slice(0, 4), slice(0, 4))]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_hold_every_active_cell_once(seed: int):
    """Boxes of random masks are disjoint, hold all active cells and begin at coarse cells."""
    rng = numpy_stream(seed, "mask")
    active = rng.random((17, 13, 11)) < 0.03
    boxes = active_boxes(active, 2, 2)
    assert is_partition([Region(b, b) for b in boxes], active)
    assert all(s.start % 2 == 0 for box in boxes for s in box)


def test_budget_cuts_layers_first():
    """A box that does not fit the budget is cut along Z, with whole layers, until its tiles fit."""
    model = make_model(multiscale=0, depth=1)
    active = np.ones((64, 8, 8), dtype=bool)
    each = bytes_a_cell(model)
    budget = each * 8 * 8 * (2 * model.receptive_radius + 10)
    regions = plan_regions(active, model, budget_bytes=budget)
    assert len(regions) > 1 and is_partition(regions, active)
    assert all(r.read[1:] == (slice(0, 8), slice(0, 8)) for r in regions)
    assert all(r.num_cells * each <= budget for r in regions)
    assert len(plan_regions(active, model, budget_bytes=1e12)) == 1
    assert len(plan_regions(active, model, tile="none", budget_bytes=budget)) == 1


def test_norms_over_the_region_refuse_tiles():
    """Group norms see the whole region: no slabs, and a tile size is refused."""
    model = make_model(norm="group1")
    active = np.ones((8, 8, 8), dtype=bool)
    active[3:5] = False
    assert [r.num_cells for r in plan_regions(active, model)] == [512]
    with pytest.raises(UserError, match="--norm group1"):
        plan_regions(active, model, tile=(4, 4, 4))


def test_reach_counts_coarse_cells():
    """The reach is that of the widest kernel, in cells of the coarsest level."""
    assert reach_in_coarse_cells(make_model(multiscale=0, receptive_field_radius=3)) == 3
    assert reach_in_coarse_cells(make_model(multiscale=2, receptive_field_radius=3)) == 1
    assert reach_in_coarse_cells(make_model(multiscale=1, receptive_field_radius=2, kernel_mode="dense")) == 2
