"""What a forecast says of simulations unlike those that its network was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.voxel_ode.cases_data import prepared
from tests.voxel_ode.cases_rollout import save_model
from voxel_ode.constraints import range_warnings
from voxel_ode.loading import load
from voxel_ode.prepped import open_simulation
from voxel_ode.schema import STATIC_NAMES


def test_rates_beyond_training_are_told(tmp_path: Path):
    """Wells at rates of the training are no news, whatever stands off the wells; other rates are."""
    root = prepared(tmp_path)
    maps = load(save_model(tmp_path / "model.pt", root)).normalizer
    source = open_simulation(root / "train" / "v2.4_0003.prepped.h5").load()
    known = replace(source, params=maps.param_mean.double().numpy())
    channel, is_well = STATIC_NAMES.index("InjRate"), STATIC_NAMES.index("IsWell")
    assert not any("InjRate" in line for line in range_warnings(known, maps))
    rates = known.arrays["static"][channel]
    on_wells = known.arrays["static"][is_well] > 0.5
    known.arrays["static"][channel] = np.where(on_wells, 1.5 * rates, rates)
    (line,) = range_warnings(known, maps)
    assert "InjRate in 100% of the cells (trained -40..40)" in line
