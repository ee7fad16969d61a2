"""Run every benchmark one after another and write benchmarks/results/*.json and one table of all.

What fails is said and the others go on; the exit code is then not 0. Ctrl-C stops all. What one prints is in
results/bench/<name>.log. `--resume` leaves out what an earlier call finished, `--only fault_seg loop` runs
those whose names begin so, `--long` adds what takes longest. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from common.cli import main, option, parse
from common.demo import ROOT
from common.errors import EXIT_BUG, EXIT_LEFT_OUT, UserError
from common.files import read_json, require_writable, write_json

CUBES = "results/bench/cubes"  # of the trainings of fault_seg
CUBES_COMMAND = f"scripts/fault_seg/make_data.py --preset standard --out {CUBES} --overwrite"
SHORT_WORDS = str.maketrans({" ": "_", ",": None})


@dataclass(frozen=True)
class Job:
    """One benchmark.

    Attributes:
        name: package first.
        command: below the project's folder, without `python`.
        minutes: that it takes, about, on one core.
        cubes: it trains on the cubes of `CUBES_COMMAND`.
        long: only with --long.
    """

    name: str
    command: str
    minutes: float
    cubes: bool = False
    long: bool = False

    @property
    def file(self) -> str:
        """Name of its log, without ending."""
        return self.name.translate(SHORT_WORDS)


def _fault_seg(case: str, minutes: float, flags: str) -> Job:
    command = f"benchmarks/fault_seg.py --case {case} --data {CUBES} {flags}"
    return Job(f"fault_seg, {case}", command, minutes, cubes=True)


def _simulgen(case: str, minutes: float, flags: str = "", *, long: bool = False) -> Job:
    told = flags.replace("--seed", "seed")
    name = f"simulgen_vae, {case}" + (f", {told}" if told else "")
    command = f"benchmarks/simulgen_vae.py --case {case} --threads 1 {flags}"
    return Job(name, command, minutes, long=long)


def _quality(case: str, minutes: float, *, long: bool = False) -> Job:
    package, _, part = case.partition(", ")
    name = f"{package}, quality" + (f", {part}" if part else "")
    return Job(name, f"benchmarks/quality.py --case {shlex.quote(case)}", minutes, long=long)


JOBS = (
    Job("loop", "benchmarks/loop.py", 0.5),
    Job("facies_gan, cost", "benchmarks/facies_gan.py --bench_train", 6),
    _quality("facies_gan, sections", 12),
    _quality("facies_gan, seismic", 14),
    _quality("facies_gan, Strebelle", 12),
    Job("fault_seg, cost", "benchmarks/fault_seg.py --case cost", 10),
    Job("fault_seg, streaming", "benchmarks/fault_seg.py --case streaming", 9),
    _fault_seg("short", 16, "--networks hr"),
    _fault_seg("curves", 16, "--checkpoints 3 --networks hr hr_faults unet"),
    _fault_seg("mtl", 11, "--networks hr mtl"),
    _quality("fault_seg", 9),
    *(_quality(f"fault_seg, {preset}", 3) for preset in ("wu2019", "rgm", "mixed")),
    _quality("fault_seg, refinement", 19),
    Job("velocity_inversion, cost", "benchmarks/velocity_inversion.py", 3),
    _quality("velocity_inversion, equal time", 28),
    _quality("velocity_inversion, equal time, seed 1", 28, long=True),
    _quality("velocity_inversion, two members", 32),
    _quality("velocity_inversion, refinement", 5),
    _quality("velocity_inversion, eight samples", 11),
    _simulgen("wave", 12),
    _simulgen("advdiff", 3),
    _simulgen("burgers", 3),
    _simulgen("scale", 1),
    _simulgen("speed", 0.6),
    _simulgen("gp", 0.6),
    Job("simulgen_vae, infer", "benchmarks/simulgen_vae_infer.py", 1),
    Job("simulgen_vae, peer", "benchmarks/simulgen_vae_peer.py", 5),
    Job("simulgen_vae, scaling", "benchmarks/simulgen_vae_scaling.py", 10),
    _simulgen("wave", 12, "--seed 1", long=True),
    _simulgen("wave", 12, "--seed 2", long=True),
    _simulgen("advdiff", 5, "--seed 1", long=True),
    _simulgen("advdiff", 5, "--seed 2", long=True),
    _simulgen("burgers", 3, "--seed 1", long=True),
    _simulgen("burgers", 3, "--seed 2", long=True),
    _simulgen("full", 53, long=True),
    Job("voxel_ode, make", "benchmarks/voxel_ode_make.py", 0.3),
    Job("voxel_ode, io", "benchmarks/voxel_ode_io.py", 3),
    Job("voxel_ode, rollout", "benchmarks/voxel_ode_rollout.py", 2),
    Job("voxel_ode, step", "benchmarks/voxel_ode_step.py", 9),
    _quality("voxel_ode", 12),
)


@dataclass(frozen=True)
class Config:
    """What is measured."""

    only: tuple[str, ...] = option((), "beginnings of names; none = all")
    long: bool = option(False, "run other seeds and the full size too")
    resume: bool = option(False, "leave out what an earlier call with these logs finished")


@dataclass(frozen=True)
class Options:
    """How it is run."""

    jobs: int = option(1, "benchmarks at a time; more than one disturbs times")
    out: Path = option(Path("results/bench"), "folder of the logs")
    dry_run: bool = option(False, "print the benchmarks with their commands")


def run_job(job: Job, out: Path) -> tuple[int, float]:
    """Run a benchmark, its output into its log; return the exit code and the seconds."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (out / f"{job.file}.log").open("w", encoding="utf-8") as log:
        command = [sys.executable, *shlex.split(job.command)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode, time.perf_counter() - began


def run_all(jobs: Sequence[Job], out: Path, at_once: int, finished: dict[str, float]) -> list[str]:
    """Run benchmarks, tell of each, note in done.json what ended well; return the names of the others.

    Args:
        jobs: to run.
        out: folder of the logs and of done.json.
        at_once: how many run at a time.
        finished: seconds of those that ended well before, by name.
    """
    failed, left = [], sum(job.minutes for job in jobs)
    print(f"{len(jobs)} benchmarks, about {left / at_once:.0f} minutes", flush=True)
    pool = ThreadPoolExecutor(at_once)
    try:
        running = {pool.submit(run_job, job, out): job for job in jobs}
        for number, future in enumerate(as_completed(running), start=1):
            job, (code, seconds) = running[future], future.result()
            left -= job.minutes
            told = f"{number} of {len(jobs)}: {job.name}, {seconds:.0f} s"
            if code == EXIT_LEFT_OUT:
                told += f", left out, see {out / f'{job.file}.log'}"
            elif code:
                failed.append(job.name)
                told += f", FAILED with exit code {code}, see {out / f'{job.file}.log'}"
            else:
                finished[job.name] = round(seconds, 1)
                write_json(out / "done.json", finished)
            print(f"{told}; about {left / at_once:.0f} minutes left", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C none begins; those that run have the signal too
    return failed


def write_table() -> int:
    """Put all stored results into one page; return the exit code."""
    return subprocess.run([sys.executable, "benchmarks/_table.py"], cwd=ROOT, check=False).returncode


def chosen_jobs(config: Config) -> list[Job]:
    """Return the benchmarks that the flags name.

    Raises:
        UserError: a name fits none.
    """
    jobs = [job for job in JOBS if config.long or not job.long or job.name in config.only]
    for word in config.only:
        if not any(job.name.startswith(word) for job in jobs):
            more = "" if config.long else " without --long"
            raise UserError(f"--only {word}: no benchmark begins so{more}; --dry_run lists them")
    return [job for job in jobs if not config.only or job.name.startswith(config.only)]


def earlier(out: Path) -> dict[str, float]:
    """Return the benchmarks that an earlier call finished, with their seconds."""
    path = out / "done.json"
    return read_json(path, "delete it") if path.is_file() else {}


def run(argv: Sequence[str]) -> int:
    """Run the benchmarks; the exit code is not 0 when one of them failed."""
    parsed = parse(argv, Config, Options, description=__doc__)
    jobs, options = chosen_jobs(parsed.config), parsed.run
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: expected 1 or more")
    if options.dry_run:
        first = [Job("cubes of fault_seg", CUBES_COMMAND, 2)] if any(job.cubes for job in jobs) else []
        for job in [*first, *jobs]:
            print(f"{job.name:<44} {job.minutes:>5g} min  python {job.command}")
        return 0
    out = require_writable(options.out).resolve()
    finished = earlier(out)
    jobs = [job for job in jobs if not (parsed.config.resume and job.name in finished)]
    missing = any(job.cubes for job in jobs) and not (ROOT / CUBES / "dataset.json").is_file()
    if missing and run_job(Job("cubes", CUBES_COMMAND, 2), out)[0]:
        raise UserError(f"{out / 'cubes.log'}: the training cubes were not made, see there")
    failed = run_all(jobs, out, options.jobs, finished)
    if write_table():
        failed.append("the table")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return EXIT_BUG
    return 0


if __name__ == "__main__":
    main(run)
