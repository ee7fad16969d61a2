"""Inference over a survey of any size, streamed: the file in, tiles through the network, files out.

1. The image is normalised by one rule for the whole survey and run tile by tile along the inlines; finished
   slabs of fault probability, dip, strike, image and time correction go to scratch files on disk.
2. The geological time is solved once for the survey, on a coarser grid when memory asks for it.
3. The scratch files are turned into the output volumes, inline by inline.

Only slabs are in memory. Under torchrun each rank computes its inlines; rank 0 writes the files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common import blocks, distributed
from common.log import get_logger
from common.normalization import ClippedZScore
from common.running_stats import Reservoir
from fault_seg.geotime import monotone, reflection_slopes, solve_from_slopes
from fault_seg.maps import Model, fault_angles, split_maps
from fault_seg.scratch import Scratch
from fault_seg.slabs import WINDOW_BYTES, Volume
from fault_seg.time_tiles import align

RESERVOIR_SAMPLES = 1_000_000
RESERVOIR_PIECE = 1 << 18
MIN_FAULT_WEIGHT = 0.2  # of the slopes at a fault, as in fault_seg.geotime
# Peak of the networks in float32, bytes a voxel of a tile; measuring the slopes takes about as much.
TILE_BYTES = {"hr": 320, "unet": 700, "mtl": 1400}
SLOPE_BYTES = 320
SLOPE_HALO = 16  # voxels: four sigmas of the structure tensor
MIN_SLOPE_BUDGET = 64 << 20


@dataclass(frozen=True)
class Plan:
    """How the survey is cut: tiles, the blend weights' presence, and what was chosen for them."""

    tiles: list[blocks.Tile]
    block: tuple[int, ...]
    exact: bool


def survey_rule(
    volume: Volume, seed: int = 0, polarity: int = 1, max_bytes: int = WINDOW_BYTES
) -> ClippedZScore:
    """Return the normalisation of the survey, from a sample of its live, non-zero values; NaN is left out.

    Raises:
        DataError: no trace is live.
    """

    def signal() -> Iterator[np.ndarray]:
        for x0, slab in volume.slabs(max_bytes):
            values = slab * np.float32(polarity)
            values[:, volume.null[:, x0 : x0 + slab.shape[2]]] = 0
            yield values

    return rule_of(signal(), seed)


def rule_of(slabs: Iterable[np.ndarray], seed: int = 0) -> ClippedZScore:
    """Return the normalisation of what comes in slabs, from a sample of its values that are not 0 or NaN.

    Raises:
        DataError: there is none.
    """
    reservoir = Reservoir(RESERVOIR_SAMPLES, seed, "survey normalisation")
    for slab in slabs:
        values = slab[(slab != 0) & ~np.isnan(slab)]
        for start in range(0, len(values), RESERVOIR_PIECE):  # it needs many bytes for each new value
            reservoir.update(values[start : start + RESERVOIR_PIECE])
    return ClippedZScore.from_sample(reservoir.values)


def make_plan(model: Model, shape: tuple[int, int, int], block: int, overlap: str, max_memory: float) -> Plan:
    """Return tiles that fit `max_memory` GiB: blended ones, or with a halo that makes them exact.

    Raises:
        UserError: the budget is too small for any tile.
    """
    exact = overlap == "exact" and bool(model.radius)  # a network of rgt alone has no local output
    halo = (model.radius or 0) if exact else 0
    share = 0 if exact else min(int(overlap) if overlap.isdecimal() else 32, block // 2)
    channels = 9 + model.has_spread
    # Statistics over space make the tiles of mtl differ: the whole volume where it fits.
    limit = max(shape) if model.layout == "mtl" else block
    chosen = blocks.choose_block(
        shape,
        TILE_BYTES[model.layout] + 8 * (model.in_channels - 1),
        halo,
        max_memory * 2**30,
        model.multiple,
        slab_bytes_per_voxel=4 * channels if exact else 12 * channels + 8,
        cache_bytes_per_voxel=4 * model.in_channels,
        limit=max(limit, model.multiple),
        overlap=share,
        beyond_edge=False,
    )
    if exact:
        tiles = blocks.plan_exact(shape, chosen, halo, model.multiple, beyond_edge=False)
    else:
        tiles = blocks.plan_blended(shape, chosen, share, model.multiple)
    return Plan(tiles, chosen, exact)


def warn_of_tiles(model: Model, plan: Plan, max_memory: float) -> None:
    """Warn where the tiles of a network with statistics over space cannot agree with the whole volume."""
    if model.layout == "mtl" and len(plan.tiles) > 1:
        get_logger().warning(
            f"warning: {model.path}: InstanceNorm measures every tile for itself, so {len(plan.tiles)} tiles "
            f"differ from the whole volume, which --max_memory {max_memory:g} GiB cannot hold; raise it, or "
            "use a model of layout hr"
        )


def image_planes(volume: Volume, rule: ClippedZScore, polarity: int) -> Callable[[int], np.ndarray]:
    """Return a function that gives inline x of the survey as a network takes it, [1, n1, n2]."""

    def read_plane(x: int) -> np.ndarray:
        plane = volume.read(x, x + 1)[:, :, 0] * np.float32(polarity)
        normalised = rule.apply(plane).astype(np.float32)
        normalised[np.isnan(plane) | volume.null[:, x]] = 0  # the mean of the survey: nothing to see
        return normalised[None]

    return read_plane


def run_network(
    model: Model,
    read_plane: Callable[[int], np.ndarray],
    plan: Plan,
    scratch: Scratch,
    add_time: Scratch | None = None,
) -> None:
    """Run the network over this rank's inlines and store its volumes in `scratch`.

    Inlines that an earlier run of the same key has completed are passed over.

    Args:
        model: the network.
        read_plane: x -> its input on that inline, [C, n1, n2].
        plan: the tiles.
        scratch: takes fsem, fdip, fstrike, dhr, time, fstd, fgap, those that it has.
        add_time: holds the time in voxels that the network's correction is added to.
    """

    def write(x0: int, slab: np.ndarray) -> None:
        named = split_maps(slab, model.heads, model.layout)
        if "orient" in named:
            angles = fault_angles(named.pop("orient"), named["fsem"])
            named["fdip"], named["fstrike"], named["fgap"] = angles
        if add_time is not None:
            named["time"] = named["time"] + add_time.read("time", x0, x0 + slab.shape[3])
        for name in scratch.names:
            scratch.write(name, x0, named[name])
        scratch.mark(x0 + slab.shape[3])
        if progress is not None:
            progress(x0 + slab.shape[3])

    progress = _progress(plan.tiles[0].shape[-1])
    rank, world = distributed.rank(), distributed.world_size()
    run = blocks.run_exact if plan.exact else blocks.run_blended
    start, stop = blocks.planes_of(plan.tiles, rank, world)
    planes = scratch.done(start), stop
    aligned = needs_alignment(model, plan) and "time" in scratch
    if planes[0] < planes[1]:
        if planes[0] > start:
            get_logger().info(f"inlines {start} to {planes[0] - 1} are there from an earlier run")
        maps = _storing_times(model, plan, planes, scratch) if aligned else model.maps
        run(maps, blocks.PlaneCache(read_plane), plan.tiles, write, planes=planes)
    distributed.barrier()
    if aligned:
        _blend_aligned(plan, (start, stop), scratch)
        distributed.barrier()


def needs_alignment(model: Model, plan: Plan) -> bool:
    """Return whether every tile has a geological time of its own scale and offset."""
    return model.layout == "mtl" and "rgt" in model.heads and len(plan.tiles) > 1


def _storing_times(
    model: Model, plan: Plan, planes: tuple[int, int], scratch: Scratch
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `model.maps` that also stores the time of every tile; tiles come in the order of the plan."""
    order = iter(blocks.touching(plan.tiles, planes))
    place = -2 if model.has_spread else -1

    def maps(image: torch.Tensor) -> torch.Tensor:
        tile = next(order)
        result = model.maps(image)
        scratch.write_tile(tile.index, result[0, place][tile.crop].numpy())
        return result

    return maps


def _blend_aligned(plan: Plan, planes: tuple[int, int], scratch: Scratch) -> None:
    """Write the time of the survey, blended from the tiles' times brought to one scale and offset."""

    def stored(tile: blocks.Tile) -> np.ndarray:
        return scratch.read_tile(tile.index, [c.stop - c.start for c in tile.core])

    scales = align(plan.tiles, stored)
    order = iter(blocks.touching(plan.tiles, planes))

    def times(_: torch.Tensor) -> torch.Tensor:
        tile = next(order)
        scale, offset = scales[tile.index]
        return torch.from_numpy(np.float32(scale) * stored(tile) + np.float32(offset))[None, None]

    def nothing(slices: tuple[slice, ...]) -> np.ndarray:
        return np.zeros((1, *(s.stop - s.start for s in slices)), np.float32)

    if planes[0] < planes[1]:
        blocks.run_blended(
            times, nothing, plan.tiles, lambda x0, slab: scratch.write("time", x0, slab[0]), planes=planes
        )


def _progress(num_inlines: int) -> Callable[[int], None] | None:
    """Return a function that says how far the network is, at most every five seconds."""
    if not distributed.is_main():
        return None
    started = last = time.perf_counter()

    def say(done: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last > 5:
            last = now
            left = (now - started) * (num_inlines - done) / max(done, 1)
            get_logger().info(f"inline {done} of {num_inlines}, about {left:.0f} s left")

    return say


def solve_survey_time(
    scratch: Scratch, image: Callable[[int, int], np.ndarray], max_memory: float
) -> Callable[[int, int], np.ndarray]:
    """Solve the geological time of the survey; return a function (x0, x1) -> tau [n1, n2, k] in voxels.

    Slopes are measured tile by tile; when the whole survey does not fit `max_memory` GiB, they are averaged
    over blocks and the system is solved on that coarser grid. `image(x0, x1)` gives the clean image.
    """
    n1, n2, _ = scratch.shape
    budget = max_memory * 2**30
    factor = _decimation(scratch.shape, budget)
    coarse = tuple(-(-n // factor) for n in scratch.shape)
    sums = [np.zeros(coarse, np.float32) for _ in range(4)]  # P w, Q w, w, voxels

    def measure(tile: torch.Tensor) -> torch.Tensor:
        return torch.stack(reflection_slopes(tile[0, 0]))[None]

    def add(x0: int, slab: np.ndarray) -> None:
        P, Q, weight = slab
        x1 = x0 + slab.shape[3]
        if "fsem" in scratch:
            weight = weight * np.maximum(1 - scratch.read("fsem", x0, x1), np.float32(MIN_FAULT_WEIGHT))
        parts = (P * weight, Q * weight, weight, np.ones_like(weight))
        for total, part in zip(sums, parts, strict=True):
            total[:, :, x0 // factor : -(-x1 // factor)] = _block_sums(part, factor)

    block = blocks.choose_block(
        scratch.shape,
        SLOPE_BYTES,
        SLOPE_HALO,
        max(budget, MIN_SLOPE_BUDGET),
        factor,
        slab_bytes_per_voxel=48,
        cache_bytes_per_voxel=4,
        beyond_edge=False,
    )
    tiles = blocks.plan_exact(scratch.shape, block, SLOPE_HALO, factor, beyond_edge=False)
    blocks.run_exact(measure, blocks.PlaneCache(lambda x: image(x, x + 1)[None, :, :, 0]), tiles, add)
    weight = torch.from_numpy(sums[2])
    P, Q = (torch.from_numpy(total) / weight.clamp_min(1e-6) for total in sums[:2])
    tau = solve_from_slopes(P, Q, weight / torch.from_numpy(sums[3]))
    # Cell centres of the coarse grid, in voxels.
    deviation = (tau - torch.arange(coarse[0])[:, None, None]) * factor

    def read(x0: int, x1: int) -> np.ndarray:
        z = torch.arange(n1, dtype=torch.float32)[:, None, None]
        return (_interpolated(deviation, factor, (n1, n2), (x0, x1)) + z).numpy()

    return read


def _decimation(shape: tuple[int, int, int], budget: float) -> int:
    """Return by how much each axis is decimated for the solve to fit `budget` bytes: 1, 2, 4, 8 or 16."""
    factor = 1
    while SLOPE_BYTES * math.prod(shape) / factor**3 > budget and factor < 16:
        factor *= 2
    return factor


def _block_sums(values: np.ndarray, factor: int) -> np.ndarray:
    """Return sums over blocks of factor^3 voxels; the last block of an axis may be smaller."""
    if factor == 1:
        return values
    for axis in range(3):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], factor), axis=axis)
    return values


def _interpolated(
    coarse: torch.Tensor, factor: int, shape: tuple[int, int], window: tuple[int, int]
) -> torch.Tensor:
    """Return `coarse` interpolated linearly at the voxels [n1, n2, x0:x1]; the ends are kept constant."""
    if factor == 1:
        return coarse[:, :, window[0] : window[1]]
    for axis, (start, stop) in enumerate(((0, shape[0]), (0, shape[1]), window)):
        place = ((torch.arange(start, stop) + 0.5) / factor - 0.5).clamp(0, coarse.shape[axis] - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=coarse.shape[axis] - 1)
        view = [1, 1, 1]
        view[axis] = -1
        share = (place - low).view(view)
        coarse = coarse.index_select(axis, low) * (1 - share) + coarse.index_select(axis, high) * share
    return coarse


def time_slabs(
    scratch: Scratch, live: np.ndarray, tau: Callable[[int, int], np.ndarray] | None, step: int
) -> tuple[Callable[[int, int], np.ndarray], tuple[float, float]]:
    """Return (function (x0, x1) -> time in voxels, (lowest, highest) over the live traces)."""

    def read(x0: int, x1: int) -> np.ndarray:
        correction = scratch.read("time", x0, x1)
        return correction if tau is None else tau(x0, x1) + correction

    low, high = np.inf, -np.inf
    for x0 in range(0, scratch.shape[2], step):
        x1 = min(x0 + step, scratch.shape[2])
        values = read(x0, x1)[:, live[:, x0:x1]]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return read, (low, high)


def finish_time(
    values: np.ndarray, limits: tuple[float, float], fsem: np.ndarray | None, threshold: float, clean: bool
) -> np.ndarray:
    """Return time in voxels as rgt 0..1, increasing down every trace off faults when `clean`."""
    rgt = ((values - limits[0]) / max(limits[1] - limits[0], 1e-12)).astype(np.float32)
    if clean:
        rgt = monotone(rgt, None if fsem is None else fsem >= threshold)
    return np.clip(rgt, 0, 1)


def describe(plan: Plan, model: Model, rule: ClippedZScore) -> Mapping[str, Any]:
    """Return what the side-car and the log say about a run."""
    return {
        "model": str(model.path.name),
        "model_sha256": model.sha256,
        "network": model.layout,
        "kind": model.kind,
        "receptive_radius": model.radius,
        "normalisation": rule.state_dict(),
        "block": list(plan.block),
        "tiles": len(plan.tiles),
        "tiling": "exact" if plan.exact else "blended",
    }
