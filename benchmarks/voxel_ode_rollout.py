"""What a forecast of full size costs. Run: python benchmarks/voxel_ode_rollout.py [--grid 326 70 76].

Masks and fields are made without simulating: 67 of 326 layers hold active cells, in two slabs. Case `cpu`
(or on `--device`): a year of the whole grid and of the active slabs alone, and both ways of the stem (static
response once, or every year), the fastest of some years in CPU seconds on a CPU; results are compared. Then
29 years by slabs, and the stem alone on the larger slab. Case `gpu`, where a CUDA device is found: 29 years
of a network of 128 channels, 12 blocks and r 3 in bf16, whole grid and slabs, as it is, compiled, and
compiled with a year's step recorded as a CUDA graph; seconds of the clock and peak memory beside what an H200
should need by operation counts. The tables and benchmarks/results/voxel_ode_rollout.json say the same.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._table import RESULTS, command_line, row, show, store_case  # noqa: E402
from benchmarks.voxel_ode_step import NUM_PARAMS, make_normalizer  # noqa: E402
from common import device as devices  # noqa: E402
from common.device import resolve_precision  # noqa: E402
from common.noise import torch_stream  # noqa: E402
from common.optim import parameter_count  # noqa: E402
from voxel_ode.config import ModelConfig  # noqa: E402
from voxel_ode.convolutions import choose_backends, set_backends  # noqa: E402
from voxel_ode.fields import Fields  # noqa: E402
from voxel_ode.graphs import Recorder, graph_recorder  # noqa: E402
from voxel_ode.model import VoxelAutoRegressor  # noqa: E402
from voxel_ode.regions import Region, plan_regions  # noqa: E402
from voxel_ode.rollout import GridRollout  # noqa: E402
from voxel_ode.schema import STATIC_NAMES  # noqa: E402
from voxel_ode.units import YEAR  # noqa: E402

SLABS = ((0.0, 60 / 326), (180 / 326, 187 / 326))  # fractions of Z
FULL = (326, 70, 76)
ACTIVE_SHARE = 0.15
YEARS = 29
FEWER_CELLS = 4.9  # at full size: 326 layers, 67 of them active
STEM_SAVED = 11 / 13  # of its multiply-adds: all but the two channels of the state
H200_SECONDS = {"whole": 1.5, "slabs": 0.45}  # calculated for 29 years; slabs 0.3 to 0.45
MODES = {"eager": (False, False), "compile": (True, False), "compile and graph": (True, True)}
Shape = tuple[int, int, int]
Table = list[dict[str, Any]]


def make_active(shape: Shape) -> torch.Tensor:
    """Return active cells, [Z, Y, X]: an ellipse of Y and X in each active layer, 15 % of all cells."""
    z, y, x = shape
    layers = torch.zeros(z)
    for low, high in SLABS:
        layers[round(low * z) : round(high * z)] = 1
    inside = ACTIVE_SHARE * z / float(layers.sum())
    radius = 2.0 * np.sqrt(inside / np.pi)
    grid = torch.meshgrid(torch.linspace(-1, 1, y), torch.linspace(-1, 1, x), indexing="ij")
    disc = (grid[0] ** 2 + grid[1] ** 2 <= radius**2).float()
    return layers[:, None, None] * disc


def make_fields(shape: Shape, device: torch.device) -> Fields:
    """Return random geology and a state on a grid, batch 1."""
    g = torch_stream(0, "rollout benchmark")
    active = make_active(shape)[None, None]

    def normal(channels: int) -> torch.Tensor:
        return torch.randn(1, channels, *shape, generator=g) * active

    state = normal(2)
    values = {
        "state": state,
        "static": normal(len(STATIC_NAMES)),
        "masks": torch.cat([active, active, torch.zeros_like(active)], dim=1),
        "params": torch.rand(1, NUM_PARAMS, generator=g),
        "initial": state,
        "rock": 10 ** (1.5 + 0.4 * normal(3)) * active,
        "porosity": 0.1 * active,
        "well_source": torch.zeros_like(active),
        "cell_size": torch.tensor([[10.0, 50.0, 50.0]]),
        "dt_s": torch.full((1,), YEAR),
        "injection_c": torch.full((1,), 40.0),
        "origin": torch.zeros(1, 3, dtype=torch.int64),
        "well_rates": torch.full((1, 2), 50.0),
        "well_now": torch.full((1, 6), 90.0),
        "well_next": torch.full((1, 6), 90.0),
        "previous_total": torch.zeros(1),
    }
    return Fields(**devices.move(values, device))


def make_network(sizes: dict[str, Any], shape: Shape, device: torch.device) -> VoxelAutoRegressor:
    """Return a network with random weights and the fastest routes of its convolutions."""
    torch.manual_seed(0)
    network = VoxelAutoRegressor(ModelConfig(**sizes), make_normalizer())
    with torch.no_grad():
        network.out.weight.normal_(0, 0.01)
    devices.channels_last(network)
    small = (1, *(min(24, n) for n in shape))
    set_backends(network, choose_backends(network, "auto", small, device, allow_bf16=False))
    return network.to(device).eval()


def clock(device: torch.device) -> float:
    """Return seconds: of the process on a CPU, of the wall elsewhere."""
    devices.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def fastest(function: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, Any]:
    """Return (seconds of the fastest call, its result)."""
    best, result = float("inf"), None
    for _ in range(repeats):
        began = clock(device)
        result = function()
        best = min(best, clock(device) - began)
    return best, result


def ways_of(fields: Fields, network: VoxelAutoRegressor) -> dict[str, Sequence[Region]]:
    """Return the regions of both ways to cover a grid."""
    active = (fields.masks[0, 0] > 0).cpu().numpy()
    z, y, x = (slice(0, n) for n in active.shape)
    return {"whole": [Region((z, y, x), (z, y, x))], "slabs": plan_regions(active, network)}


def measure(args: argparse.Namespace, shape: Shape) -> Table:
    """Return the rows of case cpu."""
    device = devices.resolve_device(args.device)
    precision = resolve_precision("auto" if devices.is_cuda(device) else "fp32", device)
    sizes = {"receptive_field_radius": args.radius, "base_channels": args.channels, "depth": args.depth}
    fields, network = make_fields(shape, device), make_network(sizes, shape, device)
    plain = make_network({**sizes, "flux_inputs": False}, shape, device)
    ways = ways_of(fields, network)
    cells = {name: sum(r.num_cells for r in regions) for name, regions in ways.items()}
    fewer, least = cells["whole"] / cells["slabs"], FEWER_CELLS if shape == FULL else None
    rows = [
        row("weights", parameter_count(network), ""),
        row("active cells", 100 * float(fields.masks[0, 0].mean()), "%"),
        row("cells computed, whole / slabs", fewer, "times", least=least, baseline="whole grid"),
    ]
    with torch.no_grad(), precision.autocast():
        rows += way_rows(network, fields, ways, args.repeats)
        rollout = GridRollout(network, fields, ways["slabs"])
        began = clock(device)
        for _ in rollout.steps(args.years):
            pass
        rows.append(row(f"{args.years} years by slabs", clock(device) - began, "s"))
        rows.append(row("peak memory", devices.peak_memory_bytes(device) / 2**30, "GiB"))
        slab = max([side.stop - side.start for side in region.read] for region in ways["slabs"])
        for other in (plain, network):
            rows += stem_rows(other, slab, args.repeats, device)
    return rows


def way_rows(
    network: VoxelAutoRegressor, fields: Fields, ways: dict[str, Sequence[Region]], repeats: int
) -> Table:
    """Return the rows of a year by both ways to cover the grid, each with both ways of the stem."""
    seconds: dict[str, float] = {}
    states: dict[str, torch.Tensor] = {}
    once = ", static stem once"
    for name, regions in ways.items():
        for keep in (False, True):
            rollout = GridRollout(network, fields, regions, keep_static=keep)
            key = f"{name}{once if keep else ''}"
            device = fields.state.device
            seconds[key], found = fastest(lambda r=rollout: r.step(fields.state), repeats, device)
            states[key] = found[0]
            del rollout, found
    apart = {name: float((state - states["whole"]).abs().max()) for name, state in states.items()}
    fewer = seconds[f"whole{once}"] / seconds[f"slabs{once}"]
    saved = seconds["slabs"] / seconds[f"slabs{once}"]
    return [
        *(row(f"a year, {name}", value, "s") for name, value in seconds.items()),
        row("whole / slabs", fewer, "times", least=3.0, baseline="whole grid"),
        row("slabs: stem every year / once", saved, "times", baseline="stem every year"),
        row("slabs differ from whole by", apart["slabs"], "std", most=1e-5),
        row("static stem once differs by", apart[f"slabs{once}"], "std", most=1e-5),
    ]


def stem_rows(network: VoxelAutoRegressor, slab: Sequence[int], repeats: int, device: torch.device) -> Table:
    """Return the rows of the stem alone: over all channels, and over the state's with the others' kept.

    Args:
        network: whose stem it is.
        slab: cells Z Y X.
        repeats: measurements.
        device: to measure.
    """
    count, static = network.stem.weight.shape[1], network.num_static
    everything = torch.randn(1, count, *slab, generator=torch_stream(0, "stem benchmark")).to(device)
    fixed, state = (devices.like_weights(x) for x in everything.tensor_split([static], dim=1))
    everything = devices.like_weights(everything)
    kept = network.stem(fixed, slice(0, static))
    whole, _ = fastest(lambda: network.stem(everything), repeats, device)
    once, _ = fastest(lambda: kept + network.stem(state, slice(static, None)), repeats, device)
    saved, flux = static / count, network.config.flux_inputs
    name, cells = f"stem, flux inputs {'on' if flux else 'off'}", " x ".join(map(str, slab))
    least, beside = None if flux else STEM_SAVED, "stem whole"
    return [
        row(
            f"{name}: multiply-adds saved by its static part once",
            saved,
            "share",
            least=least,
            baseline=beside,
            ratio=1 - saved,
        ),
        row(f"{name}: whole, {cells} cells", 1e3 * whole, "ms"),
        row(
            f"{name}: static part once, {cells} cells",
            1e3 * once,
            "ms",
            baseline=beside,
            ratio=once / whole,
        ),
    ]


def gpu_device() -> torch.device | None:
    """Return the CUDA device of this machine, None without one."""
    device = devices.resolve_device("auto")
    return device if devices.is_cuda(device) else None


def forget_peak(device: torch.device) -> None:
    """Give unused memory back and count the peak anew, on a CUDA device."""
    gc.collect()
    if devices.is_cuda(device):
        backend: Any = torch.get_device_module(device)
        backend.empty_cache()
        backend.reset_peak_memory_stats(device)


def forecast_cost(make: Callable[[], GridRollout], years: int, repeats: int) -> dict[str, Any]:
    """Return what a forecast costs: seconds to get ready and of the clock, peak GiB, its first year's state.

    All NaN, and no state, when memory runs out.
    """
    found: dict[str, Any] = dict.fromkeys(("ready_s", "seconds", "peak_gib"), float("nan")) | {"state": None}
    try:
        began = time.perf_counter()
        rollout = make()
        device = rollout.fields.state.device
        for _ in range(2):  # compile, choose kernels
            state = rollout.step(rollout.fields.state)[0]
        devices.synchronize(device)
        found["ready_s"] = time.perf_counter() - began
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            for _ in rollout.steps(years):
                pass
            devices.synchronize(device)
            times.append(time.perf_counter() - began)
        found["peak_gib"] = devices.peak_memory_bytes(device) / 2**30
        found |= {"seconds": min(times), "state": state.float().cpu()}
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        print(f"out of memory: {str(error).splitlines()[0]}", flush=True)
    return found


def measure_gpu(
    args: argparse.Namespace, shape: Shape, device: torch.device, recorder: Callable[..., Recorder]
) -> Table:
    """Return the rows of case gpu: both ways in all modes.

    Args:
        args: flags.
        shape: cells Z Y X.
        device: to measure.
        recorder: device -> what records a step.
    """
    precision = resolve_precision("bf16", device)
    radius, channels, depth = args.gpu_radius, args.gpu_channels, args.gpu_depth
    sizes = {"receptive_field_radius": radius, "base_channels": channels, "depth": depth}
    fields, network = make_fields(shape, device), make_network(sizes, shape, device)
    rows = [row("weights", parameter_count(network), "")]
    with torch.no_grad(), precision.autocast():
        for way, regions in ways_of(fields, network).items():
            states = {}
            for mode, (compiled, graph) in MODES.items():
                forget_peak(device)
                record = recorder(device) if graph else None
                make = partial(GridRollout, network, fields, regions, compiled=compiled, record=record)
                cost = forecast_cost(make, args.years, args.repeats)
                states[mode] = cost["state"]
                rows += gpu_rows(f"{way}, {mode}", cost, args.years, H200_SECONDS[way] * args.years / YEARS)
            rows += agreement(way, states)
    return rows


def gpu_rows(name: str, cost: dict[str, Any], years: int, limit: float) -> Table:
    """Return the rows of one way and mode; `limit` in seconds."""
    return [
        row(f"{name}: ready after", cost["ready_s"], "s"),
        row(f"{name}: {years} years", cost["seconds"], "s", most=limit),
        row(f"{name}: of the calculated time", cost["seconds"] / limit, "times", baseline="calculated time"),
        row(f"{name}: peak memory", cost["peak_gib"], "GiB"),
    ]


def agreement(way: str, states: dict[str, torch.Tensor | None]) -> Table:
    """Return how far the first year differs from mode to mode."""
    rows = []
    for one, other, most in (("compile", "eager", 2e-2), ("compile and graph", "compile", 1e-3)):
        a, b = states[one], states[other]
        apart = float("nan") if a is None or b is None else float((a - b).abs().max())
        rows.append(row(f"{way}: {one} differs from {other} by", apart, "std", most=most))
    return rows


def save(path: Path, case: str, rows: Table, began: float, machine: str, args: argparse.Namespace) -> None:
    """Print the rows of a case and replace them in the file; the other case stays."""
    show(rows)
    result = {
        "rows": rows,
        "command": command_line(),
        "grid": list(args.grid),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, {machine}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - began, 1),
    }
    store_case(path, case, result, alone="cpu")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", default="all", choices=("all", "cpu", "gpu"), help="which tables")
    parser.add_argument("--grid", type=int, nargs=3, default=FULL, help="Z Y X cells")
    parser.add_argument("--channels", type=int, default=16, help="width of the network of case cpu")
    parser.add_argument("--depth", type=int, default=4, help="blocks of its trunk")
    parser.add_argument("--radius", type=int, default=2, help="of its stem")
    parser.add_argument("--gpu_channels", type=int, default=128, help="width of the network of case gpu")
    parser.add_argument("--gpu_depth", type=int, default=12, help="blocks of its trunk")
    parser.add_argument("--gpu_radius", type=int, default=3, help="of its stem")
    parser.add_argument("--years", type=int, default=YEARS, help="of the forecasts")
    parser.add_argument("--repeats", type=int, default=2, help="measurements, the fastest counts")
    parser.add_argument("--device", default="cpu", help="of case cpu: auto, cpu or cuda")
    parser.add_argument(
        "--result", type=Path, default=RESULTS / "voxel_ode_rollout.json", help="file of the results"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write benchmarks/results/voxel_ode_rollout.json."""
    args = parsed(argv)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    z, y, x = args.grid
    if args.case in ("all", "cpu"):
        print(f"{z} x {y} x {x} cells, channels {args.channels}, depth {args.depth}, r {args.radius}")
        began = time.perf_counter()
        save(args.result, "cpu", measure(args, (z, y, x)), began, args.device, args)
    if args.case in ("all", "gpu"):
        device = gpu_device()
        if device is None:
            print("no CUDA device: GPU rows skipped")
            return 0
        name = torch.get_device_module(device).get_device_name(device)
        sizes = f"channels {args.gpu_channels}, depth {args.gpu_depth}, r {args.gpu_radius}, bf16"
        print(f"{z} x {y} x {x} cells, {sizes}, {name}")
        began = time.perf_counter()
        save(args.result, "gpu", measure_gpu(args, (z, y, x), device, graph_recorder), began, name, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
