"""A trained ensemble for other programs: safetensors, ONNX, torch.export; each is read back and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import checkpoint as checkpoints
from common import onnx_files
from common.checkpoint import Checkpoint, plain_tree
from common.errors import DataError, UserError
from common.files import atomic_path, write_json
from common.noise import gaussian
from common.optim import parameter_count
from common.run import MachineOptions
from velocity_inversion.config_tools import ExportConfig
from velocity_inversion.ensemble import KIND, Ensemble, load_ensemble, state_of
from velocity_inversion.member import PACKAGE

MAX_DIFFERENCE = 1e-4  # km/s
SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
INPUTS = ("gathers", "source_xz", "receiver_xz", "live")
OUTPUTS = ("vp", "std")
CHECKED_BATCHES = (2, 3)  # the second one proves that the size of the batch is free


class EnsembleProgram(nn.Module):
    """All members as one module from plain tensors to (vp, std), each [B, Z, X] in km/s."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.members = nn.ModuleList(ensemble.members(torch.device("cpu")))
        self.weights = ensemble.weights.tolist()

    def forward(
        self,
        gathers: torch.Tensor,
        source_xz: torch.Tensor,
        receiver_xz: torch.Tensor,
        live: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict.

        Args:
            gathers: [B, S, T, R] at the network's interval.
            source_xz: [B, S, 2], m.
            receiver_xz: [B, S, R, 2], m.
            live: [B, S, R] bool.
        """
        batch = {"gathers": gathers, "source_xz": source_xz, "receiver_xz": receiver_xz, "live": live}
        found = [member(batch) for member in self.members]
        v = torch.stack([w * f["vp"][:, 0] for w, f in zip(self.weights, found, strict=True)]).sum(0)
        parts = [
            w * (2 * (2 * f["log_scale"][:, 0]).exp() + (f["vp"][:, 0] - v).square())
            for w, f in zip(self.weights, found, strict=True)
        ]
        return v, torch.stack(parts).sum(0).sqrt()


def export(config: ExportConfig, options: MachineOptions) -> dict[str, Any]:
    """Write the ensemble in the wanted format; return what was written, with the largest difference.

    The file is read back and run beside the ensemble; it gets its name only when sections agree.

    Raises:
        UserError: the output exists, or an optional library is missing.
        DataError: the model cannot be used, or the sections differ by more than 1e-4 km/s.
    """
    ensemble = load_ensemble(config.model_path)
    path = Path(config.output or ensemble.path.with_suffix(SUFFIXES[config.format]))
    if path.exists() and not options.overwrite:
        raise UserError(f"{path}: exists; add --overwrite or choose another --output")
    program = EnsembleProgram(ensemble).eval()
    summary = {
        "file": str(path),
        "format": config.format,
        "members": len(ensemble.configs),
        "parameters": parameter_count(program),
        "inputs": {name: list(t.shape) for name, t in zip(INPUTS, example(ensemble, 1), strict=True)},
    }
    if options.dry_run:
        return summary
    write, read = _WRITERS[config.format]
    with atomic_path(path) as temporary:
        write(temporary, ensemble, program)
        run = read(temporary)
        difference = max(_difference(program, run, example(ensemble, batch)) for batch in CHECKED_BATCHES)
        if not difference <= MAX_DIFFERENCE:
            raise DataError(
                f"{path}: sections differ by {difference:.3g} km/s from those of {ensemble.path}, "
                f"expected at most {MAX_DIFFERENCE:g}; not written, use another format"
            )
    summary |= {"bytes": path.stat().st_size, "max_abs_difference_km_s": difference}
    write_json(path.with_suffix(".json"), {**summary, **description(ensemble)})
    return summary


def description(ensemble: Ensemble) -> dict[str, Any]:
    """Return what a program that runs the exported file must know: preparation, geometry, units."""
    preprocessing = ensemble.preprocessing
    return {
        "outputs": {"vp": "[B, Z, X], km/s", "std": "[B, Z, X], km/s"},
        "interval_s": preprocessing.interval(ensemble.survey),
        "preprocessing": asdict(preprocessing),
        "survey": ensemble.survey.to_dict(),
        "half_width_over_std": dict(ensemble.calibration.conformal),
        "coverage": ensemble.calibration.coverage,
    }


def example(ensemble: Ensemble, batch: int) -> tuple[torch.Tensor, ...]:
    """Return fixed noise with the ensemble's own geometry, as the program takes it."""
    survey, length = ensemble.survey, ensemble.preprocessing.length(ensemble.survey)
    shape = (batch, survey.num_shots, length, survey.num_receivers)
    return (
        gaussian(shape, 0, "export check", batch),
        torch.from_numpy(survey.sources).float().expand(batch, -1, -1).contiguous(),
        torch.from_numpy(survey.receivers).float().nan_to_num().expand(batch, -1, -1, -1).contiguous(),
        torch.ones(batch, survey.num_shots, survey.num_receivers, dtype=torch.bool),
    )


@torch.no_grad()
def _difference(program: nn.Module, run: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> float:
    pairs = zip(program(*inputs), run(*inputs), strict=True)
    return max(float((a - torch.as_tensor(b)).abs().max()) for a, b in pairs)


def _checkpoint(ensemble: Ensemble) -> Checkpoint:
    return Checkpoint(
        package=PACKAGE,
        kind=KIND,
        config={"members": [plain_tree(asdict(c)) for c in ensemble.configs]},
        normalization={"weights": ensemble.weights.tolist(), "survey": ensemble.survey.to_dict()},
        state_dict=state_of(ensemble),
    )


def _write_safetensors(path: Path, ensemble: Ensemble, _program: nn.Module) -> None:
    checkpoints.export_safetensors(path, _checkpoint(ensemble))


def _read_safetensors(path: Path) -> Callable[..., Any]:
    found = checkpoints.load_safetensors(path, package=PACKAGE)
    from velocity_inversion.ensemble import ensemble_from

    return EnsembleProgram(ensemble_from(found, path)).eval()


def _exported(ensemble: Ensemble) -> dict[str, Any]:
    """Return what torch.export needs: inputs of two samples, the first axis free."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    return {"args": example(ensemble, CHECKED_BATCHES[0]), "dynamic_shapes": ({0: batch},) * len(INPUTS)}


def _write_torch_export(path: Path, ensemble: Ensemble, program: nn.Module) -> None:
    made = torch.export.export(program, **_exported(ensemble))
    named = path.with_name(f"{path.name}.pt2")  # the writer insists on the suffix
    torch.export.save(made, named)
    named.replace(path)


def _read_torch_export(path: Path) -> Callable[..., Any]:
    with path.open("rb") as file:
        return torch.export.load(file).module()  # type: ignore[arg-type]


def _write_onnx(path: Path, ensemble: Ensemble, program: nn.Module) -> None:
    onnx_files.require_libraries("exporting ONNX")
    onnx_files.write(path, program, INPUTS, OUTPUTS, **_exported(ensemble))


def _read_onnx(path: Path) -> Callable[..., Any]:
    session = onnx_files.open_session(path)
    return lambda *inputs: session.run(
        list(OUTPUTS), {name: t.numpy() for name, t in zip(INPUTS, inputs, strict=True)}
    )


_WRITERS: dict[str, tuple[Callable[..., None], Callable[[Path], Callable[..., Any]]]] = {
    "safetensors": (_write_safetensors, _read_safetensors),
    "torch_export": (_write_torch_export, _read_torch_export),
    "onnx": (_write_onnx, _read_onnx),
}
