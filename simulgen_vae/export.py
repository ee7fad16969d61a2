"""The surrogate for other programs: torch.export, ONNX, safetensors; its predictions as VTK and npy.

Every exported file is read back and compared with the model on held-out inputs; it stays only when it agrees.
B batch, T frames, M nodes, V fields.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import checkpoint as checkpoints
from common.errors import EXIT_BUG, DataError, StrataError, UserError
from common.files import atomic_path, require_writable, write_json
from common.log import get_logger
from common.noise import numpy_stream
from common.run import MachineOptions, describe_run, machine
from simulgen_vae.config_infer import ExportConfig
from simulgen_vae.config_tools import EvaluateConfig
from simulgen_vae.evaluate import open_for
from simulgen_vae.export_onnx import Run, read_onnx, require_onnx, write_onnx
from simulgen_vae.field_data import FieldData
from simulgen_vae.graph import Model, SurrogateGraph, load
from simulgen_vae.infer import predict
from simulgen_vae.infer_files import refuse_existing
from simulgen_vae.mesh_files import mesh_of, write_series
from simulgen_vae.model_files import PACKAGE, checkpoint_of, read_surrogate
from simulgen_vae.queries import Queries, read_queries

MAX_DIFFERENCE = 1e-4  # of the largest field value
NUM_CHECKED = 8
MAX_BATCH = 4096
FILES = {"torch_export": "predictor.pt2", "onnx": "predictor.onnx", "safetensors": "weights.safetensors"}
CARD = "card.json"


class ParityError(StrataError):
    """A written file computes something else than the model: never the user's fault."""

    exit_code = EXIT_BUG


def export(config: ExportConfig, options: MachineOptions) -> dict[str, Any]:
    """Write what `--to` asks for into `--out`; return the card, also in card.json.

    Raises:
        UserError: an optional library is missing, a file exists, or the flags do not fit.
        DataError: the model or the inputs cannot be used.
        ParityError: a written file differs from the model by more than 1e-4 of the largest value; exit 1.
    """
    out = require_writable(Path(config.out))
    if "onnx" in config.to:
        require_onnx()
    with machine(options):  # exported files are made and checked on the CPU, where every machine can
        model = load(config.model, "cpu", config)
        graph = model.require_graph()
        data = _data_or_none(config, model)
        try:
            checked = held_out(model, data, NUM_CHECKED)
            card = describe(model, options)
            if options.dry_run:
                shape = list(_eager(graph)(graph.arguments(checked.inputs([0]))).shape)
                get_logger().info(f"{model.path}: {' '.join(config.to)} of {card['ships']}, fields {shape}")
                return card
            written = [FILES[kind] for kind in config.to if kind in FILES]
            refuse_existing(out, written, options.overwrite)
            card["files"] = _files_of_earlier(out / CARD, card)
            rows = [i % len(checked) for i in range(max(2, len(checked)))]  # one row would fix the batch
            arguments = graph.arguments(checked.inputs(rows))
            for kind in config.to:
                if kind in FILES:
                    card["files"][kind] = _write_checked(kind, out, model, arguments, config)
                else:
                    card["files"][kind] = _write_fields(kind, out, model, data, config, options)
        finally:
            if data is not None:
                data.close()
        write_json(out / CARD, card)
    return card


def _files_of_earlier(path: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier export of the same model says of its files, so that one card describes all."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = all(found[name] == card[name] for name in ("provenance", "ships", "constraints"))
        return dict(found["files"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def describe(model: Model, options: MachineOptions) -> dict[str, Any]:
    """Return the card of the graph: inputs, outputs, what it keeps, where it comes from."""
    surrogate, (frames, nodes, num_fields) = model.surrogate, model.shape
    inputs: dict[str, Any] = {}
    if surrogate.uses_params:
        trained = surrogate.arrays["train_params"]
        inputs["params"] = {
            "shape": ["batch", trained.shape[1]],
            "dtype": "float32",
            "names": surrogate.config["param_names"],
            "training_low": trained.amin(0).tolist(),
            "training_high": trained.amax(0).tolist(),
        }
    if surrogate.uses_images:
        inputs["image"] = {"shape": ["batch", 1, 256, 256], "dtype": "float32", "range": [0, 1]}
    calibration = surrogate.calibration
    return {
        "ships": surrogate.config["ships"],
        "model": str(model.path),
        "inputs": inputs,
        "output": {
            "name": "fields",
            "shape": ["batch", frames, nodes, num_fields],
            "dtype": "float32",
            "names": surrogate.config["field_names"],
            "units": surrogate.config["units"],
        },
        "constraints": model.constraints.describe(),
        "error_bars": calibration and {"factor": calibration.factor, "coverage": calibration.coverage},
        "provenance": surrogate.config["provenance"],
        "files": {},
        "run": describe_run("simulgen_vae", options.seed),
    }


def _data_or_none(config: ExportConfig, model: Model) -> FieldData | None:
    """Return the training's data set; None, with a warning, when it has gone and was not named."""
    try:
        return open_for(model.surrogate, EvaluateConfig(model=config.model, data=config.data))
    except (UserError, DataError) as error:
        if config.data:
            raise
        get_logger().warning("warning: %s; checked on inputs drawn from the training range instead", error)
        return None


def held_out(model: Model, data: FieldData | None, count: int) -> Queries:
    """Return up to `count` held-out inputs, or seeded ones inside the training range without data."""
    surrogate = model.surrogate
    if data is not None:
        rows = np.concatenate([surrogate.split.test, surrogate.split.validation])[:count]
        params = data.params if surrogate.uses_params and data.params is not None else None
        values = np.zeros((len(rows), 0)) if params is None else params[rows]
        images = data.images[rows] if surrogate.uses_images and data.images is not None else None
        return Queries(values, tuple(data.sample_id[i] for i in rows), images)
    rng = numpy_stream(0, "export check")
    values = np.zeros((count, 0))
    if surrogate.uses_params:
        trained = surrogate.arrays["train_params"].numpy()
        values = rng.uniform(trained.min(0), trained.max(0), (count, trained.shape[1]))
    images = None
    if surrogate.uses_images:
        images = np.kron(rng.integers(0, 256, (count, 8, 8)), np.ones((32, 32))).astype(np.uint8)
    return Queries(values, tuple(map(str, range(count))), images)


def _eager(graph: SurrogateGraph) -> Run:
    def run(arguments: Sequence[torch.Tensor]) -> np.ndarray:
        with torch.no_grad():
            return graph(*arguments).numpy()

    return run


def _write_checked(
    kind: str, out: Path, model: Model, arguments: tuple[torch.Tensor, ...], config: ExportConfig
) -> dict[str, Any]:
    """Write one format, read it back, compare, time it; the file gets its name only when it agrees."""
    graph, path = model.require_graph(), out / FILES[kind]
    eager = _eager(graph)
    with tempfile.TemporaryDirectory(prefix=".export.", dir=out) as folder:
        scratch = Path(folder) / path.name
        run = _WRITERS[kind](scratch, model, arguments, config)
        difference = max(
            relative_difference(run(part), eager(part))
            for part in (arguments, tuple(a[:1] for a in arguments), tuple(a[:3] for a in arguments))
        )
        if not difference <= MAX_DIFFERENCE:
            raise ParityError(
                f"{path}: differs from the model by {difference:.3g} of the largest value, expected at most "
                f"{MAX_DIFFERENCE:g}; not written, use another format"
            )
        one = tuple(a[:1] for a in arguments)
        found: dict[str, Any] = {"file": path.name, "bytes": scratch.stat().st_size, "difference": difference}
        if kind != "safetensors":
            found |= {
                "exported": latency(run, one, config.repeats),
                "eager": latency(eager, one, config.repeats),
            }
        with atomic_path(path) as temporary:
            scratch.replace(temporary)
    get_logger().info(f"{path}: differs by at most {difference:.2g} of the largest value")
    if "eager" in found:
        new, old = found["exported"], found["eager"]
        get_logger().info(
            f"latency of one trajectory: {new['median_ms']:.3g} ms (p95 {new['p95_ms']:.3g}), the model "
            f"{old['median_ms']:.3g} ms (p95 {old['p95_ms']:.3g})"
        )
    return found


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return max |a - b| / max |b|; infinite for other shapes or values that are not finite."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def latency(run: Run, arguments: tuple[torch.Tensor, ...], repeats: int) -> dict[str, float]:
    """Return median and 95 % quantile of the milliseconds of a call, after a warm-up."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        run(arguments)
        times.append(1000 * (time.perf_counter() - started))
    kept = np.array(times[2:])
    return {"median_ms": float(np.median(kept)), "p95_ms": float(np.quantile(kept, 0.95))}


def exported_program(
    graph: SurrogateGraph, arguments: tuple[torch.Tensor, ...]
) -> tuple[torch.export.ExportedProgram, bool]:
    """Return the graph captured with a batch size of 1 to 4096, and True.

    A predictor whose own code fixes the batch is captured for one row at a time: (program, False).
    """
    from torch._dynamo.exc import UserError as CaptureError

    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad():
        try:
            shapes = (tuple({0: batch} for _ in arguments),)
            return torch.export.export(graph, arguments, dynamic_shapes=shapes), True
        except CaptureError:
            get_logger().warning(
                "warning: %s fixes the batch size; captured for one row", graph.predictor.name
            )
            return torch.export.export(graph, tuple(a[:1] for a in arguments)), False


def _row_by_row(run: Run, is_free: bool) -> Run:
    """Return `run` for any batch."""
    if is_free:
        return run

    def each(inputs: Sequence[torch.Tensor]) -> np.ndarray:
        return np.concatenate([run([a[i : i + 1] for a in inputs]) for i in range(len(inputs[0]))])

    return each


def _write_torch(path: Path, model: Model, arguments: tuple[torch.Tensor, ...], _config: ExportConfig) -> Run:
    program, is_free = exported_program(model.require_graph(), arguments)
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(inputs: Sequence[torch.Tensor]) -> np.ndarray:
        with torch.no_grad():
            return module(*inputs).numpy()

    return _row_by_row(run, is_free)


def _write_onnx(path: Path, model: Model, arguments: tuple[torch.Tensor, ...], _config: ExportConfig) -> Run:
    graph = model.require_graph()
    program, is_free = exported_program(graph, arguments)
    write_onnx(path, graph, program)
    return _row_by_row(read_onnx(path, graph), is_free)


def _write_safetensors(
    path: Path, model: Model, _arguments: tuple[torch.Tensor, ...], config: ExportConfig
) -> Run:
    """Write the whole deliverable as safetensors; read back, it is a model again."""
    checkpoints.export_safetensors(path, checkpoint_of(read_surrogate(model.path)))
    again = path.with_suffix(".model")
    checkpoints.save(again, checkpoints.load_safetensors(path, package=PACKAGE))
    return _eager(load(again, "cpu", config).require_graph())


_WRITERS: dict[str, Callable[[Path, Model, tuple[torch.Tensor, ...], ExportConfig], Run]] = {
    "torch_export": _write_torch,
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
}


def _write_fields(
    kind: str,
    out: Path,
    model: Model,
    data: FieldData | None,
    config: ExportConfig,
    options: MachineOptions,
) -> dict[str, Any]:
    """Write predictions, one sample at a time, beside the truth where it is known."""
    queries, truth = _wanted(model, data, config)
    mesh = mesh_of(model.surrogate) if kind == "vtk" else None
    instants = model.surrogate.arrays["time"].numpy()
    made = []
    for k in range(min(config.num, len(queries))):
        inputs = queries.inputs([k])
        found = predict(model, inputs.params, inputs.image, seed=options.seed)
        arrays = {"prediction": found.fields[0].numpy()}
        if truth is not None:
            true = truth(k)
            arrays |= {"field": true, "error": arrays["prediction"] - true}
        for name in ("std", "lower", "upper"):
            values = getattr(found, name)
            arrays |= {name: values[0].numpy()} if values is not None else {}
        name = "sample_" + "".join(c if c.isalnum() or c in "-_" else "_" for c in queries.sample_id[k])
        if mesh is not None:
            refuse_existing(out, [f"{name}.pvd"], options.overwrite)
            made += write_series(out, name, mesh, instants, by_field(arrays, model.config["field_names"]))
        else:
            made += [_save_npy(out / f"{name}_{n}.npy", v, options) for n, v in arrays.items()]
    get_logger().info(f"{kind}: {', '.join(p.name for p in made[:6])}{' ...' if len(made) > 6 else ''}")
    return {"files": [p.name for p in made]}


def by_field(arrays: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return {name: [T, M]} of arrays [T, M, V]; several fields get their own names in front."""
    if len(names) == 1:
        return {n: v[..., 0] for n, v in arrays.items()}
    return {f"{field}_{n}": v[..., k] for n, v in arrays.items() for k, field in enumerate(names)}


def _wanted(
    model: Model, data: FieldData | None, config: ExportConfig
) -> tuple[Queries, Callable[[int], np.ndarray] | None]:
    """Return the inputs of vtk and npy, and what gives their true fields."""
    if config.params or config.images:
        return read_queries(model.surrogate, config.params, config.images, config.image_suffix), None
    queries = held_out(model, data, config.num)
    if data is None:
        return queries, None
    split = model.surrogate.split
    rows = np.concatenate([split.test, split.validation])
    return queries, lambda k: data.trajectory(int(rows[k]))


def _save_npy(path: Path, values: np.ndarray, options: MachineOptions) -> Path:
    refuse_existing(path.parent, [path.name], options.overwrite)
    with atomic_path(path, needed_bytes=values.nbytes) as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    return path
