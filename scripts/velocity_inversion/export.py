"""Export a trained ensemble as safetensors, ONNX or torch.export, and check the file against the ensemble."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions, machine
from velocity_inversion.config_tools import ExportConfig
from velocity_inversion.export import export


def run(argv: Sequence[str]) -> None:
    """Parse the flags, export, and print what was written."""
    parsed = parse(argv, ExportConfig, MachineOptions, description=__doc__)
    with machine(parsed.run):
        made = export(parsed.config, parsed.run)
    for name, value in made.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main(run)
