"""Networks as ONNX files; the libraries are optional."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import missing_library

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def require_libraries(purpose: str) -> None:
    """Raise UserError with the pip command of all libraries when one is missing."""
    for name in LIBRARIES:
        try:
            __import__(name)
        except ImportError as error:
            raise missing_library(name, purpose, " ".join(LIBRARIES)) from error


def write(
    path: Path,
    network: nn.Module | torch.export.ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str],
    **arguments: Any,
) -> None:
    """Write a network, or a captured graph, as one file.

    Args:
        path: of the file.
        network: what to write.
        input_names: of the file's inputs.
        output_names: of its outputs.
        **arguments: of `torch.onnx.export`, for example `args` and `dynamic_shapes` of a network.
    """
    program = torch.onnx.export(
        network,
        input_names=list(input_names),
        output_names=list(output_names),
        dynamo=True,
        verbose=False,
        **arguments,
    )
    assert program is not None
    program.save(str(path), external_data=False)


def open_session(path: Path) -> Any:
    """Return an onnxruntime session of a written file on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
