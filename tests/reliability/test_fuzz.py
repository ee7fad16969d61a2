"""Damaged files and command lines: every parser of every package takes them or refuses them with one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.fuzz import WARNINGS, Parser, fuzz
from tests.reliability.parsers_facies import COMMON, FACIES
from tests.reliability.parsers_fields import SIMULGEN, VOXEL
from tests.reliability.parsers_seismic import FAULT_SEG, VELOCITY

PARSERS = (*FAULT_SEG, *VELOCITY, *SIMULGEN, *VOXEL, *FACIES, *COMMON)
pytestmark = [pytest.mark.promise("R23"), *WARNINGS]
FEW, MANY = 12, 500


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_few(parser: Parser, tmp_path: Path):
    """A few damaged files: nothing but a UserError or a DataError of one line escapes."""
    fuzz(parser, tmp_path, FEW)


@pytest.mark.reliability
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_many(parser: Parser, tmp_path: Path, record_property: Callable[[str, int], None]):
    """The same for 500 damaged files."""
    fuzz(parser, tmp_path, MANY)
    record_property("n", MANY)
