"""The files of a set: names, tables that are read back, a stack that is whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, UserError
from facies_gan.arrays import read_npy
from facies_gan.geometry import GridGeometry
from facies_gan.gslib import GridHeader, read_grid
from facies_gan.output_grid import OutputGrid
from facies_gan.outputs import (
    EarlierSet,
    RealisationWriter,
    StackFile,
    file_name,
    read_csv,
    write_csv,
    write_maps,
    write_npy,
)
from facies_gan.wells import WellSet
from tests.facies_gan.cases_gan import bands, palette

SHAPE = (6, 8)


def grid() -> OutputGrid:
    """Return a small output grid."""
    return OutputGrid(SHAPE, GridGeometry(), GridHeader())


def write_set(folder: Path, count: int = 3, first: int = 0) -> RealisationWriter:
    """Write some realisations with data in one column."""
    labels = bands(SHAPE)
    wells = WellSet.from_columns(labels, [2])
    formats = ("png", "npy", "gslib", "grdecl")
    writer = RealisationWriter(folder, grid(), palette(), formats, wells, first=first, count=count, seed=5)
    for index in range(first, first + count):
        plain = np.where(np.arange(6) < 3, wells.facies, 1 - wells.facies)
        writer.write(index, np.roll(labels, index, axis=1) if index else labels, plain, wells.facies)
    return writer


def test_files_and_rows(tmp_path: Path):
    """Each realisation has a file in each format that says the same; rows hold what was counted."""
    writer = write_set(tmp_path)
    assert writer.stack is not None
    writer.stack.finish()
    for i in range(3):
        labels = read_npy(tmp_path / f"realisations/real_{i:05d}.npy")
        codes = read_grid(tmp_path / f"realisations/real_{i:05d}.gslib").sections(GridGeometry())[0][0]
        assert (codes == labels).all() and (read_npy(tmp_path / "realisations.npy")[i] == labels).all()
    row = writer.rows[0]
    assert row["accuracy_before_injection"] == 0.5 and row["accuracy_after_injection"] == 1
    shares = [row[f"proportion_{name}"] for name in palette().names]
    assert sum(shares) == pytest.approx(1) and (row["seed"], row["index"]) == (5, 0)
    assert (writer.counts.sum(axis=0) == 3).all()


def test_table_is_read_back(tmp_path: Path):
    """What summary.csv says is what was measured, empty cells included; other files are refused."""
    rows = [{"seed": 1, "index": 7, "accuracy_before_injection": None, "proportion_sand": 0.25}]
    write_csv(tmp_path / "summary.csv", rows)
    assert read_csv(tmp_path / "summary.csv") == rows
    (tmp_path / "bad.csv").write_text("seed,index\nx,y\n")
    with pytest.raises(DataError, match="bad.csv: cannot be read"):
        read_csv(tmp_path / "bad.csv")


def test_stack_is_whole_or_absent(tmp_path: Path):
    """An interrupted stack leaves nothing; a finished one holds rows in any order of writing."""
    stack = StackFile(tmp_path / "a.npy", (2, *SHAPE))
    stack.write(1, bands(SHAPE))
    assert not (tmp_path / "a.npy").exists()
    stack.abort()
    assert list(tmp_path.iterdir()) == []
    stack = StackFile(tmp_path / "a.npy", (2, *SHAPE))
    stack.write(1, bands(SHAPE))
    stack.write(0, 1 - bands(SHAPE))
    stack.finish()
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == np.uint8 and (found[1] == bands(SHAPE)).all() and (found[0] != found[1]).all()


def test_maps(tmp_path: Path):
    """Probabilities sum to 1, entropy is that of the counts, the most likely facies has the most counts."""
    counts = np.zeros((2, *SHAPE), dtype=np.int32)
    counts[0], counts[1] = 1, 3
    counts[:, 0, 0] = 4, 0
    entropy = write_maps(tmp_path, grid(), palette(), counts, 4)
    probability = read_npy(tmp_path / "probability.npy")
    assert probability.dtype == np.float32 and (probability.sum(axis=0) == 1).all()
    assert entropy[0, 0] == 0 and entropy[1, 1] == pytest.approx(0.811278, abs=1e-5)
    likely = read_grid(tmp_path / "most_likely.gslib").sections(GridGeometry())[0][0]
    assert likely[0, 0] == 0 and likely.sum() == 47
    names = {p.name for p in tmp_path.glob("probability_*.png")}
    assert names == {f"probability_{file_name(n)}.png" for n in palette().names}


def test_an_earlier_set_goes_on_with_equal_settings_only(tmp_path: Path):
    """A set is extended at its next index, with the settings that it was made with."""
    writer = write_set(tmp_path)
    assert writer.stack is not None
    writer.stack.finish()
    write_csv(tmp_path / "summary.csv", writer.rows)
    write_npy(tmp_path / "probability.npy", (writer.counts / 3).astype(np.float32))
    settings = {"seed": 5}
    earlier = EarlierSet(tmp_path, settings, 3, {"settings": {"seed": 5}})
    assert earlier.has_stack and earlier.indices == [0, 1, 2] and (earlier.counts == writer.counts).all()
    with pytest.raises(UserError, match="use --first_index 3"):
        EarlierSet(tmp_path, settings, 9, {"settings": {"seed": 5}})
    with pytest.raises(UserError, match="seed 6, these have 5"):
        EarlierSet(tmp_path, settings, 3, {"settings": {"seed": 6}})


@pytest.mark.parametrize(
    ("name", "expected"), [("channel sand", "channel_sand"), ("../x", "x"), ("***", "facies")]
)
def test_names_of_facies_are_safe(name: str, expected: str):
    """A facies' name cannot leave the folder."""
    assert file_name(name) == expected
