"""Natural order of file names: sample2 comes before sample10."""

from __future__ import annotations

import re
from pathlib import Path


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key in which the numbers of a name count as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
