"""A network beside its baselines on held-out simulations: one table, one JSON file, figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import device as devices
from common.errors import DataError, UserError
from common.files import require_writable
from common.log import get_logger
from common.report import Row
from common.run import MachineOptions, machine
from voxel_ode import calibration, fno
from voxel_ode.ablation import without_flux
from voxel_ode.baselines import (
    BalancedUpwind,
    Baseline,
    Copy,
    Linear,
    Step,
    Upwind,
    batch_of,
    fit_ridges,
)
from voxel_ode.config_tools import EvaluateConfig
from voxel_ode.dataset import PatchOptions, open_split, read_stats
from voxel_ode.evaluate_report import write_report
from voxel_ode.graphs import say_unused
from voxel_ode.infer import ADVICE
from voxel_ode.intervals import save_calibration
from voxel_ode.loading import Model, load
from voxel_ode.metrics import energy_imbalance, scalar_scores, stored_heat_j
from voxel_ode.normalize import Normalizer
from voxel_ode.predictions import heat_capacity_j_k
from voxel_ode.prepped import SUFFIX, PreppedSim, open_prepped
from voxel_ode.rollout import Forecast
from voxel_ode.schema import SCALAR_NAMES
from voxel_ode.scoring import OneStep, Scores, score_simulation, summarise
from voxel_ode.sections import YEARS


@dataclass
class Ours:
    """The networks' forecast of one simulation, with what it leaves besides the states.

    Attributes:
        scalars: field rates of the predicted years, W, W, J, kg/s, kg/s.
        heat_j: heat in place before the first year and after each.
        clipped: cells clipped to the physical limits, P and T.
    """

    models: Sequence[Model]
    sim: PreppedSim
    forecast: Forecast
    first: int
    scalars: list[np.ndarray] = field(default_factory=list)
    heat_j: list[float] = field(default_factory=list)
    clipped: np.ndarray = field(default_factory=lambda: np.zeros(2, dtype=np.int64))

    def states(self) -> Iterator[np.ndarray]:
        """Yield the predicted states, [2, Z, Y, X], bar and deg C."""
        capacity, active = heat_capacity_j_k(self.sim), self.sim.masks()[0]
        start = self.sim.states(self.first, self.first + 1)[0][1]
        self.heat_j.append(float(stored_heat_j(start, capacity, active)))
        for year in self.forecast.years(self.sim.t_valid - 1 - self.first):
            state = year.states.mean(0)[0].cpu().numpy()
            self.scalars.append(year.scalars.mean(0)[0])
            self.heat_j.append(float(stored_heat_j(state[1], capacity, active)))
            self.clipped = self.clipped + year.clipped[:, 0].max(0)
            yield state

    @torch.no_grad()
    def one_step(self, t: int) -> np.ndarray:
        """Return the prediction of state t + 1 from the true state t, [2, Z, Y, X]."""
        state = torch.from_numpy(self.sim.states(t, t + 1)).to(self.models[0].device)
        masks = torch.from_numpy(self.sim.masks()).to(state.device)
        found = []
        for model, rollout in zip(self.models, self.forecast.rollouts, strict=True):
            with model.precision.autocast():
                following, _, _ = rollout.step(model.normalizer.state_to_normalized(state, masks))
            found.append(model.network.scales.physical(following.float()))
        return torch.stack(found).mean(0)[0].cpu().numpy()

    def energy_error(self) -> float:
        """Return the imbalance of the predicted years, relative to the heat produced."""
        if self.sim.cell_size_m is None:
            return float("nan")
        rates = np.stack(self.scalars)
        return energy_imbalance(np.array(self.heat_j), rates[:, 0], rates[:, 1], self.sim.dt_s)


@dataclass
class Running:
    """A baseline on one simulation."""

    sim: PreppedSim
    first: int
    step: Step
    normalizer: Normalizer
    device: torch.device

    @torch.no_grad()
    def states(self) -> Iterator[np.ndarray]:
        """Yield its states, [2, Z, Y, X], bar and deg C."""
        state = self._normalized(self.first)
        for _ in range(self.first + 1, self.sim.t_valid):
            state = self.step(state)
            yield self._physical(state)

    @torch.no_grad()
    def one_step(self, t: int) -> np.ndarray:
        """Return its state t + 1 from the true state t."""
        return self._physical(self.step(self._normalized(t)))

    def _normalized(self, t: int) -> torch.Tensor:
        masks = torch.from_numpy(self.sim.masks())
        state = torch.from_numpy(self.sim.states(t, t + 1))
        return self.normalizer.state_to_normalized(state, masks).to(self.device)

    def _physical(self, state: torch.Tensor) -> np.ndarray:
        return self.normalizer.state_to_physical(state.cpu())[0].numpy()


def split_files(root: Path, split: str) -> list[PreppedSim]:
    """Return the simulations of a split that have a year to predict.

    Raises:
        DataError: there is no such folder, or nothing in it.
    """
    paths = sorted((root / split).glob(f"*{SUFFIX}"))
    sims = [sim for sim in map(open_prepped, paths) if sim.t_valid > 1]
    if not sims:
        raise DataError(f"{root / split}: no prepped simulations; run prep_data.py with another split")
    return sims


def evaluate(config: EvaluateConfig, options: MachineOptions, out: Path) -> list[Row]:
    """Score the network and its baselines; write evaluation.json, evaluation.md, results.json and figures.

    Raises:
        UserError: the folder holds an evaluation and may not be overwritten.
        DataError: data or checkpoint cannot be used, or do not belong together.
        DivergedError: a forecast became infinite or NaN.
    """
    root = config.prepped_root or Path()
    with machine(options) as device, devices.explain_out_of_memory(ADVICE):
        say_unused(config.cuda_graph, device)
        models = [load(path, device, precision=options.precision) for path in config.ckpt_path]
        _require_same_data(models, root)
        sims = split_files(root, config.split)[: config.max_sims or None]
        for sim in sims:
            for model in models:
                model.require_fit(sim)
        if (out / "evaluation.json").exists() and not options.overwrite:
            raise UserError(
                f"{out}: holds an evaluation; add --overwrite to replace it or choose another --out"
            )
        get_logger().info(
            f"{len(sims)} {config.split} simulations, {len(models)} network(s) of "
            f"{models[0].num_weights:,} weights, beside {', '.join(config.compared)}"
        )
        networks = make_networks(config, models)
        val = split_files(root, "val") if config.calibrate else []
        if options.dry_run:
            return []
        require_writable(out)
        named = make_baselines(config, models[0], sims, options.seed)
        result = run_methods(config, networks, sims, named)
        if config.calibrate:
            result["calibration"] = _calibrate(config, models, sims, val, out)
        return write_report(result, config, models, sims, out, options)


def _require_same_data(models: Sequence[Model], root: Path) -> None:
    normalizer = Normalizer.from_stats(read_stats(root / "stats.json"), root / "stats.json")
    for model in models:
        other = model.normalizer.difference(normalizer)
        if other:
            get_logger().warning(
                f"warning: {root / 'stats.json'} differs in {other} from what {model.path} was trained with; "
                "the network is scored on data of another study"
            )


def make_baselines(
    config: EvaluateConfig, model: Model, sims: Sequence[PreppedSim], seed: int
) -> dict[str, Baseline]:
    """Return the baselines that were asked for, fitted on the training split where they learn."""
    root, wanted = config.prepped_root or Path(), config.compared
    made: dict[str, Baseline] = {}
    if "copy" in wanted:
        made["copy"] = Copy()
    if {"ridge1", "ridge3"} & set(wanted):
        ridges = fit_ridges(split_files(root, "train"), model.normalizer, seed=seed)
        made |= {name: ridge for name, ridge in ridges.items() if name in wanted}
    if "linear" in wanted:
        if config.init == "initial":
            get_logger().info("baseline linear: left out, it needs a year before the first state")
        else:
            made["linear"] = Linear()
    if "upwind" in wanted:
        if any(sim.cell_size_m is None for sim in sims):
            get_logger().info("baseline upwind: left out, a file does not say how large its cells are")
        else:
            made["upwind"] = Upwind()
            if config.pressure_sweeps:
                made["upwind balanced"] = BalancedUpwind(config.pressure_sweeps)
    if "fno" in wanted:
        made |= _make_fno(config, model, seed)
    return made


def _make_fno(config: EvaluateConfig, model: Model, seed: int) -> dict[str, Baseline]:
    """Return the trained Fourier operator; {} with one line when its library or its time is missing."""
    if config.fno_minutes == 0:
        get_logger().info("baseline fno: left out, it needs training time; add --fno_minutes 2")
        return {}
    try:
        network = fno.make_fno(len(model.normalizer.static_channels) + 2)
    except UserError as error:
        get_logger().info(f"baseline fno: left out, {error}")
        return {}
    data = open_split(config.prepped_root or Path(), "train", PatchOptions(seed=seed, cache="auto"))
    operator, steps = fno.train_operator(network, data, model.device, minutes=config.fno_minutes, seed=seed)
    get_logger().info(f"baseline fno: {steps} steps in {config.fno_minutes:g} min")
    return {"fno": operator}


def make_networks(config: EvaluateConfig, models: Sequence[Model]) -> dict[str, list[Model]]:
    """Return the networks that are scored by name: ours, and ours without inputs that --ablate names.

    Raises:
        UserError: a network never had these inputs.
    """
    networks = {"ours": list(models)}
    if "flux" in config.ablate:
        networks["ours without flux"] = [without_flux(model) for model in models]
    return networks


def run_methods(
    config: EvaluateConfig,
    networks: dict[str, list[Model]],
    sims: Sequence[PreppedSim],
    named: dict[str, Baseline],
) -> dict[str, Any]:
    """Return the scores of all methods, and what figures show of the first simulation."""
    first = 0 if config.init == "output0" else -1
    models = networks["ours"]
    scores = {name: Scores() for name in (*networks, *named)}
    shown = [first + k for k in YEARS if first + k < sims[0].t_valid] or [sims[0].t_valid - 1]
    planes: dict[int, dict[str, np.ndarray]] = {}
    ours: list[Ours] = []
    began = time.perf_counter()
    for sim in sims:
        runs: dict[str, Ours | Running] = {
            name: Ours(members, sim, Forecast(members, [sim], config, first), first)
            for name, members in networks.items()
        }
        batch = batch_of(sim, first, models[0].normalizer, models[0].device)
        for name, baseline in named.items():
            step = baseline.start(batch, models[0].normalizer)
            runs[name] = Running(sim, first, step, models[0].normalizer, models[0].device)
        states = {name: run.states() for name, run in runs.items()}
        singles: dict[str, OneStep] = {name: run.one_step for name, run in runs.items()}
        found = score_simulation(sim, first, states, singles, scores, shown if sim is sims[0] else ())
        planes = planes or found
        main = runs["ours"]
        assert isinstance(main, Ours)
        ours.append(main)
        get_logger().info(_line(sim, scores))
    std = models[0].normalizer.grid_std.tolist()
    methods = {name: summarise(s, sims, first, std, per_well=config.per_well) for name, s in scores.items()}
    return {
        "methods": methods,
        "scalars": _scalar_table(ours, models[0].normalizer),
        "energy_balance_error": [run.energy_error() for run in ours],
        "clipped_cells": [run.clipped.tolist() for run in ours],
        "seconds": time.perf_counter() - began,
        "shown": {
            "planes": planes,
            "scores": scores,
            "scalars": np.stack(ours[0].scalars),
            "first": first,
        },
    }


def _line(sim: PreppedSim, scores: dict[str, Scores]) -> str:
    """Return how the methods did on the last simulation, in one line."""
    parts = []
    for name, found in scores.items():
        last = found.rollouts[-1]
        p, t = (float(np.sqrt(np.mean(last[f"rmse_{c}"] ** 2))) for c in "PT")
        parts.append(f"{name} {p:.3g}/{t:.3g}")
    return f"{sim.name}: RMSE P bar / T deg C: {', '.join(parts)}"


def _scalar_table(ours: Sequence[Ours], normalizer: Normalizer) -> dict[str, dict[str, float]]:
    """Return mse (normalised), acc5 and relative error of each field rate over all predicted years."""
    found = np.concatenate([np.stack(run.scalars) for run in ours])
    truth = np.concatenate([run.sim.scalars[run.first + 1 : run.sim.t_valid] for run in ours])
    pair = [normalizer.scalars_to_normalized(torch.from_numpy(x)).numpy() for x in (found, truth)]
    return {
        name: scalar_scores(found[:, i], truth[:, i], pair[0][:, i] - pair[1][:, i])
        for i, name in enumerate(SCALAR_NAMES)
    }


def _calibrate(
    config: EvaluateConfig,
    models: Sequence[Model],
    sims: Sequence[PreppedSim],
    val: Sequence[PreppedSim],
    out: Path,
) -> dict[str, Any]:
    """Fit intervals on validation simulations, write calibration.json, return what they cover on `sims`."""
    found = calibration.fit(models, val, config, config.init)
    save_calibration(out / "calibration.json", found)
    covered = calibration.coverage(models, sims, config, found)
    get_logger().info(
        f"{out / 'calibration.json'}: intervals of nominal {found.nominal:.0%} cover P {covered['P']:.1%}, "
        f"T {covered['T']:.1%} of the {config.split} cells"
    )
    return {"nominal": found.nominal, "coverage": covered}
