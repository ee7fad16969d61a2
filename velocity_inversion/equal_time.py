"""Our network and InversionNet trained from scratch for the same CPU time, side by side if cores allow."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from common.log import get_logger
from common.run import MachineOptions, TrainOptions
from velocity_inversion.config import TrainConfig, bench
from velocity_inversion.config_tools import EvaluateConfig
from velocity_inversion.train import MODEL_FILE, train


def trainings(
    config: EvaluateConfig, options: MachineOptions, out: Path
) -> dict[str, tuple[TrainConfig, TrainOptions]]:
    """Return {folder name: (configuration, options)} of both trainings: the bench preset, other budget."""
    ours = replace(
        bench(),
        train_data_path=config.train_data_path,
        val_data_path=config.val_data_path,
        max_cpu_s=config.equal_time,
        cache_dir=out / "cache",
    )
    run = TrainOptions(
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        threads=1,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        tensorboard=False,
    )
    return {
        "ours": (ours, replace(run, out=out / "ours")),
        "inversionnet": (replace(ours, model="inversionnet"), replace(run, out=out / "inversionnet")),
    }


def train_both(config: EvaluateConfig, options: MachineOptions, out: Path) -> EvaluateConfig:
    """Train both networks below `out` and return the configuration that compares them.

    One process a network, one thread each; both at once where there are two cores.

    Raises:
        UserError: a training failed; its own message stands above.
    """
    context = multiprocessing.get_context("spawn")
    wanted = trainings(config, options, out)
    together = (os.cpu_count() or 1) > 1
    get_logger().info(f"training both networks for {config.equal_time:g} CPU s each, one thread a network")
    running = []
    for name, arguments in wanted.items():
        process = context.Process(target=train, args=arguments, name=name)
        process.start()
        running.append(process)
        if not together:
            process.join()
    for process in running:
        process.join()
    failed = [process.name for process in running if process.exitcode]
    if failed:
        raise UserError(
            f"--equal_time: the training of {' and '.join(failed)} failed, see above; run train.py alone"
        )
    return replace(
        config,
        model_path=str(out / "ours" / MODEL_FILE),
        baseline_model=(str(out / "inversionnet" / MODEL_FILE), *config.baseline_model),
    )
