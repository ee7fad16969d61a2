"""ONNX files: what is asked of the exporter, and what is said when a library is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from common import onnx_files
from common.errors import UserError


@pytest.mark.parametrize("name", onnx_files.LIBRARIES)
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    """The error names the missing library and installs all of them."""
    for other in onnx_files.LIBRARIES:
        monkeypatch.setitem(sys.modules, other, None if other == name else SimpleNamespace())
    with pytest.raises(UserError, match=f"^--to onnx needs {name}, .* onnx onnxscript onnxruntime$"):
        onnx_files.require_libraries("--to onnx")


def test_one_file_with_these_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Names and arguments reach the exporter; weights are stored in the file itself."""
    asked: dict[str, Any] = {}
    saved: list[tuple[str, bool]] = []

    def exporter(network: nn.Module, **arguments: Any) -> Any:
        asked.update(arguments, network=network)
        return SimpleNamespace(save=lambda path, external_data: saved.append((path, external_data)))

    monkeypatch.setattr(torch.onnx, "export", exporter)
    network, inputs = nn.Identity(), (torch.zeros(1),)
    onnx_files.write(tmp_path / "a.onnx", network, ("x",), ("y", "z"), args=inputs)
    assert asked["network"] is network and asked["args"] is inputs and asked["dynamo"] is True
    assert (asked["input_names"], asked["output_names"]) == (["x"], ["y", "z"])
    assert saved == [(str(tmp_path / "a.onnx"), False)]
