"""Weights for others: a checkpoint without training state, safetensors, ONNX; each checked after writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import checkpoint as checkpoints
from common import onnx_files
from common.checkpoint import Checkpoint
from common.errors import DataError, UserError
from common.files import atomic_path
from common.noise import gaussian
from common.optim import parameter_count
from common.run import MachineOptions
from fault_seg.config_tools import ExportConfig
from fault_seg.model import build_network, fuse_batch_norm
from fault_seg.weight_files import find_weights, read_weights

MAX_DIFFERENCE = 1e-4
CHECK_SHAPES = ((32, 32, 32), (32, 48, 64))  # z y x of the inputs on which outputs are compared
_SIZE_STEP = 16  # sizes of ONNX inputs are multiples of it, for every layout
PATHS = (
    *("data", "dir_data_train", "dir_target_train", "dir_data_valid", "dir_target_valid"),
    *("init", "init_infer", "input", "labels", "check"),
)
Outputs = Mapping[str, np.ndarray]


class NamedOutputs(nn.Module):
    """A network that returns its outputs as a tuple in the order of `names`, as ONNX wants them."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for `image` [1, C, Z, Y, X]."""
        outputs = self.network(image)
        return tuple(outputs[name] for name in self.names)


def export(config: ExportConfig, options: MachineOptions) -> dict[str, Any]:
    """Write the weights of `--model` to `--output`; return what was written, with the largest difference.

    The written file is read back and run beside the model; it gets its name only when the outputs agree.

    Raises:
        UserError: the output exists or an optional library is missing.
        DataError: the model cannot be used, or the exported outputs differ by more than 1e-4.
    """
    path = Path(config.output)
    if path.suffix == ".onnx":
        onnx_files.require_libraries("--output *.onnx")
    models = [find_weights(name) for name in (config.model, *config.average)]
    model_path = models[0]
    found = average([read_weights(name) for name in models])
    network = _network(found, model_path).eval()
    _refuse_existing(models, path, options.overwrite)
    heads = list(found.config["heads"])
    summary = {"file": str(path), "network": found.config["network"], "kind": found.kind, "heads": heads}
    summary |= {"parameters": parameter_count(network), "step": found.step}
    if options.dry_run:
        return summary
    write, read = _WRITERS[path.suffix]
    expected = [_run(network, image) for image in _images(network)]
    with atomic_path(path) as temporary:
        write(temporary, found, network)
        run = read(temporary)
        pairs = zip(expected, (run(image) for image in _images(network)), strict=True)
        difference = max(_difference(a, b) for a, b in pairs)
        if not difference <= MAX_DIFFERENCE:
            raise DataError(
                f"{path}: outputs differ from those of {model_path} by {difference:.3g}, expected at most "
                f"{MAX_DIFFERENCE:g}; not written, use another format"
            )
    return {**summary, "bytes": path.stat().st_size, "max_abs_difference": difference}


def average(models: Sequence[Checkpoint]) -> Checkpoint:
    """Return the first model with the mean of all models' weights, running statistics included.

    Weights of one training and of its continuation lie in one valley; their mean is often better on all tasks
    than either (Izmailov et al. 2018, Wortsman et al. 2022). Threshold and temperature stay the first one's.

    Raises:
        DataError: they are not of one network with the same outputs.
    """
    first = models[0]
    layout = [(m.kind, m.config["network"], list(m.config["heads"])) for m in models]
    for other in layout[1:]:
        if other != layout[0]:
            raise DataError(f"--average: a model is {other}, --model is {layout[0]}; give models of one kind")
    weights = {
        name: torch.stack([m.state_dict[name] for m in models]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in first.state_dict.items()
    }
    return replace(first, state_dict=weights)


def _network(found: Checkpoint, path: Path) -> nn.Module:
    network = build_network(found.config["network"], found.kind, found.config["heads"])
    try:
        network.load_state_dict(found.state_dict)
    except RuntimeError as error:
        raise DataError(f"{path}: weights do not fit their own config ({error})") from error
    return network


def _images(network: nn.Module) -> list[Tensor]:
    """Return the fixed noise on which outputs are compared."""
    channels = int(getattr(network, "in_channels", 1))
    return [gaussian((1, channels, *shape), 0, "export check", i) for i, shape in enumerate(CHECK_SHAPES)]


@torch.no_grad()
def _run(network: nn.Module, image: Tensor) -> Outputs:
    return {name: value.numpy() for name, value in network(image).items()}


def _difference(a: Outputs, b: Outputs) -> float:
    """Return the largest absolute difference; infinite where outputs are missing or of other shapes."""
    if set(a) != set(b) or any(a[name].shape != b[name].shape for name in a):
        return float("inf")
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def _read_with(reader: Callable[..., Checkpoint]) -> Callable[[Path], Callable[[Tensor], Outputs]]:
    """Return a function that opens an exported file as inference does, batch normalisation folded."""

    def read(path: Path) -> Callable[[Tensor], Outputs]:
        network = fuse_batch_norm(_network(reader(path, package="fault_seg"), path))
        return lambda image: _run(network, image)

    return read


def _write_checkpoint(path: Path, found: Checkpoint, network: nn.Module) -> None:
    weights = checkpoints.plain_weights(network)
    checkpoints.save(path, _without_training(found, weights))


def _write_safetensors(path: Path, found: Checkpoint, network: nn.Module) -> None:
    weights = checkpoints.plain_weights(network)
    checkpoints.export_safetensors(path, _without_training(found, weights))


def _without_training(found: Checkpoint, weights: dict[str, Tensor]) -> Checkpoint:
    """Return what others may have: no optimizer, and no paths of the machine that trained it."""
    return Checkpoint(
        package=found.package,
        kind=found.kind,
        config={name: "" if name in PATHS else value for name, value in found.config.items()},
        normalization=found.normalization,
        state_dict=weights,
        step=found.step,
        epoch=found.epoch,
    )


def onnx_program(network: nn.Module) -> tuple[NamedOutputs, dict[str, Any]]:
    """Return (module, arguments of the exporter) of a network for ONNX: sizes free, 32 to 1024 in 16s."""
    image = _images(network)[1]
    names = tuple(_run(network, image))
    sizes = {2 + i: _SIZE_STEP * torch.export.Dim(f"n{i + 1}_16", min=2, max=64) for i in range(3)}
    return NamedOutputs(fuse_batch_norm(network), names).eval(), {
        "args": (image,),
        "dynamic_shapes": (sizes,),
    }


def _write_onnx(path: Path, _found: Checkpoint, network: nn.Module) -> None:
    module, arguments = onnx_program(network)
    onnx_files.write(path, module, ["image"], module.names, **arguments)


def _read_onnx(path: Path) -> Callable[[Tensor], Outputs]:
    session = onnx_files.open_session(path)
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"image": image.numpy()}), strict=True))


_WRITERS: dict[str, tuple[Callable[[Path, Checkpoint, nn.Module], None], Callable[[Path], Any]]] = {
    ".pth": (_write_checkpoint, _read_with(checkpoints.load)),
    ".safetensors": (_write_safetensors, _read_with(checkpoints.load_safetensors)),
    ".onnx": (_write_onnx, _read_onnx),
}


def _refuse_existing(models: Sequence[Path], path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if any(os.path.samefile(model, path) for model in models):
        raise UserError(f"--output {path}: is the model itself; choose another name")
    if not overwrite:
        raise UserError(f"{path}: exists; add --overwrite or choose another --output")
