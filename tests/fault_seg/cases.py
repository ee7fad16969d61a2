"""What tests of whole fault_seg runs share: small data sets, models without training, quick options."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.checkpoint import Checkpoint, save
from common.device import resolve_precision
from common.run import MachineOptions
from fault_seg import infer as infer_module
from fault_seg.config import DataConfig
from fault_seg.config_infer import InferConfig
from fault_seg.make_data import make_data
from fault_seg.maps import Model
from fault_seg.model import HEADS, build_network

SHAPE = (24, 20, 16)
QUICK = MachineOptions(device="cpu", precision="fp32")


def make_cubes(out: Path, shape: tuple[int, int, int] = SHAPE, ntrain: int = 3, nvalid: int = 1) -> Path:
    """Write a small data set of the generator and return its folder."""
    n1, n2, n3 = shape
    config = DataConfig(ntrain, nvalid, "smoke", n1, n2, n3, figures=False, faults=(2, 3))
    make_data(config, QUICK, out)
    return out


def save_model(path: Path, heads: tuple[str, ...] = HEADS, layout: str = "hr", kind: str = "infer") -> Path:
    """Save a checkpoint of a random network whose outputs vary in space, with probabilities around 0.5."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_network(layout, kind, heads)
        if layout == "hr" and "fault" in heads:
            with torch.no_grad():
                network.fault_head[1].weight *= 30
                network.fault_head[1].bias.zero_()
                network.orient_head[1].weight *= 100
        if layout == "hr" and "rgt" in heads:
            nn.init.normal_(network.rgt_head[1].weight, std=0.02)
    config = {"network": layout, "heads": list(heads)}
    save(path, Checkpoint("fault_seg", kind, config, {}, network.state_dict()))
    return path


def noisy_layers(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return a float32 image [n1, n2, n3] of dipping layers with noise."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    image = np.sin(0.8 * (z + 0.2 * y - 0.1 * x)) + np.sin(0.3 * z + 0.05 * x)
    noise = np.random.default_rng(seed).normal(size=shape)
    return (image + 0.3 * noise).astype(np.float32)


def infer_config(input_path: Path, model: Path, output: Path, **changes: Any) -> InferConfig:
    """Return a configuration without figures."""
    config = InferConfig(input=str(input_path), model=str(model), output=str(output), figures=False)
    return replace(config, **changes)


class CheapNetwork(nn.Module):
    """All outputs of `hr` from the image alone, voxel by voxel: what is left is the cost of streaming."""

    multiple = 16
    local_outputs = {"fault": ("fault_logit",)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return fault_logit, orient, dhr and delta."""
        return {"fault_logit": x, "orient": x.expand(-1, 6, -1, -1, -1), "dhr": x, "delta": 0 * x}


def measure_memory(argv: Sequence[str]) -> None:
    """Infer a raw cube with a cheap network and print {base, peak, seconds} of this process as JSON."""
    folder, n1, n2, n3, budget = Path(argv[0]), *map(int, argv[1:4]), float(argv[4])
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    precision = resolve_precision("fp32", cpu)
    model = Model(CheapNetwork().eval(), "hr", "infer", HEADS, {}, Path("cheap"), "", cpu, precision)
    infer_module.load = lambda *_, **__: model
    noisy_layers((32, 32, 32)).transpose(2, 1, 0).tofile(folder / "warm.bin")
    run = infer_config(folder / "warm.bin", Path(), folder / "warm", n1=32, n2=32, n3=32, max_memory=budget)
    infer_module.infer(run, QUICK)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    run = replace(run, input=str(folder / "big.bin"), output=str(folder / "big"), n1=n1, n2=n2, n3=n3)
    infer_module.infer(run, QUICK)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"base": base * 1024, "peak": peak * 1024, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    measure_memory(sys.argv[1:])
