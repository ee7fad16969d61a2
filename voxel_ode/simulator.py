"""Single-phase water and heat in a porous medium, conservative finite volumes, implicit in time.

Pressure p, from the mass of water with small compressibility, on flow cells:

    V phi0 ct (p' - p) / dt + sum_f F = q / rho0,   F_ij = T_ij lam_f (p_i - p_j + rho_m g (z_j - z_i))

T_ij is the harmonic face transmissibility, lam_f = 2 / (mu_i + mu_j) at the old temperature. The volume of
water a cell holds then follows from the very flows, phi' = phi + dt / V (q / rho0 - div F), so that heat is
carried by exactly the water that moves. Temperature T, first-order upwind, on active cells:

    V ([(phi C + (1 - phi0) Cr) T]' - [..]) / dt + sum_f (C F+ T_i - C F- T_j) + sum_f lam_r A/h (T_i - T_j)
        = (q+ C T_inj - q- C T') / rho0

Flows F+ leave towards j, F- come from j. The pressure is solved by conjugate gradients with
smoothed-aggregation multigrid (Bell, Olson and Schroder 2022, PyAMG), the temperature by BiCGSTAB with
Jacobi; both for the increment of a step, so that a relative tolerance bounds what is lost of mass and energy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import bicgstab, cg
from threadpoolctl import threadpool_limits

from common.errors import DataError
from voxel_ode.case import Case
from voxel_ode.face_matrix import FaceMatrix, Faces
from voxel_ode.units import (
    MILLIDARCY,
    PASCAL_PER_BAR,
    ROCK_VOLUMETRIC_HEAT,
    WATER_DENSITY,
    WATER_VOLUMETRIC_HEAT,
    YEAR,
)
from voxel_ode.water import density_kg_m3, viscosity_pa_s

GRAVITY = 9.81  # m/s2
COMPRESSIBILITY = 1e-9  # 1/Pa, of the water and the pores together
PRESSURE_TOLERANCE = 1e-10
HEAT_TOLERANCE = 1e-8  # of an increment, which is itself about a hundredth of the heat
MULTIGRID_YEARS = 10  # the hierarchy is built anew after so many: mobilities change slowly
MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Simulation:
    """What a run of the simulator tells.

    Attributes:
        pressure_bar, temperature_c: [T, Z, Y, X] after year 1..T; 0 outside flow and active cells.
        scalars: [T, 5] in the order of SCALAR_NAMES: W, W, J, kg/s, kg/s.
        mass_error: [T] water created or lost in a year, relative to the water injected (or in place).
        energy_error: [T] heat created or lost in a year, relative to the heat produced (or in place).
    """

    pressure_bar: np.ndarray
    temperature_c: np.ndarray
    scalars: np.ndarray
    mass_error: np.ndarray
    energy_error: np.ndarray


def harmonic_conductance(
    faces: Faces, values: np.ndarray, cell_size_m: tuple[float, float, float]
) -> np.ndarray:
    """Return A/h * 2 v_i v_j / (v_i + v_j) of each face, [F].

    Args:
        faces: of the cells.
        values: [3, N] conductivity of the cells along z, y, x.
        cell_size_m: (dz, dy, dx).
    """
    area_over_width = np.prod(cell_size_m) / np.square(cell_size_m)
    one, other = values[faces.axis, faces.first], values[faces.axis, faces.second]
    total = one + other
    mean = np.divide(2.0 * one * other, total, out=np.zeros_like(total), where=total > 0)
    return area_over_width[faces.axis] * mean


class Simulator:
    """The state of a case and the steps that change it.

    Attributes:
        pressure_pa: [flow cells]; temperature_c: [active cells]; water: [flow cells] share of the volume that
        is water now.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        active, flow = case.active, case.flow
        self.volume = case.cell_volume_m3
        self.flow_of_active = flow[active]
        self.porosity0 = case.porosity[flow].astype(np.float64)
        self.water = self.porosity0.copy()
        self.pressure_pa = case.pressure0_bar[flow].astype(np.float64) * PASCAL_PER_BAR
        self.temperature_c = case.temperature0_c[active].astype(np.float64)
        self.source = case.source_kg_s()[flow] / WATER_DENSITY  # m3/s of standard water
        self._set_up_flow(flow)
        self._set_up_heat(active)
        self._hierarchy: Any = None

    def _set_up_flow(self, flow: np.ndarray) -> None:
        self.flow_faces = Faces.of(flow)
        permeability = self.case.permeability_md[::-1, flow] * MILLIDARCY  # along z, y, x
        self.transmissibility = harmonic_conductance(self.flow_faces, permeability, self.case.cell_size_m)
        self.flow_matrix = FaceMatrix(self.flow_faces)
        self.drop_m = np.where(self.flow_faces.axis == 0, self.case.cell_size_m[0], 0.0)  # z_j - z_i

    def _set_up_heat(self, active: np.ndarray) -> None:
        self.heat_faces = Faces.of(active)
        conductivity = np.full((3, self.heat_faces.num_cells), self.case.rock_conductivity_w_mk)
        self.conductance = harmonic_conductance(self.heat_faces, conductivity, self.case.cell_size_m)
        self.heat_matrix = FaceMatrix(self.heat_faces)
        wet = self.flow_of_active
        self.carries_water = wet[self.heat_faces.first] & wet[self.heat_faces.second]
        rock = np.ones(self.heat_faces.num_cells)
        rock[wet] -= self.porosity0
        self.rock_heat = self.volume * rock * ROCK_VOLUMETRIC_HEAT  # J/K of each active cell

    def heat_capacity(self) -> np.ndarray:
        """Return the heat that warms each active cell by one degree, J/K."""
        capacity = self.rock_heat.copy()
        capacity[self.flow_of_active] += self.volume * WATER_VOLUMETRIC_HEAT * self.water
        return capacity

    def flow_step(self, dt_s: float) -> np.ndarray:
        """Move the pressure on by `dt_s` and return the flows through the flow faces, m3/s [F]."""
        faces = self.flow_faces
        if not faces.num_cells:
            return np.zeros(0)
        mobility, weight = self._mobility()
        flow = mobility * (faces.difference(self.pressure_pa) + weight)
        rhs = self.source - faces.divergence(flow)
        matrix = self._pressure_matrix(mobility, dt_s)
        increment = self._solve_pressure(matrix, rhs)
        self.pressure_pa += increment
        flow += mobility * faces.difference(increment)
        self.water += dt_s / self.volume * (self.source - faces.divergence(flow))
        return flow

    def _mobility(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (m3/s/Pa, weight of the water between the cells' centres in Pa) of each flow face, [F]."""
        faces, temperature = self.flow_faces, self.temperature_c[self.flow_of_active]
        mu, rho = viscosity_pa_s(temperature), density_kg_m3(temperature)
        mobility = self.transmissibility * 2.0 / (mu[faces.first] + mu[faces.second])
        return mobility, 0.5 * (rho[faces.first] + rho[faces.second]) * GRAVITY * self.drop_m

    def _pressure_matrix(self, mobility: np.ndarray, dt_s: float) -> sparse.csr_matrix:
        faces = self.flow_faces
        storage = self.volume * self.porosity0 * COMPRESSIBILITY / dt_s
        both = np.bincount(faces.first, mobility, faces.num_cells)
        both += np.bincount(faces.second, mobility, faces.num_cells)
        return self.flow_matrix.fill(-mobility, -mobility, storage + both)

    def pressure_response(self, sources: np.ndarray, dt_s: float) -> np.ndarray:
        """Return how much `sources` beside the wells change the pressure after `dt_s`, Pa [K, flow cells].

        Mobilities are those of the present temperature, so the response is linear in the sources.

        Args:
            sources: m3/s of standard water that each flow cell receives, [K, flow cells].
            dt_s: time that they last.
        """
        matrix = self._pressure_matrix(self._mobility()[0], dt_s)
        return np.stack([self._solve_pressure(matrix, source) for source in sources])

    def _solve_pressure(self, matrix: sparse.csr_matrix, rhs: np.ndarray) -> np.ndarray:
        _require_solved("pressure", 0, rhs)
        scale = max(float(np.linalg.norm(rhs)), float(np.linalg.norm(self.source)))
        if scale == 0:
            return np.zeros_like(rhs)
        if self._hierarchy is None:
            self._hierarchy = _multigrid(matrix)
        precondition = self._hierarchy.aspreconditioner()
        options = {"rtol": 0.0, "atol": PRESSURE_TOLERANCE * scale, "maxiter": MAX_ITERATIONS}
        solution, failed = cg(matrix, rhs, M=precondition, **options)
        _require_solved("pressure", failed, solution)
        return solution

    def refresh_multigrid(self) -> None:
        """Build the multigrid hierarchy anew at the next step."""
        self._hierarchy = None

    def heat_step(self, dt_s: float, flow: np.ndarray, capacity_before: np.ndarray) -> float:
        """Move the temperature on by `dt_s` with flows [F]; return the heat produced, W at the new state."""
        faces, n = self.heat_faces, self.heat_faces.num_cells
        carried = np.zeros(len(faces.first))
        carried[self.carries_water] = WATER_VOLUMETRIC_HEAT * flow
        leaving, coming = np.maximum(carried, 0.0), np.maximum(-carried, 0.0)
        source = np.zeros(n)
        source[self.flow_of_active] = WATER_VOLUMETRIC_HEAT * self.source
        taken = np.maximum(-source, 0.0)
        upper, lower = -(coming + self.conductance), -(leaving + self.conductance)
        diagonal = self.heat_capacity() / dt_s + taken
        diagonal -= np.bincount(faces.first, lower, n) + np.bincount(faces.second, upper, n)
        matrix = self.heat_matrix.fill(upper, lower, diagonal)
        given = np.maximum(source, 0.0) * self.case.injection_temperature_c
        rhs = capacity_before / dt_s * self.temperature_c + given - matrix @ self.temperature_c
        jacobi = sparse.diags_array(1.0 / diagonal)
        increment, failed = bicgstab(matrix, rhs, rtol=HEAT_TOLERANCE, M=jacobi, maxiter=MAX_ITERATIONS)
        _require_solved("temperature", failed, increment)
        self.temperature_c += increment
        return float(taken @ self.temperature_c)

    def step(self, dt_s: float) -> float:
        """Move pressure, water and temperature on by `dt_s`; return the heat produced, W."""
        before = self.heat_capacity()
        return self.heat_step(dt_s, self.flow_step(dt_s), before)

    def heat_in_place(self) -> float:
        """Return the heat in all cells, J, counted from 0 deg C."""
        return float(self.heat_capacity() @ self.temperature_c)

    def water_in_place(self) -> float:
        """Return the volume that water takes by its pressure, m3: pores widen by phi0 ct per pascal."""
        start = self.case.pressure0_bar[self.case.flow] * PASCAL_PER_BAR
        wider = COMPRESSIBILITY * (self.pressure_pa - start)
        return float(self.volume * (self.porosity0 * (1.0 + wider)).sum())


def _multigrid(matrix: sparse.csr_matrix) -> Any:
    """Return the hierarchy of a symmetric matrix; local weights, for the default draws random numbers."""
    import pyamg

    smoother = ("gauss_seidel", {"sweep": "symmetric"})
    return pyamg.smoothed_aggregation_solver(
        matrix,
        smooth=("jacobi", {"omega": 4.0 / 3.0, "weighting": "local"}),
        presmoother=smoother,
        postsmoother=smoother,
        improve_candidates=None,
        max_coarse=200,
    )


def _require_solved(what: str, failed: int, solution: np.ndarray) -> None:
    if failed or not np.isfinite(solution).all():
        raise DataError(
            f"simulator: the {what} equation was not solved in {MAX_ITERATIONS} iterations; "
            "check permeability and rates of the case, or raise --substeps"
        )


def simulate(case: Case, num_steps: int = 30, substeps: int = 2, history_years: int = 0) -> Simulation:
    """Run a case for `num_steps` years.

    Args:
        case: the reservoir with its wells.
        num_steps: yearly states to return.
        substeps: implicit steps a year.
        history_years: years run before the initial state; see `after_history` for that state.

    Raises:
        DataError: an equation could not be solved.
    """
    if history_years:
        case = after_history(case, history_years, substeps)
    with threadpool_limits(limits=1):  # sums of threads would depend on their number
        return _run(Simulator(case), num_steps, substeps)


def after_history(case: Case, years: int, substeps: int = 2) -> Case:
    """Return the case that starts where `case` is after `years`."""
    if years == 0:
        return case
    run = simulate(case, years, substeps)
    return replace(case, pressure0_bar=run.pressure_bar[-1], temperature0_c=run.temperature_c[-1])


def _run(simulator: Simulator, num_steps: int, substeps: int) -> Simulation:
    case, dt_s = simulator.case, YEAR / substeps
    pressure, temperature = (np.zeros((num_steps, *case.shape)) for _ in range(2))
    scalars, mass_error, energy_error = np.zeros((num_steps, 5)), np.zeros(num_steps), np.zeros(num_steps)
    injected, produced = (float(np.maximum(sign * simulator.source, 0).sum()) for sign in (1, -1))  # m3/s
    heat_in = injected * WATER_VOLUMETRIC_HEAT * case.injection_temperature_c
    total = 0.0
    for year in range(num_steps):
        if year % MULTIGRID_YEARS == 0:
            simulator.refresh_multigrid()
        heat, water = simulator.heat_in_place(), simulator.water_in_place()
        heat_out = float(np.mean([simulator.step(dt_s) for _ in range(substeps)]))
        total += heat_out * YEAR
        values = (heat_in, heat_out, total, injected * WATER_DENSITY, produced * WATER_DENSITY)
        scalars[year] = values
        pressure[year][case.flow] = simulator.pressure_pa / PASCAL_PER_BAR
        temperature[year][case.active] = simulator.temperature_c
        gained = simulator.heat_in_place() - heat - (heat_in - heat_out) * YEAR
        energy_error[year] = gained / (heat_out * YEAR or heat)
        gained = simulator.water_in_place() - water - (injected - produced) * YEAR
        mass_error[year] = gained / (injected * YEAR or water or 1.0)
    return Simulation(pressure, temperature, scalars, mass_error, energy_error)
