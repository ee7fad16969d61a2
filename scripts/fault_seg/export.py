"""Export a trained network as .pth (weights and configuration), .safetensors or .onnx, and check it."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions, machine
from fault_seg.config_tools import ExportConfig
from fault_seg.export import export


def run(argv: Sequence[str]) -> None:
    """Parse the flags, export, and print what was written."""
    parsed = parse(argv, ExportConfig, MachineOptions, description=__doc__)
    with machine(parsed.run):
        made = export(parsed.config, parsed.run)
    for name, value in made.items():
        print(f"{name}: {' '.join(value) if isinstance(value, list) else value}")
    if not parsed.config.output.endswith(".onnx") and made["kind"] == "infer":
        print(f"next: python scripts/fault_seg/infer.py --input survey.sgy --model {parsed.config.output}")


if __name__ == "__main__":
    main(run)
