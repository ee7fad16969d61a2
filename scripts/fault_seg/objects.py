"""Turn fault and time volumes into faults, fault sticks, horizons and a label volume."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import BasicOptions
from fault_seg.config_tools import ObjectsConfig
from fault_seg.make_objects import make_objects, report


def run(argv: Sequence[str]) -> None:
    """Parse the flags, write the objects, and print what was found."""
    parsed = parse(argv, ObjectsConfig, BasicOptions, description=__doc__)
    print(report(make_objects(parsed.config, parsed.run, parsed.origins)))


if __name__ == "__main__":
    main(run)
