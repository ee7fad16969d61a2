"""Tiny raw simulations written by hand, with every value known: no simulator is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from common.run import BasicOptions
from voxel_ode.config_prep import PrepConfig
from voxel_ode.normalize import Normalizer
from voxel_ode.prep import prep_data

SHAPE = (7, 6, 5)
NUM_STEPS = 4
YEAR_S = 365.25 * 86400.0
SCALARS = (
    "FieldEnergyInjectionRate",
    "FieldEnergyProductionRate",
    "FieldEnergyProductionTotal",
    "FieldWaterInjectionRate",
    "FieldWaterProductionRate",
)


@dataclass
class Truth:
    """What a file says, in internal units.

    Attributes:
        active: bool [Z, Y, X]; `flow` the part that is porous and under pressure.
        grids: name -> [Z, Y, X] of Input, valid on the domain of each.
        states: [T, 2, Z, Y, X], bar and deg C.
        scalars: [T, 5].
        params: [P].
    """

    active: np.ndarray
    flow: np.ndarray
    grids: dict[str, np.ndarray]
    states: np.ndarray
    scalars: np.ndarray
    params: np.ndarray


def truth(seed: int = 0, shape: tuple[int, int, int] = SHAPE, num_steps: int = NUM_STEPS) -> Truth:
    """Return a case: two empty layers, thermal rock on top, one injector and one producer of 40 kg/s."""
    rng = np.random.default_rng(seed)
    z = np.arange(shape[0])[:, None, None] + np.zeros(shape)
    active = (z > 0) & (z < shape[0] - 1)
    active[:, 0, 0] = False
    flow = active & (z > 1)
    is_well = np.zeros(shape)
    rate = np.zeros(shape)
    for y, x, sign in ((1, 1, 1.0), (shape[1] - 2, shape[2] - 2, -1.0)):
        is_well[2:4, y, x] = 1
        rate[2:4, y, x] = sign * 40.0
    perm = [np.where(flow, 10 ** rng.normal(1.5, 0.4, shape), 0.0) for _ in range(3)]
    pressure = np.where(flow, 200 + 0.981 * z + rng.normal(0, 1, shape), 0.0)
    temperature = 80 + 2 * z + rng.normal(0, 1, shape)
    grids = {
        "FaultId": np.where(z == 3, 2, 0),
        "IsWell": is_well,
        "IsActive": active.astype(np.uint8),
        "InjRate": rate,
        **dict(zip(("PermX", "PermY", "PermZ"), perm, strict=True)),
        "Porosity": np.where(flow, rng.uniform(0.05, 0.2, shape), 0.0),
        "Pressure0": pressure,
        "Temperature0": temperature,
    }
    states = np.stack(
        [
            [
                np.where(flow, pressure + 0.3 * (t + 1) * rng.normal(1, 0.2, shape), 0.0),
                temperature - (t + 1) * rng.uniform(0.1, 2, shape),
            ]
            for t in range(num_steps)
        ]
    )
    years = np.arange(1, num_steps + 1)
    powers = 1e7 * (1 + rng.uniform(0, 0.2, (num_steps, 2)))
    scalars = np.column_stack(
        [powers, np.cumsum(powers[:, 1]) * YEAR_S, np.full((num_steps, 2), 40.0) + 0.01 * years[:, None]]
    )
    return Truth(active, flow, grids, states, scalars, rng.uniform(0, 1, 4))


def write_raw(
    path: Path,
    case: Truth,
    *,
    units: str = "si",
    outside: float = -999.0,
    attributes: bool = True,
    extra_missing_steps: int = 0,
    outputs: bool = True,
    change: Callable[[h5py.File], Any] | None = None,
) -> Path:
    """Write a raw file.

    Args:
        path: of the file.
        case: what it says.
        units: "si" or "field".
        outside: what stands off the active cells (and, for rates, off the wells).
        attributes: whether the datasets name their units.
        extra_missing_steps: trailing output steps that hold `outside` everywhere.
        outputs: whether group Output is written.
        change: called with the open file at the end, to damage it.
    """
    si = units == "si"
    offset = 273.15 if si else 0.0
    bar = 1e5 if si else 1.0
    rate = 1.0 if si else 86.4
    path.parent.mkdir(parents=True, exist_ok=True)

    def state(pressure: np.ndarray, temperature: np.ndarray) -> list[np.ndarray]:
        inside = case.active
        return [
            np.where(inside, pressure * bar, outside),
            np.where(inside, temperature + offset, outside),
        ]

    with h5py.File(path, "w") as file:
        grids = dict(case.grids)
        grids["Pressure0"], grids["Temperature0"] = state(grids["Pressure0"], grids["Temperature0"])
        for name in ("PermX", "PermY", "PermZ", "Porosity"):
            grids[name] = np.where(case.active, grids[name], outside)
        grids["InjRate"] = np.where(grids["IsWell"] == 1, grids["InjRate"] * rate, outside)
        for name in ("FaultId", "IsWell"):
            empty = 0 if np.isnan(outside) else int(outside)
            grids[name] = np.where(grids[name] > 0, grids[name], empty).astype(np.int32)
        for name, values in grids.items():
            file[f"Input/{name}"] = values
        file["Input/ParamsScalar"] = case.params
        if outputs:
            steps = [state(*s) for s in case.states]
            steps += [[np.full(case.active.shape, outside)] * 2] * extra_missing_steps
            for k, name in enumerate(("Pressure", "Temperature")):
                file[f"Output/{name}"] = np.stack([s[k] for s in steps])
            for k, name in enumerate(SCALARS):
                scale = 1.0
                if not si:
                    scale = (YEAR_S / 1000, YEAR_S / 1000, 1 / 1000, YEAR_S / 1000, YEAR_S / 1000)[k]
                tail = np.full(extra_missing_steps, outside)
                file[f"Output/{name}"] = np.concatenate([case.scalars[:, k] * scale, tail])
        if attributes:
            names = ("Pa", "K") if si else ("bar", "degC")
            for name, unit in zip(("Pressure0", "Temperature0"), names, strict=True):
                file[f"Input/{name}"].attrs["units"] = unit
        file.attrs["cell_size_m"] = (10.0, 50.0, 50.0)
        if change:
            change(file)
    return path


def write_folder(folder: Path, count: int = 4, **options: Any) -> Path:
    """Write `count` simulations v2.4_0001.h5 ..., each with another seed; return the folder."""
    for i in range(1, count + 1):
        write_raw(folder / f"v2.4_{i:04d}.h5", truth(i), **options)
    return folder


def config(input_root: Path, out_root: Path, **flags: Any) -> PrepConfig:
    """Return a preparation of such a folder: one test, one validation, the rest train, patches of 4^3."""
    small = {"patch_size": (4, 4, 4), "stride": (2, 2, 2), "num_test": 1, "num_val": 1}
    return PrepConfig(input_root=input_root, out_root=out_root, **{**small, **flags})


def prepared(folder: Path, count: int = 4, raw: dict[str, Any] | None = None, **flags: Any) -> Path:
    """Write `count` simulations below `folder`, prepare them, return the prepped root."""
    write_folder(folder / "raw", count, **(raw or {}))
    prep_data(config(folder / "raw", folder / "prepped", **flags), BasicOptions())
    return folder / "prepped"


def physical_scalars(maps: Normalizer, normalized: torch.Tensor) -> torch.Tensor:
    """Return the field rates [..., 5] of normalised ones: W, W, J, kg/s, kg/s."""
    x = normalized * maps.scalar_std.to(normalized) + maps.scalar_mean.to(normalized)
    flags = maps.scalar_log1p.to(normalized) > 0
    return torch.where(flags, torch.expm1(torch.where(flags, x, 0.0)), x)
