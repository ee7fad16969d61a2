"""The true simulator's answer to changed well rates: the energy of the years, as the objective counts it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import DataError
from voxel_ode.case_files import case_of
from voxel_ode.energy import discount_factors, net_power_w, pumping_power_w
from voxel_ode.prepped import PreppedSim
from voxel_ode.schema import SCALAR_NAMES
from voxel_ode.simulator import Simulation, simulate
from voxel_ode.units import YEAR

_INJECTED, _PRODUCED = (SCALAR_NAMES.index(f"FieldEnergy{word}Rate") for word in ("Injection", "Production"))


@dataclass(frozen=True)
class Outcome:
    """What the simulator says of one choice of rates.

    Attributes:
        factors: [W] by which the file's rates were multiplied.
        signed_rate_kg_s: [W] the rates, + injection.
        produced_w, injected_w, pumping_w: [T] year means; pumping from the pressures at the year's end.
        produced_energy_j, net_energy_j: discounted sums over the years.
        simulation: all states, for figures.
    """

    factors: np.ndarray
    signed_rate_kg_s: np.ndarray
    produced_w: np.ndarray
    injected_w: np.ndarray
    pumping_w: np.ndarray
    produced_energy_j: float
    net_energy_j: float
    simulation: Simulation

    def value(self, objective: str) -> float:
        """Return the energy that the objective counts, J."""
        return self.produced_energy_j if objective == "produced_energy" else self.net_energy_j

    @property
    def pressure_range_bar(self) -> tuple[float, float]:
        """Lowest and highest pressure of all flow cells and years."""
        pressure = self.simulation.pressure_bar[:, self.simulation.pressure_bar.any(axis=0)]
        return float(pressure.min()), float(pressure.max())


def verify(
    sim: PreppedSim,
    factors: np.ndarray,
    horizon: int = 29,
    *,
    discount_rate: float = 0.0,
    first_state: int = 0,
    substeps: int = 2,
) -> Outcome:
    """Run the simulator with the file's rates times `factors` and count the energy.

    Args:
        sim: a raw or prepped file of this generator.
        factors: [W], one a well, > 0.
        horizon: years to run.
        discount_rate: by which a later year counts less, 1/year.
        first_state: state the run begins with: -1 = initial, 0 = the first output, as rollouts do.
        substeps: implicit steps a year, those of the file.

    Raises:
        DataError: another simulator made the file, or the simulation fails with these rates.
    """
    factors = np.asarray(factors, dtype=np.float64)
    if factors.shape != (len(sim.wells),) or not (np.isfinite(factors) & (factors >= 0)).all():
        raise DataError(f"{sim.path}: rate factors {factors}, expected {len(sim.wells)} numbers, 0 or more")
    case = case_of(sim, first_state)
    case = case.with_rates(case.wells.rate_kg_s * factors)
    run = simulate(case, horizon, substeps)
    states = zip(run.pressure_bar, run.temperature_c, strict=True)
    features = np.stack([case.wells.features(p, t, case.active, case.flow) for p, t in states])
    produced, injected = run.scalars[:, _PRODUCED], run.scalars[:, _INJECTED]
    pumping = pumping_power_w(case.wells.total_rates_kg_s[0], features[:, 2], features[:, 3])
    weights = discount_factors(horizon, discount_rate) * YEAR
    return Outcome(
        factors=factors,
        signed_rate_kg_s=case.wells.signed_rate_kg_s,
        produced_w=produced,
        injected_w=injected,
        pumping_w=pumping,
        produced_energy_j=float(weights @ produced),
        net_energy_j=float(weights @ net_power_w(produced, injected, pumping)),
        simulation=run,
    )


def reproduction_error_c(sim: PreppedSim, start: Outcome, first_state: int = 0) -> float:
    """Return the RMSE between the file's own temperatures and a run with unchanged rates, deg C.

    It is about 0 when the file was made with the same number of substeps; a larger one says that gains are
    those of another discretisation.
    """
    years = min(len(start.produced_w), sim.t_valid - first_state - 1)
    if years < 1:
        raise DataError(f"{sim.path}: has no state after {first_state} to compare with; use --verify false")
    truth = sim.states(first_state + 1, first_state + 1 + years)[:, 1]
    active = sim.masks()[0] > 0
    error = (start.simulation.temperature_c[:years] - truth)[:, active]
    return float(np.sqrt(np.square(error).mean()))
