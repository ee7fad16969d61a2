"""How good the network is during training: one year from the truth, and whole rollouts beside copying.

All scores are sums over cells or samples divided by their number, exact for any sharing of work over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from common import device as devices
from common import distributed
from common.device import Precision
from common.noise import numpy_stream
from common.sampling import Draw
from voxel_ode.fields import Fields
from voxel_ode.items import make_item
from voxel_ode.model import VoxelAutoRegressor
from voxel_ode.normalize import Normalizer
from voxel_ode.prepped import PreppedSim
from voxel_ode.rollout_core import Rollout
from voxel_ode.schema import SCALAR_NAMES
from voxel_ode.wells import WellReader

GRID_SCORES = ("grid_pressure", "grid_temperature")
CLOSE = 0.05  # relative error that counts as close
LEAST = 1e-8  # of the truth in the relative error
ROLLOUT_SCORE = "rollout_score"
Sums = dict[str, float]


def spread_indices(num_samples: int, count: int) -> list[int]:
    """Return up to `count` samples spread evenly over an index, always the same: one from each equal part."""
    count = min(count, num_samples)
    if count == 0:
        return []
    inside = numpy_stream(0, "evaluation samples", num_samples, count).random(count)
    return [int((i + u) * num_samples / count) for i, u in enumerate(inside)]


@torch.no_grad()
def one_step_scores(
    model: VoxelAutoRegressor,
    dataset: Dataset[Any],
    num_batches: int,
    batch_size: int,
    precision: Precision,
    prefix: str,
) -> dict[str, float]:
    """Return `prefix/mse/<name>` (normalised) and `prefix/acc5/<name>` of the grids and the five scalars.

    Args:
        model: in evaluation mode.
        dataset: of one-year samples, without augmentation and noise.
        num_batches: at most, spread over the data set, shared among the ranks.
        batch_size: samples a batch.
        precision: of the arithmetic.
        prefix: "val" or "test".
    """
    chosen = spread_indices(len(dataset), num_batches * batch_size)  # type: ignore[arg-type]
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    names = (*GRID_SCORES, *SCALAR_NAMES)
    sums = {f"{kind}/{name}": 0.0 for kind in ("square", "close", "count") for name in names}
    for i in distributed.shard(len(batches)):
        batch = default_collate([dataset[Draw(index, index)] for index in batches[i]])
        batch = devices.move(batch, model.scales.mean.device)
        for name, value in _batch_sums(model, batch, precision).items():
            sums[name] += value
    sums = distributed.reduce_sums(sums)
    counts = {name: max(1.0, sums[f"count/{name}"]) for name in names}
    mse = {f"{prefix}/mse/{name}": sums[f"square/{name}"] / counts[name] for name in names}
    return mse | {f"{prefix}/acc5/{name}": sums[f"close/{name}"] / counts[name] for name in names}


def _batch_sums(model: VoxelAutoRegressor, batch: dict[str, Any], precision: Precision) -> Sums:
    """Return sums of squares and of close values, and their counts, of one batch."""
    with precision.autocast():
        following, scalars = model(Fields.from_batch(batch))
    truth, domains = batch["states"][:, 1], batch["masks"][:, [1, 0]] > 0
    sums: Sums = {}
    for channel, name in enumerate(GRID_SCORES):
        inside = domains[:, channel]
        pair = [x[:, channel][inside].double() for x in (following, truth)]
        physical = [x * model.scales.std[channel] + model.scales.mean[channel] for x in pair]
        sums |= _sums(name, pair, physical)
    pair = [scalars.double(), batch["scalars"][:, 0].double()]
    physical = [model.scales.physical_scalars(x) for x in pair]
    for column, name in enumerate(SCALAR_NAMES):
        sums |= _sums(name, [x[:, column] for x in pair], [x[:, column] for x in physical])
    return sums


def _sums(name: str, normalized: Sequence[torch.Tensor], physical: Sequence[torch.Tensor]) -> Sums:
    found, truth = physical
    close = (found - truth).abs() <= CLOSE * truth.abs().clamp(min=LEAST)
    return {
        f"square/{name}": float((normalized[0] - normalized[1]).square().sum()),
        f"close/{name}": float(close.sum()),
        f"count/{name}": float(close.numel()),
    }


@torch.no_grad()
def rollout_scores(
    model: VoxelAutoRegressor,
    simulations: Sequence[PreppedSim],
    normalizer: Normalizer,
    precision: Precision,
) -> dict[str, float]:
    """Return RMSEs of whole rollouts, those of copying the first state, and the score: 1 = copy, 0 = perfect.

    rollout_score = (RMSE_P / RMSE_P(copy) + RMSE_T / RMSE_T(copy)) / 2, NaN when a state is not finite.

    Args:
        model: in evaluation mode.
        simulations: on their full grids, shared among the ranks.
        normalizer: of the training data.
        precision: of the arithmetic.
    """
    names = ("net", "copy", "count")
    sums = {f"{name}/{channel}": 0.0 for name in names for channel in ("P", "T")}
    for i in distributed.shard(len(simulations)):
        for name, value in _rollout_sums(model, simulations[i], normalizer, precision).items():
            sums[name] += value
    sums = distributed.reduce_sums(sums)
    rmse = {
        f"{name}/{channel}": math.sqrt(sums[f"{name}/{channel}"] / max(1.0, sums[f"count/{channel}"]))
        for name in ("net", "copy")
        for channel in ("P", "T")
    }
    shares = [rmse[f"net/{channel}"] / max(rmse[f"copy/{channel}"], 1e-12) for channel in ("P", "T")]
    score = sum(shares) / 2
    return {
        ROLLOUT_SCORE: score if math.isfinite(score) else math.nan,
        "rollout/rmse_P_bar": rmse["net/P"],
        "rollout/rmse_T_C": rmse["net/T"],
        "rollout/copy_rmse_P_bar": rmse["copy/P"],
        "rollout/copy_rmse_T_C": rmse["copy/T"],
    }


def _rollout_sums(
    model: VoxelAutoRegressor, sim: PreppedSim, normalizer: Normalizer, precision: Precision
) -> Sums:
    """Return the sums of squared errors of one rollout and of copying, bar2 and deg C2, and cell counts."""
    item = default_collate([make_item(sim, 0, 0, normalizer)])
    device = model.scales.mean.device
    batch = devices.move(item, device)
    domains = batch["masks"][0, [1, 0]] > 0
    reader = WellReader.of(sim.wells, sim.masks()).to(device)
    first = torch.from_numpy(sim.states(0, 1)[0]).to(device)
    sums: Sums = {}
    with precision.autocast():
        rollout = Rollout(model, Fields.first_of(batch), features=reader.features)
        for year, predicted in enumerate(rollout.steps(sim.t_valid - 1), start=1):
            truth = torch.from_numpy(sim.states(year, year + 1)[0]).to(device)
            state = model.scales.physical(predicted.state.float())[0]
            for channel, name in enumerate(("P", "T")):
                inside = domains[channel]
                for kind, guess in (("net", state), ("copy", first)):
                    error = (guess[channel][inside] - truth[channel][inside]).double()
                    key = f"{kind}/{name}"
                    sums[key] = sums.get(key, 0.0) + float(error.square().sum())
                sums[f"count/{name}"] = sums.get(f"count/{name}", 0.0) + float(inside.sum())
    return sums
