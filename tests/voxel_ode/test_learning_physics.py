"""On simulated reservoirs: well energy needs no learning, turning is a symmetry, training helps soon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from common.device import resolve_precision
from common.guard import Guard
from common.run import BasicOptions, machine
from tests.voxel_ode.cases_simulator import tiny_case, turned
from tests.voxel_ode.cases_train import options
from voxel_ode.augment import turn
from voxel_ode.case import Case
from voxel_ode.config import demo, smoke
from voxel_ode.config_make import MAKE_DATA_PRESETS
from voxel_ode.config_prep import PrepConfig
from voxel_ode.dataset import PatchDataset, PatchOptions, open_split
from voxel_ode.fields import Fields
from voxel_ode.items import make_item
from voxel_ode.make_data import make_data
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.normalize import Normalizer
from voxel_ode.prep import prep_data
from voxel_ode.prepped import PreppedSim
from voxel_ode.raw_writer import write_raw
from voxel_ode.scalars import physical_rates, with_total
from voxel_ode.schema import SCALAR_NAMES
from voxel_ode.scores import rollout_scores
from voxel_ode.simulator import simulate
from voxel_ode.synthetic import GridConfig, make_case
from voxel_ode.train import VoxelTask, make_phases
from voxel_ode.train_data import open_splits


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepped root of the smallest simulations: two train, one validation, one test."""
    folder = tmp_path_factory.mktemp("smoke")
    make_data(MAKE_DATA_PRESETS["smoke"](), BasicOptions(), folder / "raw", workers=1)
    prep = PrepConfig(folder / "raw", folder / "prepped", (12, 10, 10), num_test=1, num_val=1)
    prep_data(prep, BasicOptions())
    return folder / "prepped"


@pytest.fixture(scope="module")
def data(root: Path) -> PatchDataset:
    """Return its training patches."""
    return open_split(root, "train", PatchOptions())


def test_rates_from_true_fields(tmp_path: Path, data: PatchDataset):
    """True states give the water exactly, produced energy to 1e-3, injected to 1e-2, before any learning."""
    case = make_case(0, 1, GridConfig((32, 24, 24), (10.0, 50.0, 50.0), 3))
    write_raw(tmp_path / "v2.4_0001.h5", case, simulate(case, 8))
    sim = PreppedSim.from_raw(tmp_path / "v2.4_0001.h5")
    model = VoxelAutoRegressor(smoke(), data.normalizer)
    errors = []
    for t in range(sim.t_valid - 1):
        fields = Fields.from_batch(default_collate([make_item(sim, t, 1, data.normalizer)]))
        rates = physical_rates(fields.well_now, fields.well_next, fields.well_rates)
        physical = with_total(rates, fields.previous_total, fields.dt_s)
        with torch.no_grad():
            found = model.scales.physical_scalars(model(fields)[1])
        torch.testing.assert_close(found, physical, rtol=1e-4, atol=0)
        errors.append(np.abs(physical[0].numpy() - sim.scalars[t + 1]) / sim.scalars[t + 1])
    median = dict(zip(SCALAR_NAMES, np.median(errors, axis=0), strict=True))
    assert median["FieldEnergyProductionRate"] < 1e-3 and median["FieldEnergyInjectionRate"] < 1e-2
    assert max(median["FieldWaterInjectionRate"], median["FieldWaterProductionRate"]) < 1e-6


def item_of(path: Path, case: Case, maps: Normalizer) -> dict[str, torch.Tensor]:
    """Simulate a case for two years and return its item as it comes from the file."""
    write_raw(path, case, simulate(case, 2))
    return make_item(PreppedSim.from_raw(path), 0, 1, maps)


@pytest.mark.parametrize("quarters", [1, 2])
def test_simulating_turned_is_turning_simulated(tmp_path: Path, data: PatchDataset, quarters: int):
    """A turned reservoir, simulated, gives the item that augmentation makes of the reservoir as it was."""

    def move(grid: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(grid, quarters, (-2, -1)))

    case = tiny_case()
    plain = item_of(tmp_path / "a_0001.h5", case, data.normalizer)
    other = item_of(tmp_path / "b_0001.h5", turned(case, move, swaps=quarters == 1), data.normalizer)
    made = turn(plain, quarters, data.normalizer)
    assert float((other["states"] - plain["states"]).abs().max()) > 0.1  # the turn is no identity
    for name in ("static", "states", "masks", "rock", "porosity", "initial", "well_source", "scalars"):
        torch.testing.assert_close(made[name], other[name], rtol=1e-4, atol=1e-4, msg=name)


def test_short_training_beats_copying(root: Path):
    """Eighty steps of the demo's recipe on the smallest data beat copying in pressure and temperature."""
    small = {"base_channels": 8, "depth": 1, "receptive_field_radius": 1, "multiscale": 1}
    chosen = replace(demo(), **small, prepped_root=root, max_steps=80, unroll_steps=1, conv_backend="gemm")
    run = options(Path())
    with machine(run) as device, Guard(device) as guard:
        chosen, splits = open_splits(chosen, 0)
        task = VoxelTask(chosen, splits, guard, resolve_precision("fp32", device))
        task.choose_backends((1, *splits.patch_shape), False)
        phase = make_phases(chosen, splits.train, run, device)[0]
        for step, batch in enumerate(phase.batches(0, phase.steps)):
            task.step(batch, step)
        assert splits.test is not None
        found = rollout_scores(task.averaged, splits.test.sims, splits.normalizer, task.update.precision)
    assert found["rollout/rmse_T_C"] < 0.7 * found["rollout/copy_rmse_T_C"], found
    assert found["rollout/rmse_P_bar"] < found["rollout/copy_rmse_P_bar"], found
