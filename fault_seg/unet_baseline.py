"""A network trained for some CPU seconds on the training cubes, as the baseline of an evaluation."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from common import device as devices
from common.device import Precision
from common.guard import Guard
from common.log import get_logger
from common.sampling import StepSampler, train_loader
from fault_seg.config import TrainConfig
from fault_seg.dataset import VolumePairs
from fault_seg.maps import Model
from fault_seg.model import fuse_batch_norm
from fault_seg.train import FaultTask

CROP = 32
BATCH = 2
TRIAL_STEPS = 3  # that tell how many steps fit the time
MIN_STEPS = 4


def train_baseline(
    data: Path,
    seconds: float,
    device: torch.device,
    precision: Precision,
    *,
    network: str = "unet",
    seed: int = 0,
) -> Model:
    """Return a network for faults alone, trained for about `seconds` of CPU time on crops of 32^3.

    Args:
        data: folder of make_data.
        seconds: CPU seconds of the whole process, reading included.
        device: where it is trained.
        precision: of the arithmetic.
        network: layout.
        seed: of order, crops and changes.
    """
    folders = data / "data_train", data / "target_train"
    shape = VolumePairs(*folders, (0, 0, 0), ("fault",)).shape
    size = min(CROP, min(shape) // 16 * 16)
    config = TrainConfig(
        network=network,
        data=data,
        crop=(size,),
        batch_train=BATCH,
        rgt=False,
        dhr=False,
        ema=0.99,
        warmup_steps=10,
    )
    pairs = VolumePairs(
        *folders, (0, 0, 0), ("fault",), seed=seed, crop_shape=config.crop_shape, augmented=True
    )
    with Guard(device) as guard:
        began = time.process_time()
        _run(FaultTask(config, pairs, guard, precision, TRIAL_STEPS), pairs, seed, TRIAL_STEPS, seconds)
        step_seconds = max((time.process_time() - began) / TRIAL_STEPS, 1e-3)
        steps = max(MIN_STEPS, int(seconds / step_seconds))
        torch.manual_seed(seed)
        task = FaultTask(config, pairs, guard, precision, steps, seed=seed)
        began = time.process_time()
        done = _run(task, pairs, seed, steps, seconds)
    used = time.process_time() - began
    get_logger().info(f"baseline {network}: {done} of {steps} steps in {used:.1f} CPU s")
    return model_of(task, precision)


def model_of(task: FaultTask, precision: Precision) -> Model:
    """Return a copy of the averaged network of a task, ready to predict."""
    device, layout = task.guard.device, task.train_config.network
    return Model(
        network=devices.channels_last(fuse_batch_norm(task.update.averaged)).to(device),
        layout=layout,
        kind="infer",
        heads=task.train_config.heads,
        config=task.config,
        path=Path(layout),
        sha256="",
        device=device,
        precision=precision,
    )


def _run(task: FaultTask, pairs: VolumePairs, seed: int, steps: int, seconds: float) -> int:
    """Train until the steps or the CPU seconds are used up; return the steps done."""
    began = time.process_time()
    sampler = StepSampler(len(pairs), BATCH, seed, 0, steps)
    for step, batch in enumerate(train_loader(pairs, sampler)):
        task.step(devices.move(batch, task.guard.device), step)
        if time.process_time() - began > seconds and step + 1 >= MIN_STEPS:
            return step + 1
    return steps
