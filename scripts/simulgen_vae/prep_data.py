"""Check runs of your simulator on one fixed mesh; write them as canonical HDF5, with a POD basis if asked.

All runs must share mesh and number of frames: simulations whose mesh changes cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import BasicOptions
from simulgen_vae.config_data import PrepDataConfig
from simulgen_vae.prep import prep_data


def run(argv: Sequence[str]) -> None:
    """Parse the flags, print the schema table, write the file."""
    parsed = parse(argv, PrepDataConfig, BasicOptions, description=__doc__)
    done = prep_data(parsed.config, parsed.run)
    for name, found in done["table"]:
        print(f"{name:<24} {found}")
    if "num_modes" in done:
        print(f"basis: {done['num_modes']} modes hold {done['energy']:.8f} of the variance")
    if "path" in done:
        print(f"next: python scripts/simulgen_vae/train.py --data {done['path']} --preset small_data")


if __name__ == "__main__":
    main(run)
