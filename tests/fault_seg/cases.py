"""What tests of whole fault_seg runs share: small data sets, models without training, quick options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.checkpoint import Checkpoint, save
from common.run import MachineOptions
from fault_seg.config import DataConfig
from fault_seg.config_infer import InferConfig
from fault_seg.make_data import make_data
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
