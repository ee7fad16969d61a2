"""The graph as ONNX; its libraries are optional."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from common import onnx_files
from common.files import atomic_path
from simulgen_vae.graph import SurrogateGraph

Run = Callable[[Sequence[torch.Tensor]], np.ndarray]


def require_onnx() -> None:
    """Raise UserError with the pip line when a library is missing."""
    onnx_files.require_libraries("--to onnx")


def write_onnx(path: Path, graph: SurrogateGraph, program: torch.export.ExportedProgram) -> None:
    """Write a captured graph."""
    with atomic_path(path) as temporary:
        onnx_files.write(temporary, program, graph.input_names, ["fields"])


def read_onnx(path: Path, graph: SurrogateGraph) -> Run:
    """Return a function that runs the written file on the CPU."""
    session = onnx_files.open_session(path)
    names = [entry.name for entry in session.get_inputs()] or list(graph.input_names)

    def run(arguments: Sequence[torch.Tensor]) -> np.ndarray:
        feed = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        return session.run(None, feed)[0]

    return run
