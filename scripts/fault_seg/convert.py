"""Convert a volume between SEG-Y, raw, npy, HDF5, MetaImage and VTI; cut it into patches, merge them."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import BasicOptions
from fault_seg.config_tools import ConvertConfig
from fault_seg.convert import convert


def run(argv: Sequence[str]) -> None:
    """Parse the flags, convert, and print what was found or written."""
    parsed = parse(argv, ConvertConfig, BasicOptions, description=__doc__)
    for name, value in convert(parsed.config, parsed.run).items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"{name}: {text}")


if __name__ == "__main__":
    main(run)
