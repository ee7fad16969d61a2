"""Every format of every package, broken in every common way: one line that names the file, exit 2 or 3."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import EXIT_DATA, EXIT_USAGE, DataError, StrataError
from tests.reliability.corpus import Breaks, ways_of
from tests.reliability.fuzz import WARNINGS, Parser
from tests.reliability.test_fuzz import PARSERS

pytestmark = [pytest.mark.promise("R8"), *WARNINGS]
MAX_GROWTH_KB = 200_000
MAX_SECONDS = 20.0
# What leaves a legal file, or none where the file may be absent.
HARMLESS: dict[str, set[str]] = {
    "fault_seg-mhd": {"binary"},  # what follows the header is ignored
    "fault_seg-raw": {"garbage"},
    "fault_seg-sticks": {"NaN", "word"},  # in a column that nobody reads
    "fault_seg-description": {"directory", "missing"},
    "velocity_inversion-sections": {"missing"},
    "velocity_inversion-families": {"missing", "wrong dtype", "wrong key"},  # names are only labels
    "velocity_inversion-well": {"cut"},  # a table that ends earlier
    "simulgen_vae-condition": {"cut", "empty", "text"},  # unknown keys only warn
    "simulgen_vae-box": {"empty"},
    "voxel_ode-manifest": {"directory", "missing"},
    "voxel_ode-index npz": {"directory", "missing"},  # the .jsonl is read instead
    "facies_gan-points npz": {"wrong shape"},  # flattened
    "facies_gan-mapping": {"directory", "missing", "wrong shape"},
    "facies_gan-npy": {"NaN", "no values", "wrong dtype", "wrong shape"},  # any array
    "facies_gan-npz": {"wrong dtype", "wrong key", "wrong shape"},
    "facies_gan-summary": {"cut", "empty", "text"},
    "facies_gan-scale": {"directory", "missing"},  # the last checkpoint is read instead
}


def check(parser: Parser, path: Path, breaks: Breaks) -> tuple[int, int]:
    """Return (files broken, files refused) of one way."""
    broken = refused = 0
    for write in breaks:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        write(path)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        broken += 1
        try:
            parser.read(path)
        except StrataError as error:
            refused += 1
            assert error.exit_code in (EXIT_USAGE, EXIT_DATA)
            message = str(error)
            assert "\n" not in message and message.count(" ") > 3, message
            assert path.stem in message or path.parent.name in message, message
            assert not isinstance(error, DataError) or len(message) < 1500, message
        assert time.monotonic() - started < MAX_SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB
    return broken, refused


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_every_way(parser: Parser, tmp_path: Path, record_property: Callable[[str, int], None]):
    """Each way is refused somewhere, and never with anything but one line that names the file."""
    parser.write(tmp_path)
    path, whole = tmp_path / parser.file, tmp_path / "whole"
    shutil.copyfile(path, whole)
    taken, number = set(), 0
    for way, breaks in ways_of(whole, parser.kind, path.suffix).items():
        broken, refused = check(parser, path, breaks)
        number += broken
        if broken and not refused:
            taken.add(way)
    assert taken == HARMLESS.get(parser.name, set()), f"{sorted(taken)} are read without a word"
    record_property("n", number)


HDF5 = [parser for parser in PARSERS if parser.kind == "h5"]


@pytest.mark.promise("R12")
@pytest.mark.parametrize("parser", HDF5, ids=lambda parser: parser.name)
def test_values_in_other_files(parser: Parser, tmp_path: Path):
    """A dataset that keeps its values in another file, or is a link to one, is refused wherever it stands."""
    parser.write(tmp_path)
    path, whole = tmp_path / parser.file, tmp_path / "whole"
    shutil.copyfile(path, whole)
    ways = ways_of(whole, parser.kind, path.suffix)
    for way in ("external", "link"):
        _, refused = check(parser, path, ways[way])
        assert refused


BOMBS = [parser for parser in PARSERS if parser.kind == "npz" or parser.file.endswith(".png")]


@pytest.mark.promise("R13")
@pytest.mark.parametrize("parser", BOMBS, ids=lambda parser: parser.name)
def test_bombs(parser: Parser, tmp_path: Path):
    """A small file that would unpack to 90 MB and more is refused before it is unpacked."""
    parser.write(tmp_path)
    path, whole = tmp_path / parser.file, tmp_path / "whole"
    shutil.copyfile(path, whole)
    broken, refused = check(parser, path, ways_of(whole, parser.kind, path.suffix)["bomb"])
    assert broken == refused == 1
