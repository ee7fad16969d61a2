"""Export a trained surrogate: torch.export, ONNX, safetensors, VTK for ParaView, npy; files are checked."""

from __future__ import annotations

from collections.abc import Sequence

from common.cli import main, parse
from common.run import MachineOptions
from simulgen_vae.config_infer import ExportConfig
from simulgen_vae.export import export


def run(argv: Sequence[str]) -> None:
    """Parse the flags and export."""
    parsed = parse(argv, ExportConfig, MachineOptions, description=__doc__)
    export(parsed.config, parsed.run)


if __name__ == "__main__":
    main(run)
