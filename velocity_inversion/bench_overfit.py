"""Whether the networks can learn a few samples by heart: what fails here cannot be mended by more data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import device as devices
from common.device import resolve_precision
from common.files import write_json
from common.guard import Guard
from common.log import get_logger
from common.report import Row, save_rows
from common.run import MachineOptions, describe_run, machine
from velocity_inversion.config import TrainConfig, bench
from velocity_inversion.dataset import ShotDataset, collate
from velocity_inversion.geometry import Survey, openfwi_survey
from velocity_inversion.member import MemberTask, Statistics, fit_statistics, preprocessing_of, steps_within
from velocity_inversion.simulate import default_simulation, simulate, to_survey_rate
from velocity_inversion.sources import Source
from velocity_inversion.synthetic import family_of, make_section

SAMPLES = 8
BUDGET_CPU_S = 300.0
FAMILIES = ("layered", "curved")


class MadeSource(Source):
    """Sections of the generator and their gathers, in memory.

    Args:
        survey: acquisition.
        count: samples.
        seed: of the sections.
    """

    def __init__(self, survey: Survey, count: int, seed: int = 0) -> None:
        self.survey, self.has_truth = survey, True
        shape, bounds = survey.model_shape_zx, survey.v_bounds_km_s
        made = [
            make_section(shape, family_of(FAMILIES, i), seed, "bench overfit", i, bounds)
            for i in range(count)
        ]
        self.ids, self.families = [f"s{i}" for i in range(count)], [section.family for section in made]
        self.sections = np.stack([section.vp for section in made])
        simulation = default_simulation(survey)
        with torch.no_grad():
            traces = simulate(torch.from_numpy(self.sections), simulation).numpy()
        self._gathers = to_survey_rate(traces, simulation).astype(np.float32)

    def read_gathers(self, index: int, *, training: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return one sample; all traces are live."""
        return self._gathers[index], np.ones((self.survey.num_shots, self.survey.num_receivers), dtype=bool)

    def velocity(self, index: int) -> np.ndarray:
        """Return its section [Z, X], km/s."""
        return self.sections[index]

    def gather_files(self) -> list[Path]:
        """Return no files."""
        return []


def networks() -> dict[str, TrainConfig]:
    """Return what is trained: the default network, which is the demo's too, and InversionNet."""
    plain = replace(bench(), augment=False)
    return {"ours": plain, "InversionNet": replace(plain, model="inversionnet")}


def bench_overfit(
    options: MachineOptions,
    out: Path,
    configs: Mapping[str, TrainConfig] | None = None,
    *,
    budget_cpu_s: float = BUDGET_CPU_S,
    samples: int = SAMPLES,
    survey: Survey | None = None,
) -> dict[str, Any]:
    """Train each network on the same few samples without augmentation.

    Writes bench_overfit.json, which it returns, and results.json.

    Args:
        options: of the machine.
        out: folder of the file.
        configs: name -> network; none = `networks()`.
        budget_cpu_s: of each training.
        samples: how many, all of them in every step.
        survey: acquisition; none = OpenFWI's.
    """
    survey = survey or openfwi_survey()
    with machine(options) as device:
        source = MadeSource(survey, samples, options.seed)
        mean = 1000 * float(np.abs(source.sections - source.sections.mean(0)).mean())
        found: dict[str, Any] = {"mean section": {"mae": mean}}
        for name, config in (configs or networks()).items():
            dataset = ShotDataset(source, preprocessing_of(config), training=True)
            found[name] = _learnt(
                config, dataset, fit_statistics(dataset, survey), budget_cpu_s, options, device
            )
            found[name]["mae_over_mean"] = found[name]["mae"] / mean
            get_logger().info(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in found[name].items()))
    result = {"run": describe_run("velocity_inversion", options.seed), "samples": samples, "methods": found}
    write_json(out / "bench_overfit.json", result)
    save_rows(out / "results.json", [_row({name: m["mae"] for name, m in found.items()}, samples)])
    return result


def _row(mae: dict[str, float], samples: int) -> Row:
    rivals = {name: value for name, value in mae.items() if name != "ours"}
    measure = f"velocity MAE on {samples} training samples"
    return Row("velocity_inversion", measure, "m/s", "lower", mae.get("ours"), rivals)


def _learnt(
    config: TrainConfig,
    dataset: ShotDataset,
    statistics: Statistics,
    budget_cpu_s: float,
    options: MachineOptions,
    device: torch.device,
) -> dict[str, float]:
    """Train one network; return its errors on what it was trained on, its steps and CPU seconds."""
    guard, precision = Guard(device), resolve_precision(options.precision, device)
    batch = devices.move(collate([dataset[i] for i in range(len(dataset))]), device)

    def make(total: int) -> MemberTask:
        devices.seed_global(options.seed)
        return MemberTask(config, dataset.source.survey, statistics, dataset, guard, precision, total, 1)

    def batches(first: int, stop: int) -> Iterable[Any]:
        return [batch] * (stop - first)

    total = steps_within(lambda: make(1000), batches, budget_cpu_s)
    task, began = make(total), time.process_time()
    for step in range(total):
        task.step(batch, step)
    scores = {name.removeprefix("valid_"): value for name, value in task.evaluate().items()}
    return {**scores, "steps": float(total), "cpu_s": time.process_time() - began}
