"""Validation alone: scores of a checkpoint on the validation samples, and its predictions as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from common import distributed
from common.errors import DataError, UserError
from common.files import require_writable, write_json
from common.log import get_logger
from common.run import MachineOptions, describe_run, machine
from common.sampling import Draw
from fault_seg.calibration import cube_maps
from fault_seg.config import TrainConfig
from fault_seg.dataset import VolumePairs
from fault_seg.infer import load
from fault_seg.maps import Volumes, volumes_from
from fault_seg.metrics import mean_scores, score_cube
from fault_seg.train_data import make_valid_set
from fault_seg.volumes import write_volume


def check(config: TrainConfig, options: MachineOptions, out: Path) -> dict[str, Any] | None:
    """Score `--check` on the validation samples; write check.json and `predict_{i}_{name}.bin` into `out`.

    Raises:
        UserError: `out` holds an earlier check.
        DataError: the checkpoint is of another kind, network or set of heads, or the samples are bad.
    """
    with machine(options) as device:
        with distributed.shared_errors():
            model = load(config.check, device, precision=options.precision)
            asked = (config.task, config.network, config.heads)
            if (model.kind, model.layout, model.heads) != asked:
                raise DataError(
                    f"--check {config.check}: checkpoint is kind {model.kind}, network {model.layout}, heads "
                    f"{' '.join(model.heads)}; expected {asked[0]} {asked[1]} {' '.join(asked[2])}; change "
                    "--task, --network or the heads"
                )
            valid = make_valid_set(config, options.seed)
            if isinstance(valid, VolumePairs) and distributed.is_main():
                valid.check()
            if (out / "check.json").exists() and not options.overwrite:
                raise UserError(f"{out}: holds an earlier check; add --overwrite or choose another --out")
        get_logger().info(f"{config.check}: {len(valid)} validation samples")
        if options.dry_run or not distributed.is_main():
            return None
        require_writable(out)
        scores = []
        for i in range(len(valid)):
            item = valid[Draw(i, i)]
            maps, tau = cube_maps(model, item)
            found = volumes_from(maps, model.heads, model.layout, tau)
            truth = {n: v[0].numpy() for n, v in item.items() if isinstance(v, torch.Tensor) and v.dim() == 4}
            scores.append(score_cube(found, truth, model.threshold))
            _write(out, i, found)
        mean = mean_scores(scores)
        run = describe_run("fault_seg", options.seed)
        document = {"run": run, "model": config.check, "threshold": model.threshold, "mean": mean}
        write_json(out / "check.json", {**document, "samples": scores})
        for name, value in mean.items():
            get_logger().info(f"{name}: {value:.4g}")
        return document


def _write(out: Path, number: int, found: Volumes) -> None:
    """Write the volumes of one sample as training files hold them: angles over 180 times probability."""
    for name, values in found.items():
        gated = values * found["fsem"] if name in ("fdip", "fstrike") else values
        write_volume(out / f"predict_{number}_{name}.bin", gated)
