"""Memory and files of velocity_inversion, for benchmarks/velocity_inversion.py.

As a script it does one task in its own process and prints the peak memory, MB: `train NETWORK` or
`infer MODEL DATA OUT`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._child import ask, peak_bytes
from benchmarks._table import row
from common.device import Precision
from common.files import write_json
from common.guard import Guard
from common.run import MachineOptions
from velocity_inversion.config import TrainConfig
from velocity_inversion.config_tools import InferConfig
from velocity_inversion.dataset import Preprocessing, ShotDataset, collate
from velocity_inversion.ensemble import save_ensemble
from velocity_inversion.geometry import FILE_NAME, Survey, challenge_survey, openfwi_survey
from velocity_inversion.infer import infer
from velocity_inversion.member import Member, MemberTask, Statistics, fit_statistics
from velocity_inversion.quick import GeneratedSource, untrained
from velocity_inversion.sources import open_source

Table = list[dict[str, Any]]
CPU = torch.device("cpu")
BATCH = 8
MEMBERS = (1, 5)
STEPS = 2


def batch_and_statistics(survey: Survey, count: int = BATCH) -> tuple[dict[str, Any], Statistics]:
    """Return a batch of `count` copies of one generated sample, and its statistics."""
    dataset = ShotDataset(GeneratedSource(survey), Preprocessing())
    return collate([dataset[0]] * count), fit_statistics(dataset, survey)


def new_task(
    config: TrainConfig,
    survey: Survey,
    statistics: Statistics,
    precision: Precision,
    *,
    compiled: bool = False,
) -> MemberTask:
    """Return the training of one network on the precision's device."""
    guard = Guard(precision.device)
    nothing: Any = []  # no validation samples
    return MemberTask(config, survey, statistics, nothing, guard, precision, 100, 10, compiled=compiled)


def train_a_little(config: TrainConfig, survey: Survey) -> None:
    """Train a network for two steps of batch 8."""
    batch, statistics = batch_and_statistics(survey)
    task = new_task(config, survey, statistics, Precision(CPU, torch.float32))
    for step in range(STEPS):
        task.step(batch, step)


def write_ensembles(folder: Path, survey: Survey, config: TrainConfig) -> None:
    """Write `<count>.pth`, random members, for each count of MEMBERS, and a batch of samples in `data`."""
    (folder / "data").mkdir()
    gathers, _ = GeneratedSource(survey).read_gathers(0)
    write_json(folder / "data" / FILE_NAME, survey.to_dict())
    np.save(folder / "data/data1.npy", np.stack([gathers] * BATCH))
    one = untrained(survey, config)
    for count in MEMBERS:
        torch.manual_seed(0)
        states = tuple(Member(config, survey).state_dict() for _ in range(count))
        weights = torch.full((count,), 1 / count)
        whole = replace(one, configs=(config,) * count, weights=weights, states=states)
        save_ensemble(folder / f"{count}.pth", whole)


def predict_all(model: Path, data: Path, out: Path) -> None:
    """Predict the samples of a folder as users do, without figures and simulations."""
    config = InferConfig(model_path=str(model), test_data_path=str(data), misfit="none", figures=0)
    infer(config, MachineOptions(device="cpu", precision="fp32", threads=1), out)


def memory_rows() -> Table:
    """Measure the peak memory of training both networks, and of inference with one and with five members."""
    ours, other = (ask(__file__, "train", name) for name in ("ensemble", "inversionnet"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ensembles(folder, openfwi_survey(), TrainConfig())
        one, five = (
            ask(__file__, "infer", folder / f"{count}.pth", folder / "data", folder / f"out{count}")
            for count in MEMBERS
        )
    peer = {"baseline": "InversionNet", "ratio": ours / other}
    return [
        row("peak memory, training, batch 8, InversionNet", other, "MB"),
        row("peak memory, training, batch 8, ours", ours, "MB", **peer),
        row("peak memory, inference, one member", one, "MB"),
        row("peak memory, inference, five members", five, "MB"),
        row("memory of inference, five members / one", five / one, "times", 1.2, baseline="one member"),
    ]


def cache_rows() -> Table:
    """Measure the files of a challenge sample: its gathers as they are, and decimated in the cache."""
    survey = challenge_survey()
    shape = survey.num_samples, survey.num_receivers
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        sample = Path(name) / "data/sample_0"
        sample.mkdir(parents=True)
        for file in survey.source_files:
            np.save(sample / file, rng.standard_normal(shape, dtype=np.float32))
        source = open_source(sample.parent)
        ShotDataset(source, cache_dir=Path(name) / "cache")
        raw, kept = (
            sum(path.stat().st_size for path in paths) / 1e6
            for paths in (source.gather_files(), (Path(name) / "cache").glob("*.npy"))
        )
    return [
        row("raw gathers of a challenge sample", raw, "MB"),
        row("cache of a challenge sample", kept, "MB", baseline="raw gathers", ratio=kept / raw),
    ]


def main(words: Sequence[str]) -> None:
    """Do one task and print the peak memory of this process, MB."""
    torch.set_num_threads(1)
    if words[0] == "train":
        train_a_little(TrainConfig(model=words[1], physics_every=0), openfwi_survey())
    else:
        model, data, out = map(Path, words[1:])
        predict_all(model, data, out)
    print(peak_bytes() / 1e6)


if __name__ == "__main__":
    main(sys.argv[1:])
