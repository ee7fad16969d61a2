"""A case of the simulator: a reservoir, its wells and what is fixed for all years, in internal units."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from voxel_ode.wells import Wells


@dataclass(frozen=True)
class Case:
    """What the simulator needs to know.

    Attributes:
        cell_size_m: (dz, dy, dx).
        active: bool [Z, Y, X]: cells that conduct heat.
        permeability_md: [3, Z, Y, X] along x, y, z; 0 on thermal-only rock.
        porosity: [Z, Y, X]; 0 on thermal-only rock.
        pressure0_bar, temperature0_c: [Z, Y, X] at the beginning; pressure counts on flow cells only.
        fault_id: int [Z, Y, X], 0 = none; told to the network, unused by the simulator.
        wells: rates and shares of their cells.
        injection_temperature_c: of all injectors.
        rock_conductivity_w_mk: heat conduction of the rock.
        params: [P] unit-cube parameters that the case was made from.
        param_names: what they are.
    """

    cell_size_m: tuple[float, float, float]
    active: np.ndarray
    permeability_md: np.ndarray
    porosity: np.ndarray
    pressure0_bar: np.ndarray
    temperature0_c: np.ndarray
    fault_id: np.ndarray
    wells: Wells
    injection_temperature_c: float
    rock_conductivity_w_mk: float
    params: np.ndarray
    param_names: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        z, y, x = self.active.shape
        return z, y, x

    @property
    def flow(self) -> np.ndarray:
        """Bool [Z, Y, X]: cells that water moves through."""
        return self.active & (self.porosity > 0)

    @property
    def cell_volume_m3(self) -> float:
        """Volume of a cell."""
        return float(np.prod(self.cell_size_m))

    def source_kg_s(self) -> np.ndarray:
        """Return the water that each cell receives, [Z, Y, X] float64, negative at producers."""
        source = np.zeros(self.shape)
        z, y, x = np.asarray(self.wells.cells).T
        of_well = np.asarray(self.wells.sign) * np.asarray(self.wells.rate_kg_s, dtype=np.float64)
        np.add.at(source, (z, y, x), of_well[self.wells.cell_well] * self.wells.weight)
        return source

    def with_rates(self, rate_kg_s: np.ndarray) -> Case:
        """Return the case with other well rates [W], magnitudes >= 0."""
        return replace(self, wells=replace(self.wells, rate_kg_s=np.asarray(rate_kg_s, dtype=np.float64)))
