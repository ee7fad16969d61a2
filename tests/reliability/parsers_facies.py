"""What facies_gan and common read, for the fuzzing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import demo, report
from common.legacy_pickle import read_pickled_array
from facies_gan.arrays import read_npy, read_npz
from facies_gan.geometry import GridGeometry
from facies_gan.grdecl import read_grdecl, write_grdecl
from facies_gan.gslib import GridHeader, read_grid, write_geoeas, write_grid
from facies_gan.images import read_rgb
from facies_gan.model_files import load
from facies_gan.outputs import read_csv, write_csv
from facies_gan.palette import Palette, read_palette, write_palette
from facies_gan.seismic_files import read_seismic_file
from facies_gan.well_files import read_hard_data, read_mapping
from tests.facies_gan.cases_data import COLORS4, random_labels, write_root
from tests.fixtures.make import unpack
from tests.reliability.fuzz import Parser

LABELS = random_labels()
PALETTE = Palette.from_colors(COLORS4)


def hard_data(path: Path) -> None:
    """Read hard data and put them on a section."""
    read_hard_data(path, LABELS.shape, PALETTE)


def write_points(folder: Path) -> None:
    """Write hard data as a GEO-EAS table."""
    write_geoeas(folder / "w.dat", "wells", ["x", "y", "z", "facies"], np.array([[1, 1, 2, 0], [3, 1, 4, 2]]))


def write_mapping_file(folder: Path) -> None:
    """Write the columns of two wells."""
    arrays = {"columns": np.array([3, 7]), "counts": np.array([16, 16]), "image_names": np.array(["a", "b"])}
    np.savez(folder / "wells_mapping.npz", **arrays)  # type: ignore[arg-type]


def grid(name: str, header: GridHeader) -> Callable[[Path], Any]:
    """Return a function that writes a grid of codes."""
    return lambda folder: write_grid(folder / name, LABELS, GridGeometry(), header)


def seismic(folder: Path) -> None:
    """Write seismic of a section."""
    np.save(folder / "s.npy", np.random.default_rng(0).standard_normal((16, 20)).astype("f4"))


FACIES = (
    Parser("facies_gan", "sgems", "g.sgems", grid("g.sgems", GridHeader("sgems")), read_grid, "text"),
    Parser("facies_gan", "sgems origin", "o.sgems", grid("o.sgems", GridHeader("sgems", has_origin=True)),
           read_grid, "text"),
    Parser("facies_gan", "gslib", "g.gslib", grid("g.gslib", GridHeader("gslib", title="a title")),
           lambda p: read_grid(p, dims=(20, 1, 16)), "text"),
    Parser("facies_gan", "grdecl", "g.grdecl", lambda f: write_grdecl(f / "g.grdecl", LABELS),
           read_grdecl, "text"),
    Parser("facies_gan", "geo-eas", "w.dat", write_points, hard_data, "text"),
    Parser("facies_gan", "csv", "w.csv",
           lambda f: (f / "w.csv").write_text("col,row,facies,well\n3,4,0,A\n5,6,1,B\n"), hard_data, "text"),
    Parser("facies_gan", "points npz", "w.npz",
           lambda f: np.savez(f / "w.npz", rows=np.array([4, 6]), cols=np.array([3, 5]),
                              facies=np.array([0, 1]), well_id=np.array([0, 1])), hard_data, "npz"),
    Parser("facies_gan", "mapping", "wells_mapping.npz", write_mapping_file,
           lambda p: read_mapping(p.parent), "npz"),
    Parser("facies_gan", "palette", "palette.json", lambda f: write_palette(f / "palette.json", PALETTE),
           read_palette, "json"),
    Parser("facies_gan", "png", "facies/a.png", write_root, read_rgb),
    Parser("facies_gan", "seismic", "s.npy", seismic, read_seismic_file, "npy"),
    Parser("facies_gan", "npy", "s.npy", seismic, read_npy, "npy"),
    Parser("facies_gan", "npz", "wells_mapping.npz", write_mapping_file, read_npz, "npz"),
    Parser("facies_gan", "summary", "s.csv",
           lambda f: write_csv(f / "s.csv", [{"index": 0, "seed": 1, "share": 0.25}]), read_csv, "text"),
    Parser("facies_gan", "model", "run/model.pt", lambda f: unpack("facies_gan", f), load, "checkpoint"),
    Parser("facies_gan", "scale", "run/0/generator.pt", lambda f: _scales(f), lambda p: load(p.parents[1]),
           "checkpoint"),
)  # fmt: skip


def _scales(folder: Path) -> None:
    """Unpack a run and leave only the folders of its scales."""
    unpack("facies_gan", folder)
    (folder / "run/model.pt").unlink()


def write_rows(folder: Path) -> None:
    """Write a table of results."""
    rows = [report.Row("fault_seg", "Dice", "-", "higher", 0.5, {"coherence": 0.3}, 10.0, 7, "make demo")]
    report.save_rows(folder / "rows.json", rows)


def write_section(folder: Path) -> None:
    """Write a package's part of the demo's page."""
    pictures = [report.Picture("a.png", "what it shows", "in words")]
    demo.save_section(folder / "section.json", report.Section("p", "title", "question?", pictures))


COMMON = (
    Parser("common", "rows", "rows.json", write_rows, report.load_rows, "json"),
    Parser("common", "section", "section.json", write_section, demo.load_section, "json"),
    Parser("common", "legacy pickle", "a.pickle",
           lambda f: (f / "a.pickle").write_bytes(np.arange(6.0).dumps()), read_pickled_array),
)  # fmt: skip
