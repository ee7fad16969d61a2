"""Files that are not there: each flag says what it searched and which existing name is near."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import StrataError
from simulgen_vae.config_files import read_lines
from simulgen_vae.constraints import read_dirichlet
from simulgen_vae.model_files import find_model
from simulgen_vae.paths import existing, existing_file
from simulgen_vae.split import read_split
from simulgen_vae.symmetry import read_symmetry

READERS: dict[str, Callable[[Path], object]] = {
    "--params": lambda p: existing(p, "--params"),
    "--group": lambda p: existing_file(p, "--group", "one group a sample"),
    "--split_file": lambda p: read_split(p, ["a"]),
    "--dirichlet": lambda p: read_dirichlet(p, (2, 3, 1)),
    "--symmetry": read_symmetry,
    "--condition_file": lambda p: read_lines(p, "--condition_file", given=True),
    "no trained model": find_model,
}


@pytest.mark.parametrize("flag", READERS)
def test_the_nearest_name_is_told(tmp_path: Path, flag: str):
    """A slip of the pen is answered by the name that is there; without one, by the place of the search."""
    (tmp_path / "layers_v2.dat").touch()
    with pytest.raises(StrataError) as caught:
        READERS[flag](tmp_path / "layers_v3.dat")
    assert flag in str(caught.value) and str(tmp_path / "layers_v2.dat") in str(caught.value)
    with pytest.raises(StrataError) as caught:
        READERS[flag](tmp_path / "qqq")
    assert "layers" not in str(caught.value) and str(tmp_path) in str(caught.value)
