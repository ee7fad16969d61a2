"""Run several trainings of the toy on the ranks of one torchrun job, and write down what each rank saw.

Usage: torchrun ... tests/ranks.py REPORT_DIR NAME "TOY FLAGS" [NAME "TOY FLAGS" ...]
`<REPORT_DIR>/<NAME>.<rank>.json` then holds the result or the error of that rank. The name "primitives" runs
no training but the functions of `common.distributed`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import distributed
from common.cli import main, parse
from common.errors import DataError, StrataError
from common.run import TrainOptions
from common.sampling import StepSampler
from tests.toy import ToyConfig, train_toy


def primitives(folder: Path) -> dict[str, Any]:
    """Return what every function of `common.distributed` gives on this rank."""
    with distributed.session(torch.device("cpu"), 60.0):
        rank = distributed.rank()
        mine = torch.tensor([float(rank + 1), 10.0 * rank])
        seen: dict[str, Any] = {
            "world": [distributed.world_size(), distributed.is_main(), distributed.local_rank()],
            "sum": distributed.reduce_sum(mine).tolist(),
            "max": distributed.reduce_max(mine).tolist(),
            "mean": distributed.reduce_mean(mine).tolist(),
            "untouched": mine.tolist(),
            "sums": distributed.reduce_sums({"a": 0.1 + rank, "b": float(rank)}),
            "gathered": distributed.gather_objects({"rank": rank}),
            "broadcast": distributed.broadcast_object(f"from {rank}"),
            "shards": {n: list(distributed.shard(n)) for n in (0, 1, 7)},
            "order": {
                n: [[d.index for d in draws] for draws in StepSampler(n, 3, 5, 0, 4)] for n in (1, 5, 24)
            },
        }
        tensors = [mine.clone(), torch.full((2, 2), float(rank))]
        distributed.broadcast_tensors(tensors)
        seen["tensors"] = [t.flatten().tolist() for t in tensors]
        seen["buffers"] = _averaged(rank)
        seen["main_first"] = _main_first(folder)
        seen["shared"] = _shared(rank)
        return seen


def _averaged(rank: int) -> dict[str, Any]:
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(float(rank))
    norm.running_var.fill_(1.0 + 2 * rank)
    norm.num_batches_tracked.fill_(rank)
    distributed.average_buffers(norm)
    return {name: buffer.flatten().tolist() for name, buffer in norm.named_buffers()}


def _main_first(folder: Path) -> bool:
    """Tell whether rank 0 had finished the block before this rank began it."""
    made = folder / "made by rank 0"
    with distributed.main_first():
        if distributed.is_main():
            time.sleep(0.3)
            made.touch()
        return made.exists()


def _shared(rank: int) -> list[Any]:
    """Return the error after rank 1 alone found one, after all found one, and after none did."""
    found: list[Any] = []
    for failing in ({1}, {0, 1}, set()):
        try:
            with distributed.shared_errors():
                if rank in failing:
                    raise DataError(f"file missing on rank {rank}")
            found.append(None)
        except StrataError as error:
            found.append([type(error).__name__, str(error), error.shared, error.exit_code])
    return found


def run(argv: Sequence[str]) -> int:
    """Run each named case and return the exit code of the last."""
    torch.set_num_threads(1)
    folder, code = Path(argv[0]), 0
    for name, flags in zip(argv[1::2], argv[2::2], strict=True):
        if name == "primitives":
            seen = primitives(folder)
        else:
            seen, code = _train(flags.split())
        report = folder / f"{name}.{os.environ['RANK']}.json"
        report.write_text(json.dumps(seen), encoding="utf-8")
    return code


def _train(flags: list[str]) -> tuple[dict[str, Any], int]:
    parsed = parse(flags, ToyConfig, TrainOptions)
    try:
        result = train_toy(parsed.config, parsed.run, parsed.origins)
    except StrataError as error:
        report = {"error": type(error).__name__, "message": str(error), "shared": error.shared}
        return report, error.exit_code
    return asdict(result), result.exit_code


if __name__ == "__main__":
    main(run)
