"""The package from Python: its public names, and the program that the docs show."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import facies_gan
from facies_gan import config, config_generate, infer, model_files
from facies_gan.images import read_rgb
from facies_gan.train import train
from tests.facies_gan.cases_gan import palette, write_folder

PAGE = Path(__file__).resolve().parents[2] / "docs/facies_gan.md"


def test_public_names():
    """The names that the package offers are those of its modules; others do not exist."""
    assert facies_gan.load is model_files.load and facies_gan.generate is infer.generate
    assert facies_gan.TrainingOptions is facies_gan.TrainningOptions is config.TrainingOptions
    assert facies_gan.GenerateConfig is config_generate.GenerateConfig and callable(train)
    assert all(getattr(facies_gan, name) is not None for name in dir(facies_gan))
    with pytest.raises(AttributeError, match="no_such_name"):
        facies_gan.no_such_name  # noqa: B018


def test_the_program_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It trains on a data root, generates arrays and files, and makes pyramids, as the page says."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "quick()" in program
    program = program.replace("quick", "smoke").replace("96, 120", "24, 30")
    monkeypatch.chdir(tmp_path)
    write_folder(Path("data"), shape=(24, 30))
    Path("program.py").write_text(program)
    names = runpy.run_path("program.py")
    grids = names["grids"]
    assert len(grids) == 4 and all(grid.shape == (40, 64) and grid.max() < 4 for grid in grids)
    files = [np.load(path) for path in sorted(Path("results/files/realisations").glob("*.npy"))]
    assert len(files) == 4 and names["labels"].shape == (24, 30)
    assert np.array_equal(palette(4).to_rgb(names["labels"].numpy()), read_rgb(names["image"])[0])
    assert [tuple(grid.shape[1:]) for grid in names["pyramid"]] == names["scales"]
