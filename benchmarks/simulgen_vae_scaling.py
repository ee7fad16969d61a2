"""How the error falls with the number of runs. Run: python benchmarks/simulgen_vae_scaling.py.

Waves of the built-in generator (64 x 32 cells, 50 frames): the same last runs are the test for every number
of training runs, the first ones train. POD + shared Gaussian process regression, with and without mirrored
rows, beside gp2 and the plain network. docs/figures/simulgen_vae_scaling.png is drawn;
the table and benchmarks/results/simulgen_vae_scaling.json say the same. Times are CPU seconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._table import NoOptions, publish, row  # noqa: E402
from common import figures  # noqa: E402
from common.cli import main, option, parse  # noqa: E402
from common.run import BasicOptions  # noqa: E402
from simulgen_vae import baselines, direct, gp2  # noqa: E402
from simulgen_vae.basis import Basis, fit_basis  # noqa: E402
from simulgen_vae.config_data import MakeDataConfig  # noqa: E402
from simulgen_vae.contest import predict_rows  # noqa: E402
from simulgen_vae.field_data import FieldData  # noqa: E402
from simulgen_vae.field_metric import FieldMetric  # noqa: E402
from simulgen_vae.fields import open_fields  # noqa: E402
from simulgen_vae.make_data import make_data  # noqa: E402
from simulgen_vae.predictor import TrainingSet  # noqa: E402
from simulgen_vae.reduced import reduce_all  # noqa: E402

FIGURE = ROOT / "docs" / "figures" / "simulgen_vae_scaling.png"
MODES = 56  # POD scores of the regressions: as many as the network has latents
MOST = {103: 0.95, 400: 0.75, 1000: 0.65}  # of the shared regression without mirror, by training runs


@dataclass(frozen=True)
class Config:
    """What to measure."""

    smoke: bool = option(False, "tiny sizes, nothing is stored")
    nums: tuple[int, ...] = option((103, 400, 1000), "training runs")
    num_test: int = option(100, "test runs")
    networks: bool = option(True, "the plain networks too (minutes)")


def rows_of(data: FieldData, num_train: int, num_test: int) -> tuple[TrainingSet, TrainingSet]:
    """Return the first rows to train on and the last ones to test on, in the basis of the first."""
    train, test = np.arange(num_train), data.num_samples - num_test + np.arange(num_test)
    basis = fit_basis(data, train, symmetry=data.symmetry)
    assert data.params is not None
    first, last = (
        TrainingSet(
            torch.from_numpy(reduce_all(data, basis, rows)),
            torch.from_numpy(data.params[rows]),
            basis,
            symmetry=data.symmetry,
            grid_shape=data.grid_shape,
        )
        for rows in (train, test)
    )
    return first, last


def left_by(basis: Basis, data: FieldData, row: int) -> float:
    """Return the relative L2 error of encoding and decoding one run."""
    truth = torch.from_numpy(data.trajectory(row))
    return float((basis.decode(basis.encode(truth)) - truth).norm() / truth.norm())


def methods(networks: bool) -> dict[str, Callable[[TrainingSet, TrainingSet], torch.Tensor]]:
    """Return name -> (training rows, test rows) -> predicted coefficients."""

    def regression(train: TrainingSet, test: TrainingSet) -> torch.Tensor:
        fitted = baselines.fit_baseline("gpr_shared", train, MODES)
        assert fitted is not None
        return fitted.predict(test)

    found: dict[str, Any] = {
        "POD-56 + shared GPR": regression,
        "the same, mirrored rows": lambda train, test: regression(train.augmented()[0], test),
        "gp2": lambda train, test: predict_rows(gp2.fit_predictor(train), test),
    }
    if networks:
        found["direct"] = lambda train, test: predict_rows(direct.fit_predictor(train), test)
    return found


def measure(config: Config, folder: Path) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Return the lines, and the errors of each method in the order of the numbers of runs."""
    nums, num_test = ((12, 24), 8) if config.smoke else (config.nums, config.num_test)
    sizes: dict[str, Any] = {"nx": 16, "ny": 8, "frames": 6} if config.smoke else {}
    path = folder / "wave.h5"
    flags = MakeDataConfig("wave", max(nums) + num_test, path=str(path), figures=False, **sizes)
    make_data(flags, BasicOptions())
    data = open_fields(path)
    lines: list[dict[str, Any]] = []
    errors: dict[str, list[float]] = {}
    for num in nums:
        train, test = rows_of(data, num, num_test)
        floor = left_by(train.basis, data, data.num_samples - num_test)
        metric = FieldMetric(train.basis)
        for name, predict in methods(config.networks).items():
            began = time.process_time()
            error = float(metric.relative_l2(predict(train, test), test.c).mean())
            errors.setdefault(name, []).append(error)
            lines.append(row(f"{num} runs: {name}", error, "relative L2"))
            lines.append(row(f"{num} runs: {name}, fit and predict", time.process_time() - began, "CPU s"))
            print(lines[-2]["what"], f"{error:.4f}, {lines[-1]['value']:.1f} CPU s", flush=True)
        lines.append(row(f"{num} runs: left by the basis on one test run", floor, "relative L2"))
        lines.append(ratio_row(num, {name: values[-1] for name, values in errors.items()}, config))
    data.close()
    return lines, errors


def ratio_row(num: int, error: dict[str, float], config: Config) -> dict[str, Any]:
    """Return our best error beside that of the shared regression, with its limit at this number of runs."""
    best = min(value for name, value in error.items() if name in ("gp2", "direct"))
    most = MOST.get(num) if config.networks and not config.smoke else None
    rival = "POD-56 + shared GPR"
    return row(f"{num} runs: best / {rival}", best / error[rival], "ratio", most, baseline=rival)


def draw(path: Path, nums: Sequence[int], errors: dict[str, list[float]]) -> None:
    """Draw error against runs on logarithmic axes."""
    figure, axes = figures.new_figure(panel=(5.0, 3.4))
    ax = axes[0, 0]
    figures.curves(
        ax,
        {name: (nums, values) for name, values in errors.items()},
        x_label="training runs",
        y_label="relative L2 error, 100 unseen runs",
        log_y=True,
    )
    ax.set_xscale("log")
    figures.save(figure, path)


def run(argv: Sequence[str]) -> None:
    """Measure, print, draw, and write benchmarks/results/simulgen_vae_scaling.json."""
    config = parse(argv, Config, NoOptions, description=__doc__).config
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        lines, errors = measure(config, Path(name))
    if not config.smoke:
        publish("simulgen_vae_scaling", lines, began)
        draw(FIGURE, config.nums, errors)


if __name__ == "__main__":
    main(run)
