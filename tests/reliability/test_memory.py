"""Inputs and outputs larger than the memory budget, and long trainings: what a process holds stays bounded.

Counted is anonymous memory (RssAnon): pages of mapped files belong to the kernel, which takes them back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from common.run import BasicOptions
from facies_gan.outputs import RealisationWriter
from facies_gan.palette import Palette
from facies_gan.wells import WellSet
from simulgen_vae.config_data import PrepDataConfig
from simulgen_vae.prep import prep_data as simulgen_prep
from tests.facies_gan.cases_data import COLORS4
from tests.reliability.five import CASES, Case, make_data, training
from tests.toy_runs import fork, run, wait
from tests.voxel_ode.cases_data import config, truth, write_raw
from velocity_inversion.config_data import PrepConfig
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.prep import prepare
from voxel_ode.prep import prep_data as voxel_prep

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.promise("R22"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc"),
]
MIB = 1 << 20
BUDGET_MIB = 64
NUM_STEPS = 500
DRIFT_MIB = 24


def anonymous_mib(pid: int | str = "self") -> float:
    """Return the anonymous resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def growth_mib(function: Callable[[], Any], said: Path) -> float:
    """Run `function` in a child and return by how much its memory grew at the most, MiB."""

    def child() -> int:
        base, peak, done = anonymous_mib(), 0.0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.005):
                peak = max(peak, anonymous_mib())

        watcher = threading.Thread(target=watch)
        watcher.start()
        function()
        done.set()
        watcher.join()
        said.with_suffix(".json").write_text(json.dumps(max(0.0, peak - base)))
        return 0

    assert run(child, said, 280) == 0, said.read_text()[-3000:]
    return json.loads(said.with_suffix(".json").read_text())


@pytest.mark.promise("R22", package="simulgen_vae")
def test_fields_larger_than_the_budget(tmp_path: Path):
    """prep_data of simulgen_vae streams 320 MiB of fields, basis included, within 1.5 times its budget."""
    rng = np.random.default_rng(0)
    modes = rng.standard_normal((6, 4096)).astype("f4")
    shape = (400, 50, 4096)
    fields = np.lib.format.open_memmap(tmp_path / "u.npy", "w+", np.float32, shape)
    for row in range(len(fields)):
        fields[row] = rng.standard_normal((50, 6)).astype("f4") @ modes
    size = fields.nbytes / MIB
    del fields
    settings = PrepDataConfig(
        data=str(tmp_path / "u.npy"), fit_basis=True, num_modes=6, max_memory=BUDGET_MIB / 1024
    )
    grown = growth_mib(lambda: simulgen_prep(settings, BasicOptions()), tmp_path / "said.txt")
    assert size > 4 * BUDGET_MIB and grown < 1.5 * BUDGET_MIB


@pytest.mark.promise("R22", package="velocity_inversion")
def test_gathers_larger_than_the_budget(tmp_path: Path):
    """prep_data of velocity_inversion checks and decimates a sparse file of 840 MiB sample by sample."""
    survey = openfwi_survey()
    shape = (600, survey.num_shots, survey.num_samples, survey.num_receivers)
    gathers = np.lib.format.open_memmap(tmp_path / "data1.npy", "w+", np.float32, shape)
    gathers[:, :, 1] = np.random.default_rng(0).standard_normal(shape[:2] + shape[3:])
    size = gathers.nbytes / MIB
    del gathers
    (tmp_path / "geometry.json").write_text(json.dumps(survey.to_dict()))
    settings = PrepConfig(data_path=str(tmp_path), cache_dir=tmp_path / "cache")
    grown = growth_mib(lambda: prepare(settings, BasicOptions(), tmp_path / "out"), tmp_path / "said.txt")
    assert size > 8 * BUDGET_MIB and grown < 1.5 * BUDGET_MIB


@pytest.mark.promise("R22", package="voxel_ode")
def test_states_larger_than_the_budget(tmp_path: Path):
    """prep_data of voxel_ode streams the states of a raw file, 300 MiB of them, a few steps at a time."""
    shape, steps = (40, 48, 48), 200

    def lengthen(file: h5py.File) -> None:
        for name in list(file["Output"]):  # type: ignore[call-overload]
            first = np.asarray(file[f"Output/{name}"])
            del file[f"Output/{name}"]
            packed = {"chunks": (1, *first.shape[1:]), "compression": "gzip"} if first.ndim > 1 else {}
            long = file.create_dataset(f"Output/{name}", (steps, *first.shape[1:]), "f8", **packed)
            for step in range(steps):
                long[step] = first[0] - np.where(first[0] > 0, 1e-3 * step, 0.0)

    for number in (1, 2, 3):
        path, num_steps = tmp_path / f"raw/v2.4_{number:04d}.h5", 1 if number == 1 else 3
        change = lengthen if number == 1 else None
        write_raw(path, truth(number, shape, num_steps), change=change)
    settings = config(tmp_path / "raw", tmp_path / "prepped", patch_size=(16, 16, 16), stride=(16, 16, 16))
    grown = growth_mib(lambda: voxel_prep(settings, BasicOptions()), tmp_path / "said.txt")
    size = steps * 2 * np.prod(shape) * 8 / MIB
    assert size > 4 * BUDGET_MIB and grown < 1.5 * BUDGET_MIB


@pytest.mark.promise("R22", package="facies_gan")
def test_realisations_larger_than_the_budget(tmp_path: Path):
    """The writer of facies_gan puts a stack of 128 MiB on the disk, one realisation after another."""
    size = (1024, 1024)
    grid: Any = SimpleNamespace(size=size)
    labels = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.uint8).repeat(128, 0).repeat(128, 1)
    nothing = np.zeros(0, np.uint8)

    def write() -> None:
        wells = WellSet.empty()
        palette = Palette.from_colors(COLORS4)
        writer = RealisationWriter(tmp_path, grid, palette, ("npy",), wells, first=0, count=128, seed=0)
        for index in range(128):
            writer.write(index, labels, nothing, nothing)
            (tmp_path / "realisations" / f"real_{index:05d}.npy").unlink()
        assert writer.stack is not None
        writer.stack.finish()

    grown = growth_mib(write, tmp_path / "said.txt")
    assert (tmp_path / "realisations.npy").stat().st_size >= 2 * BUDGET_MIB * MIB
    assert grown < BUDGET_MIB


LONG = {
    "fault_seg": f"--steps {NUM_STEPS}",
    "voxel_ode": f"--max_steps {NUM_STEPS}",
    "simulgen_vae": "--epochs 250 --max_cpu_s 60",
    "facies_gan": f"--num_iter {NUM_STEPS}",
    "velocity_inversion": f"--num_epochs {NUM_STEPS} --max_steps {NUM_STEPS}",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.package)
def test_flat_over_500_steps(case: Case, tmp_path: Path):
    """After its first fifth a training holds as much as at its end, to a few MiB."""
    folder, said = make_data(case, tmp_path), tmp_path / "said.txt"
    seldom = replace(case, saves="--save_every 100")
    pid = fork(training(seldom, folder, "run", f"{LONG[case.package]} --eval_every 100 --log_every 5"), said)
    found: list[tuple[int, float]] = []
    started = time.monotonic()
    while Path(f"/proc/{pid}/status").exists() and time.monotonic() - started < 600:
        lines = sum(len(p.read_text().splitlines()) for p in folder.rglob("run/**/metrics.jsonl"))
        memory = anonymous_mib(pid)
        if not memory:  # it has ended and waits to be asked
            break
        found.append((lines, memory))
        time.sleep(0.1)
    assert wait(pid, 60) == 0, said.read_text()[-3000:]
    last = found[-1][0]
    early = max(memory for lines, memory in found if last / 10 <= lines <= last / 5)
    late = max(memory for lines, memory in found if lines >= 4 * last / 5)
    assert last >= 90 and late < early + DRIFT_MIB, f"{early:.0f} MiB, then {late:.0f} MiB"
