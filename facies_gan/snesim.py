"""SNESIM as an outside program: mps_snesim_tree of the package scikit-mps, when it is installed.

The program reads its parameters by the order of lines and returns 0 whatever happens, so everything that it
leaves is checked here. The Python module that comes with it is never imported.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facies_gan.wells import WellSet

PIP_NAME = "scikit-mps"
_TI, _DATA, _PARAMETERS = "ti.dat", "data.dat", "snesim.txt"


class SnesimError(Exception):
    """SNESIM could not be run or returned something wrong; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """How SNESIM searches.

    Attributes:
        multigrids: coarser grids simulated first.
        conditioning_nodes: most neighbours that condition a cell.
        template: cells of the search template on each axis.
        timeout_s: longest run.
    """

    multigrids: int = 3
    conditioning_nodes: int = 25
    template: tuple[int, int, int] = (5, 5, 1)
    timeout_s: float = 900.0


@dataclass(frozen=True)
class SnesimResult:
    """Realisations uint8 [N, H, W] and the CPU seconds that the program took."""

    realisations: np.ndarray
    cpu_seconds: float


def find_program() -> Path:
    """Return the path of the program.

    Raises:
        SnesimError: it is not installed; the message says how to.
    """
    spec = importlib.util.find_spec("mpslib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("mps_snesim_tree", "mps_snesim_tree.exe"):
            path = Path(folder) / "bin" / name
            if path.is_file():
                return path
    raise SnesimError(f"not installed; run: pip install {PIP_NAME}")


def parameter_text(
    count: int, seed: int, shape: tuple[int, int], num_classes: int, settings: Settings | None = None
) -> str:
    """Return the parameter file: a value a line after `#`, in the order in which the program reads them."""
    settings = settings or Settings()
    height, width = shape
    lines = [
        ("realisations", count),
        ("seed", seed),
        ("multigrids", settings.multigrids),
        ("min nodes", 0),
        ("conditioning nodes", settings.conditioning_nodes),
        *(("template", n) for n in settings.template),
        *(("grid", n) for n in (width, height, 1)),
        *(("origin", 0) for _ in range(3)),
        *(("cell", 1) for _ in range(3)),
        ("training image", _TI),
        ("output folder", "."),
        ("shuffle grid path", "2 4"),
        ("shuffle training image path", 1),
        ("hard data", _DATA),
        ("search radius", 1),
        ("categories", ";".join(str(c) for c in range(num_classes))),
        ("soft data", "soft.dat"),
        ("threads", 1),
        ("debug", -1),
        ("mask", "mask.dat"),
    ]
    return "".join(f"{label} # {value}\n" for label, value in lines)


def run_snesim(
    reference: np.ndarray,
    shape: tuple[int, int],
    count: int,
    num_classes: int,
    *,
    wells: WellSet | None = None,
    seed: int = 1,
    settings: Settings | None = None,
    program: Path | None = None,
) -> SnesimResult:
    """Simulate `count` realisations of a grid from one training image of labels [H, W].

    Raises:
        SnesimError: not installed, a failure, a time-out, or files that are missing, short or wrong.
    """
    settings = settings or Settings()
    program = program or find_program()
    with tempfile.TemporaryDirectory(prefix="snesim") as name:
        folder = Path(name)
        if " " in name:  # the program splits its paths at spaces
            raise SnesimError(f"the temporary folder {name} has a space in its path; set TMPDIR to another")
        _write_inputs(folder, reference, shape, count, num_classes, wells, seed, settings)
        before = _child_seconds()
        said = _execute(program, folder, settings.timeout_s)
        seconds = _child_seconds() - before
        grids = [read_output(folder / f"{_TI}_sg_{i}.gslib", shape, num_classes, said) for i in range(count)]
    realisations = np.stack(grids)
    if (
        wells is not None
        and len(wells)
        and not (realisations[:, wells.rows, wells.cols] == wells.facies).all()
    ):
        raise SnesimError("its realisations do not honour the hard data")
    return SnesimResult(realisations, seconds)


def _write_inputs(
    folder: Path,
    reference: np.ndarray,
    shape: tuple[int, int],
    count: int,
    num_classes: int,
    wells: WellSet | None,
    seed: int,
    settings: Settings,
) -> None:
    """Write training image, hard data and parameters; rows count from the bottom, as everywhere in GSLIB."""
    height, width = reference.shape
    values = "\n".join(map(str, reference[::-1].reshape(-1).tolist()))
    (folder / _TI).write_text(f"{width} {height} 1\n1\nfacies\n{values}\n", encoding="ascii")
    if wells is not None and len(wells):
        rows = zip(
            wells.cols.tolist(), (shape[0] - 1 - wells.rows).tolist(), wells.facies.tolist(), strict=True
        )
        body = "".join(f"{x} {y} 0 {facies}\n" for x, y, facies in rows)
        (folder / _DATA).write_text(f"hard data\n4\nx\ny\nz\nfacies\n{body}", encoding="ascii")
    text = parameter_text(count, seed, shape, num_classes, settings)
    (folder / _PARAMETERS).write_text(text, encoding="ascii")


def _execute(program: Path, folder: Path, timeout_s: float) -> str:
    """Run the program in `folder` and return the last line that it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [str(program), _PARAMETERS],
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SnesimError(f"stopped after {timeout_s:g} s") from error
    except OSError as error:
        raise SnesimError(f"{program.name} cannot be started ({error.strerror})") from error
    text = (done.stdout + done.stderr).decode("utf-8", errors="replace").split("\n")
    said = next((line.strip() for line in reversed(text) if line.strip()), "it said nothing")[:160]
    if done.returncode != 0:
        raise SnesimError(f"ended with code {done.returncode}: {said}")
    return said


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_output(path: Path, shape: tuple[int, int], num_classes: int, said: str = "") -> np.ndarray:
    """Return labels uint8 [H, W] of an output grid: three header lines, then the values, x fastest.

    Raises:
        SnesimError: missing, short, or with other codes than 0 .. C-1.
    """
    if not path.is_file():
        raise SnesimError(f"left no {path.name} ({said or 'it said nothing'})")
    words = " ".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[3:]).split()
    expected = shape[0] * shape[1]
    if len(words) != expected:
        raise SnesimError(f"{path.name} holds {len(words)} values, expected {expected} ({said})")
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise SnesimError(f"{path.name} holds something else than numbers ({error})") from error
    if not np.isin(values, np.arange(num_classes)).all():
        raise SnesimError(f"{path.name} holds other codes than 0 to {num_classes - 1}")
    return values.astype(np.uint8).reshape(shape)[::-1].copy()
