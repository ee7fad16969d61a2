"""Fixtures that every test folder uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Keep the tests modest: they share their cores, two threads of two workers are enough."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Autograd starts its threads at the first backward: none on a CPU, unless torch.export has registered its
    # pseudo devices before. Children forked by later tests could then not train. So start it now.
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with public field data for checks, or skip: it is no part of the project."""
    folder = Path(os.environ.get("STRATA_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set STRATA_REAL_DATA to its folder")
    return folder
