"""Run the demo of one model or of all, and write results/demo/index.html and results.json."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import demo, report
from common.cli import main, option, parse
from common.errors import EXIT_BUG, DataError, UserError
from common.files import require_writable, write_bytes

# package -> seconds that its demo takes on two idle cores, those of its steps
PACKAGES = {
    "fault_seg": 135,
    "facies_gan": 95,
    "velocity_inversion": 195,
    "simulgen_vae": 125,
    "voxel_ode": 195,
}


@dataclass(frozen=True)
class Config:
    """Which models to show."""

    model: str = option("all", f"all, or one of {', '.join(PACKAGES)}")


@dataclass(frozen=True)
class Options:
    """Where the page goes."""

    out: Path = option(Path("results/demo"), "folder of the page")
    update_readme: bool = option(False, "put the measured table and the picture into README.md")


def run_package(package: str, out: Path, clock: demo.Clock) -> report.Section:
    """Run one package's demo, which tells the time left, and return its section; a failure is told in it."""
    folder = out / package
    script = demo.ROOT / "scripts" / package / "demo.py"
    (folder / "section.json").unlink(missing_ok=True)
    command = [sys.executable, str(script), "--out", str(folder)]
    code = subprocess.run(command, env={**os.environ, **clock.variable}, check=False).returncode
    failure = f"the demo of {package} ended with exit code {code}; run: make demo MODEL={package}"
    if code == 0:
        try:
            return demo.load_section(folder / "section.json")
        except DataError as error:
            failure = str(error)
    return report.Section(package, package, "", failures=[failure])


def run(argv: Sequence[str]) -> int:
    """Run the demos; the exit code is not 0 when one of them failed."""
    parsed = parse(argv, Config, Options, description=__doc__)
    model, out = parsed.config.model, parsed.run.out.resolve()
    if model != "all" and model not in PACKAGES:
        raise UserError(f"--model {model}: expected all or one of {', '.join(PACKAGES)}")
    if parsed.run.update_readme and model != "all":
        raise UserError(
            f"--update_readme with --model {model}: the table is that of all models; add --model all"
        )
    chosen = list(PACKAGES) if model == "all" else [model]
    require_writable(out)
    started = time.perf_counter()
    sections, clock = [], demo.Clock(time.time(), 0.0, sum(PACKAGES[name] for name in chosen))
    for number, package in enumerate(chosen, start=1):
        print(f"== {number} of {len(chosen)}: {package}, {clock.line}", flush=True)
        sections.append(run_package(package, out, clock))
        clock.done += PACKAGES[package]
    rows = [row for section in sections for row in section.rows]
    report.save_rows(out / "results.json", rows)
    seconds = time.perf_counter() - started
    intro = (
        "Every figure below was measured by this run on this machine: data made by the built-in generators, "
        f"a short training, held-out samples, honest baselines. It took {seconds:.0f} s in all."
    )
    page = report.html_page(out / "index.html", "Strata: what the models do", intro, sections)
    print(f"\n{report.markdown_table(rows)}\n{page}\n{out / 'results.json'}\n{seconds:.0f} s in all")
    failed = [section.package for section in sections if section.failures]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return EXIT_BUG
    if parsed.run.update_readme:
        report.update_readme_table(demo.ROOT / "README.md", rows)
        picture = out / "fault_seg/evaluation/figures/gallery_timeslice.png"
        write_bytes(demo.ROOT / "docs/figures/fault_seg_timeslice.png", picture.read_bytes())
    return 0


if __name__ == "__main__":
    main(run)
