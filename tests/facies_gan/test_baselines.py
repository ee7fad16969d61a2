"""Truncated Gaussian fields, and SNESIM behind a stub: right, short, missing and failing output."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from facies_gan.baselines import (
    BASELINES,
    STREBELLE_REFERENCE,
    paste,
    reference_column,
    run_baseline,
    simulate,
)
from facies_gan.gaussian import Covariance, fit_covariance, thresholds_of, truncated_variogram
from facies_gan.metrics import indicator_variogram, proportions
from facies_gan.snesim import Settings, SnesimError, find_program, parameter_text, read_output, run_snesim
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import blocky_labels

SHAPE = (5, 7)
WELLS = WellSet.from_cells(np.array([0, 4]), np.array([0, 6]), np.array([1, 0]))

STUB = """#!{python}
import sys
lines = [line.split("#")[1].strip() for line in open(sys.argv[1])]
count, nx, ny, ti = int(lines[0]), int(lines[8]), int(lines[9]), lines[17]
head = open(ti).read().split()
data = [line.split() for line in open(lines[21]).read().splitlines()[6:]]
mode = "{mode}"
if mode == "fails":
    print("segmentation fault"); sys.exit(139)
if mode == "hangs":
    import time; time.sleep(60)
for i in range(count):
    if mode == "missing":
        print("Hard data outside the grid"); continue
    values = [[(x + y + i) % 2 for x in range(nx)] for y in range(ny)]
    for x, y, z, facies in data:
        values[int(y)][int(x)] = 1 - int(facies) if mode == "dishonest" else int(facies)
    if mode == "codes":
        values[2][2] = 9
    if mode == "words":
        values[2][2] = "nan?"
    rows = values[:-1] if mode == "short" else values
    body = "\\n".join(" ".join(map(str, row)) for row in rows)
    open(ti + "_sg_%d.gslib" % i, "w").write("%d %d 1\\n1\\nv\\n" % (nx, ny) + body + "\\n")
"""


def stub(folder: Path, mode: str) -> Path:
    """Return an executable that behaves like the program, in one way or another."""
    path = folder / "mps_snesim_tree"
    path.write_text(STUB.format(python=sys.executable, mode=mode))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_snesim_output_is_turned_round(tmp_path: Path):
    """Values are read row by row from the bottom, one grid row a line; hard data arrive on their cells."""
    image = blocky_labels((12, 15))
    result = run_snesim(image, SHAPE, 3, 2, wells=WELLS, program=stub(tmp_path, "right"))
    assert result.realisations.shape == (3, *SHAPE) and result.realisations.dtype == np.uint8
    assert result.cpu_seconds > 0
    y, x = np.mgrid[:5, :7]
    expected = ((x + (4 - y) + 1) % 2).astype(np.uint8)
    expected[0, 0], expected[4, 6] = 1, 0
    assert (result.realisations[1] == expected).all()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("short", "holds 28 values, expected 35"),
        ("missing", "left no ti.dat_sg_0.gslib .*outside the grid"),
        ("fails", "ended with code 139: segmentation fault"),
        ("codes", "other codes than 0 to 1"),
        ("words", "something else than numbers"),
        ("dishonest", "do not honour the hard data"),
    ],
)
def test_snesim_failures(tmp_path: Path, mode: str, message: str):
    """Whatever the program leaves is checked, its exit code proves nothing."""
    with pytest.raises(SnesimError, match=message):
        run_snesim(blocky_labels((12, 15)), SHAPE, 2, 2, wells=WELLS, program=stub(tmp_path, mode))


def test_snesim_time_out(tmp_path: Path):
    """A program that hangs is stopped."""
    with pytest.raises(SnesimError, match="stopped after 0.5 s"):
        settings = Settings(timeout_s=0.5)
        run_snesim(
            blocky_labels((12, 15)),
            SHAPE,
            1,
            2,
            wells=WELLS,
            settings=settings,
            program=stub(tmp_path, "hangs"),
        )


def test_snesim_parameters():
    """The program reads values by the order of lines."""
    values = [line.split("#")[1].strip() for line in parameter_text(4, 9, (20, 30), 3).splitlines()]
    assert values[:11] == ["4", "9", "3", "0", "25", "5", "5", "1", "30", "20", "1"]
    assert values[11:17] == ["0", "0", "0", "1", "1", "1"]
    assert values[17:] == [
        *("ti.dat", ".", "2 4", "1", "data.dat", "1", "0;1;2", "soft.dat", "1", "-1", "mask.dat")
    ]


def test_header_lines_are_not_values(tmp_path: Path):
    """Three header lines come before the values, whatever they hold."""
    (tmp_path / "o.gslib").write_text("2 2 1\n1\n7 7 7\n0 1\n1 1\n")
    assert read_output(tmp_path / "o.gslib", (2, 2), 2).tolist() == [[1, 1], [0, 1]]


def test_absent_snesim_is_a_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Without the program the column says why and how to install it; one warning."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    column = run_baseline("snesim", blocky_labels((20, 20)), 2, (20, 20), 2)
    assert (
        column.realisations is None and column.note == "not run: not installed; run: pip install scikit-mps"
    )
    assert capsys.readouterr().err.count("warning") == 1


def test_real_snesim():
    """With the real program installed, realisations honour data and have the image's proportions."""
    try:
        find_program()
    except SnesimError as error:
        pytest.skip(str(error))
    image = blocky_labels((40, 40))
    result = run_snesim(image, (40, 40), 2, 2, wells=WELLS)
    assert (result.realisations[:, 0, 0] == 1).all()
    assert abs(result.realisations.mean() - image.mean()) < 0.25


@pytest.mark.parametrize("classes", [2, 3])
def test_truncated_variogram(classes: int):
    """The formula agrees with simulated pairs; at rho 0 facies are independent, at rho 1 equal."""
    shares = np.array([0.5, 0.3, 0.2])[:classes] / np.array([0.5, 0.3, 0.2])[:classes].sum()
    cuts = thresholds_of(shares)
    rng = np.random.default_rng(0)
    for rho in (0.0, 0.4, 0.9):
        a = rng.standard_normal(200_000)
        b = rho * a + np.sqrt(1 - rho**2) * rng.standard_normal(200_000)
        differ = np.mean(np.searchsorted(cuts, a) != np.searchsorted(cuts, b))
        assert truncated_variogram(np.array([rho]), cuts)[0] == pytest.approx(differ, abs=0.006)
    assert truncated_variogram(np.array([0.0]), cuts)[0] == pytest.approx(1 - (shares**2).sum())
    assert truncated_variogram(np.array([1.0]), cuts)[0] < 0.01


def test_covariance_is_recovered():
    """Fitting the variograms of simulated fields gives the covariance that made them."""
    true = Covariance((4.0, 9.0), 1.6)
    fields = simulate(blocky_labels((90, 90)), 2, (150, 150), 6, covariance=true)
    found = fit_covariance(fields, 2, 30)
    assert found.ranges == pytest.approx(true.ranges, rel=0.2) and found.power == pytest.approx(1.6, abs=0.3)


def test_tgs_honours_what_it_knows():
    """Proportions and variogram follow the reference; data are on their cells; i depends on i alone."""
    image = blocky_labels((80, 80), 3, block=6)
    wells = WellSet.from_columns(image, [5, 40])
    column = run_baseline("tgs", image, 3, image.shape, 8, wells=wells, seed=3)
    grids = column.realisations
    assert grids is not None and not column.note and column.cpu_seconds > 0
    assert all(wells.matches(grid).all() for grid in grids)
    assert np.abs(proportions(grids, 3) - proportions(image, 3)).max() < 0.08
    more = simulate(image, 3, image.shape, 9, seed=3)
    assert (paste(more, wells)[:8] == grids).all()
    ours, theirs = (sum(indicator_variogram(g, c, 3)[:, 0] for c in range(3)) for g in (more, image))
    assert np.allclose(ours, theirs, rtol=0.4)


def test_reference_table():
    """The figures kept for runs without SNESIM are those that the docs quote."""
    assert BASELINES == ("tgs", "snesim")
    assert reference_column("connectivity") == 0.133 and reference_column("nothing") is None
    assert STREBELLE_REFERENCE["mph4"] == (0.00648, 0.00805)
