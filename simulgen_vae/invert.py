"""Inverse design: inputs whose predicted field meets a target or sensor readings, with their covariance.

P parameters, n latents, r_s spatial modes, T frames, M nodes, V fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.arrays import open_npy
from common.errors import DataError, UserError
from common.files import require_writable, write_json, write_text
from common.log import get_logger
from common.metrics import relative_l2
from common.run import MachineOptions, describe_run, machine
from simulgen_vae import ood
from simulgen_vae.config_infer import InvertConfig
from simulgen_vae.config_tools import EvaluateConfig
from simulgen_vae.evaluate import open_for
from simulgen_vae.field_data import FieldData
from simulgen_vae.fields import open_fields
from simulgen_vae.graph import Model, load
from simulgen_vae.infer_files import refuse_existing
from simulgen_vae.invert_search import (
    Found,
    Problem,
    Readout,
    Sensors,
    Unknowns,
    field_readout,
    latent_unknowns,
    parameter_unknowns,
    search,
    sensor_readout,
    sensor_values,
)
from simulgen_vae.model_files import save_array
from simulgen_vae.paths import existing
from simulgen_vae.tables import read_table

SENSOR_COLUMNS = ("node", "frame", "value", "sigma")
DEFAULT_SIGMA = 0.05  # of the field's standard deviation, for a model that knows no error of its own


@dataclass(eq=False)
class Target:
    """What is to be met: a field [T, M, V] or readings, and what measures the distance."""

    name: str
    readout: Readout
    field: torch.Tensor | None = None
    sensors: Sensors | None = None


def invert(config: InvertConfig, options: MachineOptions, out: Path) -> dict[str, Any]:
    """Write inverse.json, best.csv, starts.csv and figures into `out`; return what inverse.json holds.

    Raises:
        UserError: the flags do not fit the model, or `out` cannot be written.
        DataError: the model, the target or the readings cannot be used.
    """
    require_writable(out)
    with machine(options) as device:
        model = load(config.model, device, config)
        unknowns = make_search_space(config, model)
        data = _open_data(config, model) if config.target_row >= 0 or config.num_test else None
        try:
            if options.dry_run:
                c = unknowns.coefficients(unknowns.physical(unknowns.known[:2]))
                get_logger().info(f"{len(unknowns.names)} unknowns, coefficients {list(c.shape)}")
                return {}
            if config.num_test:
                assert data is not None
                return invert_held_out(config, options, model, unknowns, data, out)
            target = make_target(config, model, data)
        finally:
            if data is not None:
                data.close()
        refuse_existing(out, ["inverse.json", "best.csv"], options.overwrite)
        found = run_search(config, unknowns, target.readout, options.seed)
        report = document(config, options, model, unknowns, target, found)
        write_json(out / "inverse.json", report)
        write_tables(out, unknowns, found)
        if config.figures:
            from simulgen_vae.invert_figures import draw_inversion

            draw_inversion(out / "figures", model, unknowns, target, found)
        _say(report, out)
        return report


def run_search(config: InvertConfig, unknowns: Unknowns, readout: Readout, seed: int) -> Found:
    """Return the search that the flags ask for."""
    problem = Problem(unknowns, readout, config.prior_weight)
    return search(problem, config.starts, config.steps, config.lr, config.polish, seed)


def make_search_space(config: InvertConfig, model: Model) -> Unknowns:
    """Return the unknowns: parameters, or latents where pictures are an input.

    Raises:
        UserError: parameters are sought though pictures are needed too, or a box is given for latents.
        DataError: the latents of the training are gone, or the box is bad.
    """
    surrogate = model.surrogate
    numbers_alone = surrogate.uses_params and not surrogate.uses_images
    default = "params" if numbers_alone else "latents"
    if (default if config.space == "auto" else config.space) == "params":
        if not numbers_alone:
            raise UserError(
                "--space params: the model takes pictures, which are not sought; use --space latents"
            )
        box = read_box(Path(config.bounds_file), model) if config.bounds_file else None
        return parameter_unknowns(model, box)
    if config.bounds_file:
        raise UserError(f"--bounds_file {config.bounds_file}: latents are sought, which have no such box")
    latents = ood.stored_latents(surrogate, model.path)
    if latents is None:
        raise DataError(
            f"{model.path.parent / ood.LATENT_FILES[0]}: no such file, a search in latents needs those of "
            "the training; restore its folder"
        )
    return latent_unknowns(model, latents[surrogate.split.train])


def read_box(path: Path, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (low, high) [P] of a CSV with the columns name, low, high; others keep the training range.

    Raises:
        UserError: there is no such file.
        DataError: a line cannot be read, a name is unknown, or low is not below high.
    """
    existing(path, "--bounds_file")
    known = model.surrogate.arrays["train_params"].double()
    low, high = known.amin(0), known.amax(0)
    names = list(model.config["param_names"])
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}), expected a CSV of name, low, high") from error
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.replace(";", ",").split(",")]
        if not line.strip() or cells[:3] == ["name", "low", "high"]:
            continue
        try:
            name, a, b = cells[0], float(cells[1]), float(cells[2])
        except (IndexError, ValueError):
            raise DataError(f"{path}: row {number}: {line!r}, expected name, low, high") from None
        if name not in names or not a < b:
            raise DataError(
                f"{path}: row {number}: {line!r}, expected low below high for one of {', '.join(names)}"
            )
        low[names.index(name)], high[names.index(name)] = a, b
    return low, high


def _open_data(config: InvertConfig, model: Model) -> FieldData:
    return open_for(model.surrogate, EvaluateConfig(model=config.model, data=config.data))


def make_target(config: InvertConfig, model: Model, data: FieldData | None) -> Target:
    """Return what the flags want to be met."""
    if config.sensors:
        sensors = read_sensors(Path(config.sensors), model)
        return Target(
            config.sensors, sensor_readout(model, sensors, _model_std(model, sensors)), None, sensors
        )
    if data is not None:
        if config.target_row >= data.num_samples:
            raise UserError(f"--target_row {config.target_row}: expected a sample 0..{data.num_samples - 1}")
        name, values = f"sample {data.sample_id[config.target_row]}", data.trajectory(config.target_row)
    else:
        name, values = config.target, read_field(Path(config.target), model.shape)
    field = torch.from_numpy(values)
    return Target(name, field_target(config, model, field), field)


def field_target(config: InvertConfig, model: Model, field: torch.Tensor) -> Readout:
    """Return the residuals of a whole field; a surrogate's error is its uncertainty unless told otherwise."""
    sigma = config.sigma or own_error(model)
    return field_readout(model, field, sigma, float(model.surrogate.vae.shape.num_latents))


def own_error(model: Model) -> float:
    """Return the root mean square of the model's held-out error, in standard deviations of the fields."""
    calibration = model.surrogate.calibration
    if calibration is None:
        return DEFAULT_SIGMA
    return float((calibration.residual_std / model.surrogate.basis.field_std.cpu()).square().mean().sqrt())


def _model_std(model: Model, sensors: Sensors) -> torch.Tensor | None:
    calibration = model.surrogate.calibration
    if calibration is None:
        return None
    return calibration.residual_std[sensors.frame, sensors.node, sensors.field]


def read_field(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a target [T, M, V] of an npy file [T, M] or [T, M, V], or of an h5 file with one sample.

    Raises:
        UserError: there is no such file.
        DataError: it has another shape, or values that are not finite.
    """
    existing(path, "--target")
    if path.suffix.lower() in (".h5", ".hdf5"):
        data = open_fields(path)
        found, num = data.trajectory(0), data.num_samples
        data.close()
        if num != 1:
            raise DataError(f"{path}: {num} samples, expected one; name it with --target_row and --data")
    else:
        found = np.asarray(open_npy(path))
    found = found[..., None] if found.ndim == 2 and shape[2] == 1 else found
    if found.shape != shape or found.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: {found.dtype} {found.shape}, expected numbers [T, M, V] = {shape}, the frames, nodes "
            "and fields of the model"
        )
    if num_bad := int((~(np.abs(found) <= np.finfo(np.float32).max)).sum()):  # no comparison holds for NaN
        raise DataError(f"{path}: {num_bad} values are NaN or infinite as float32; repair it")
    return found.astype(np.float32)


def read_sensors(path: Path, model: Model) -> Sensors:
    """Return the readings of a CSV file.

    Raises:
        UserError: there is no such file.
        DataError: a column is missing, a row names no node, frame or field, or a sigma is not above 0.
    """
    table = read_table(existing(path, "--sensors"))
    frames, nodes, num_fields = model.shape
    missing = [name for name in SENSOR_COLUMNS if name not in table.names]
    if num_fields > 1 and "field" not in table.names:
        missing.append("field")
    if missing:
        raise DataError(
            f"{path}: columns {', '.join(table.names)}, without {', '.join(missing)}; expected "
            f"{', '.join(SENSOR_COLUMNS)}" + (", field" if num_fields > 1 else "")
        )
    columns = {name: table.values[:, table.names.index(name)] for name in table.names}
    columns.setdefault("field", np.zeros(len(table.values)))
    for name, count in (("node", nodes), ("frame", frames), ("field", num_fields)):
        bad = np.flatnonzero((columns[name] % 1 != 0) | (columns[name] < 0) | (columns[name] >= count))
        if len(bad):
            raise DataError(
                f"{path}: reading {bad[0] + 1}: {name} {columns[name][bad[0]]:g}, expected 0..{count - 1}"
            )
    bad = np.flatnonzero(columns["sigma"] <= 0)
    if len(bad):
        raise DataError(f"{path}: reading {bad[0] + 1}: sigma {columns['sigma'][bad[0]]:g}, expected above 0")
    places = (torch.from_numpy(columns[n].astype(np.int64)) for n in ("node", "frame", "field"))
    numbers = (torch.from_numpy(columns[n].astype(np.float32)) for n in ("value", "sigma"))
    return Sensors(*places, *numbers)


@torch.no_grad()
def field_of(model: Model, unknowns: Unknowns, x: torch.Tensor) -> torch.Tensor:
    """Return the field [T, M, V] of standardised unknowns [d]."""
    c = unknowns.coefficients(unknowns.physical(x[None]))
    return model.fields(c)[0].cpu()


def document(
    config: InvertConfig,
    options: MachineOptions,
    model: Model,
    unknowns: Unknowns,
    target: Target,
    found: Found,
) -> dict[str, Any]:
    """Return what inverse.json holds."""
    best, std = unknowns.physical(found.x), unknowns.std * found.covariance.diagonal().clamp_min(0).sqrt()
    edge = (found.x <= unknowns.low + 1e-6) | (found.x >= unknowns.high - 1e-6)
    scale = unknowns.std[:, None] * unknowns.std
    split = model.surrogate.split
    params = model.surrogate.arrays.get("train_params")
    row = int(split.train[found.nearest])
    nearest: dict[str, Any] = {"sample": row, "misfit": found.nearest_misfit}
    if unknowns.are_latents:
        distance = (unknowns.known - found.x).square().sum(1)
        row = int(split.train[int(distance.argmin())])
        nearest["sample_nearest_in_latents"] = row  # the row of the picture to look at
    if params is not None:
        place = int(np.flatnonzero(split.train == row)[0])
        nearest["params"] = dict(zip(model.config["param_names"], params[place].tolist(), strict=True))
    report: dict[str, Any] = {
        "model": str(model.path),
        "target": target.name,
        "names": list(unknowns.names),
        "best": best.tolist(),
        "std": std.tolist(),
        "at_the_edge_of_the_box": [n for n, e in zip(unknowns.names, edge.tolist(), strict=True) if e],
        "misfit": found.misfit,
        "nearest_training_sample": nearest,
        "covariance": (scale * found.covariance).tolist(),
        "objective_of_starts": found.objective.tolist(),
        "prior_weight": config.prior_weight,
        "run": describe_run("simulgen_vae", options.seed),
    }
    field = field_of(model, unknowns, found.x)
    if target.field is not None:
        report["relative_l2"] = relative_l2(field.numpy(), target.field.numpy())
        near = field_of(model, unknowns, unknowns.known[found.nearest])
        nearest["relative_l2"] = relative_l2(near.numpy(), target.field.numpy())
    if target.sensors is not None:
        with torch.no_grad():
            c = unknowns.coefficients(unknowns.physical(found.x[None]))
            read = sensor_values(model, target.sensors, c)[0].cpu()
        report["sensor_rms"] = float((read - target.sensors.value).square().mean().sqrt())
    return report


def write_tables(out: Path, unknowns: Unknowns, found: Found) -> None:
    """Write best.csv, which infer takes as --params, and starts.csv; best_latents.npy is for --latents."""
    best = unknowns.physical(found.x)
    if unknowns.are_latents:
        save_array(out / "best_latents.npy", best[None].float().numpy())
    header = ",".join(unknowns.names)
    write_text(out / "best.csv", header + "\n" + ",".join(f"{v:.9g}" for v in best.tolist()) + "\n")
    names = ["start", "objective", *(f"{n}_start" for n in unknowns.names), *unknowns.names]
    lines = [",".join(names)]
    for k, value in enumerate(found.objective.tolist()):
        first, last = unknowns.physical(found.starts[k]).tolist(), unknowns.physical(found.ends[k]).tolist()
        lines.append(",".join([str(k), *(f"{v:.9g}" for v in (value, *first, *last))]))
    write_text(out / "starts.csv", "\n".join(lines) + "\n")


def _say(report: dict[str, Any], out: Path) -> None:
    log = get_logger()
    if len(report["names"]) <= 20:
        for name, value, std in zip(report["names"], report["best"], report["std"], strict=True):
            edge = "  (at the edge of the box)" if name in report["at_the_edge_of_the_box"] else ""
            log.info(f"{name}: {value:.4g} +- {std:.2g}{edge}")
    near = report["nearest_training_sample"]
    text = (
        f"{out / 'inverse.json'}: misfit {report['misfit']:.4g}, nearest training sample {near['misfit']:.4g}"
    )
    if "relative_l2" in report:
        text += f"; relative L2 of the field {report['relative_l2']:.4f}, of that sample "
        text += f"{near['relative_l2']:.4f}"
    if "sample_nearest_in_latents" in near:
        text += f"; the nearest picture is that of sample {near['sample_nearest_in_latents']}"
    log.info(text)


def invert_held_out(
    config: InvertConfig,
    options: MachineOptions,
    model: Model,
    unknowns: Unknowns,
    data: FieldData,
    out: Path,
) -> dict[str, Any]:
    """Invert held-out fields and compare with the nearest training sample and with the prior's mean.

    Returns:
        of each sample the field's relative L2 (ours, that of the nearest true training field) and the
        standardised parameter error (ours, that of the mean); their medians; also in inverse_test.json.
    """
    refuse_existing(out, ["inverse_test.json"], options.overwrite)
    split = model.surrogate.split
    rows = split.test[: config.num_test]
    if not len(rows):
        raise UserError("--num_test: the split has no test samples; use --target_row")
    has_params = not unknowns.are_latents and data.params is not None
    samples = []
    for row in rows:
        truth = torch.from_numpy(data.trajectory(int(row)))
        found = run_search(config, unknowns, field_target(config, model, truth), options.seed)
        near = min(relative_l2(data.trajectory(int(k)), truth.numpy()) for k in split.train)
        sample = {"sample": int(row), "nearest_l2": near}
        sample["relative_l2"] = relative_l2(field_of(model, unknowns, found.x).numpy(), truth.numpy())
        if has_params and data.params is not None:
            x = unknowns.standardised(torch.from_numpy(data.params[row]))
            sample["param_error"] = float((found.x - x).square().mean().sqrt())
            sample["param_error_of_mean"] = float(x.square().mean().sqrt())
        samples.append(sample)
    keys = [k for k in samples[0] if k != "sample"]
    medians = {k: float(np.median([s[k] for s in samples])) for k in keys}
    report = {"model": str(model.path), "median": medians, "samples": samples}
    write_json(out / "inverse_test.json", report)
    log = get_logger()
    log.info(
        f"{len(rows)} held-out samples: median relative L2 {medians['relative_l2']:.4f}, nearest training "
        f"sample {medians['nearest_l2']:.4f}"
    )
    if "param_error" in medians:
        log.info(
            f"median parameter error {medians['param_error']:.3f} standard deviations, of the mean "
            f"{medians['param_error_of_mean']:.3f}"
        )
    return report
