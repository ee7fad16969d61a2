"""The graph as ONNX; its libraries are optional."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from common.errors import missing_library
from common.files import atomic_path
from simulgen_vae.graph import SurrogateGraph

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
Run = Callable[[Sequence[torch.Tensor]], np.ndarray]


def require_onnx() -> None:
    """Raise UserError with the pip line when a library is missing."""
    for name in LIBRARIES:
        try:
            __import__(name)
        except ImportError as error:
            raise missing_library(name, "--to onnx", " ".join(LIBRARIES)) from error


def write_onnx(path: Path, graph: SurrogateGraph, program: torch.export.ExportedProgram) -> None:
    """Write a captured graph."""
    converted = torch.onnx.export(
        program,
        input_names=list(graph.input_names),
        output_names=["fields"],
        dynamo=True,
        verbose=False,
    )
    assert converted is not None
    with atomic_path(path) as temporary:
        converted.save(str(temporary), external_data=False)


def read_onnx(path: Path, graph: SurrogateGraph) -> Run:
    """Return a function that runs the written file on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()] or list(graph.input_names)

    def run(arguments: Sequence[torch.Tensor]) -> np.ndarray:
        feed = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        return session.run(None, feed)[0]

    return run
