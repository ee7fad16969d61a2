"""Figures of a set: each is drawn for what there is, and the mask of the data can be read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.noise import numpy_stream
from facies_gan import metrics as M
from facies_gan import pictures
from facies_gan.well_files import read_wells_png
from facies_gan.wells import WellSet
from tests.facies_gan.cases_data import blocky_labels, is_copy
from tests.facies_gan.cases_gan import bands, palette


def test_well_mask_is_read_back(tmp_path: Path):
    """The mask holds the data in their colours over grey, and says the same data when it is read."""
    labels = bands((20, 24), 4)
    wells = WellSet.from_columns(labels, [3, 17])
    pictures.draw_well_mask(tmp_path / "mask.png", (20, 24), palette(4), wells)
    found = read_wells_png(tmp_path / "mask.png", labels, palette(4), background=pictures.GREY)
    assert sorted(zip(found.rows, found.cols, found.facies, strict=True)) == sorted(
        zip(wells.rows, wells.cols, wells.facies, strict=True)
    )


@pytest.mark.parametrize("wells", [WellSet.empty(), WellSet.from_columns(bands((20, 24)), [5])])
def test_figures_with_and_without_data(tmp_path: Path, wells: WellSet):
    """Entropy and comparison are drawn with data, without data and without a reference."""
    grids = [bands((20, 24), seed=i) for i in range(8)]
    entropy = M.entropy_map(M.probability_map(grids, 2))
    pictures.draw_entropy(tmp_path / "entropy.png", entropy, wells, 2)
    pictures.draw_comparison(tmp_path / "all.png", grids[0], grids, palette(), wells)
    pictures.draw_comparison(tmp_path / "none.png", None, grids[:1], palette(), wells)
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("entropy", "all", "none")]
    assert all(min(size) > 200 for size in sizes)
    assert sizes[1][0] > 3 * sizes[2][0], "reference and six realisations need four columns, one needs one"


def test_marks_show_data(tmp_path: Path):
    """Data leave marks in the figure: scattered ones a circle each, a well one triangle."""
    from common.figures import new_figure

    _, axes = new_figure(1, 1)
    points = WellSet.from_cells(np.array([2, 9]), np.array([3, 11]), np.array([0, 1]), np.array([0, 1]))
    pictures.mark_wells(axes[0, 0], WellSet.from_columns(bands((20, 24)), [5]).merged(points))
    assert len(axes[0, 0].collections[0].get_offsets()) == 2
    (triangle,) = axes[0, 0].lines
    assert triangle.get_marker() == "v" and triangle.get_xdata()[0] == 6
    pictures.mark_wells(axes[0, 0], WellSet.empty())
    assert len(axes[0, 0].lines) == 1


def test_distances_need_three_images(tmp_path: Path):
    """Two points have no plane."""
    grid = bands((20, 24))
    assert not pictures.draw_mds(tmp_path / "mds.png", [grid], [grid], 2)
    assert not (tmp_path / "mds.png").exists()
    assert pictures.draw_mds(tmp_path / "mds.png", [grid], [grid, 1 - grid], 2)
    assert (tmp_path / "mds.png").is_file()


def test_copies_among_sections():
    """A realisation that repeats one of several sections is found; independent ones pass."""
    sections = [blocky_labels((48, 48), seed=i, block=6) for i in range(4)]
    rng = numpy_stream(0, "copies")
    assert is_copy(M.copy_check([sections[2]], sections, rng, patches=12, size=16))
    fresh = blocky_labels((48, 48), seed=9, block=6)
    assert not is_copy(M.copy_check([fresh], sections, rng, patches=12, size=16))
