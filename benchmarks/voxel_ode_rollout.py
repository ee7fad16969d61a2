"""What a year of a full-size forecast costs. Run: python benchmarks/voxel_ode_rollout.py [--grid 326 70 76].

Masks and fields are made without simulating: 67 of 326 layers hold active cells, in two slabs. Timed are the
whole grid, the active slabs alone, and both ways of the stem (static response once, or every year), the
fastest of some years in CPU seconds on a CPU; results are compared. Then 29 years by slabs. The table and
benchmarks/results/voxel_ode_rollout.json say the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._table import publish, row  # noqa: E402
from benchmarks.voxel_ode_step import NUM_PARAMS, make_normalizer  # noqa: E402
from common import device as devices  # noqa: E402
from common.device import resolve_precision  # noqa: E402
from common.noise import torch_stream  # noqa: E402
from voxel_ode.config import ModelConfig  # noqa: E402
from voxel_ode.convolutions import choose_backends, set_backends  # noqa: E402
from voxel_ode.fields import Fields  # noqa: E402
from voxel_ode.model import VoxelAutoRegressor, parameter_count  # noqa: E402
from voxel_ode.regions import Region, plan_regions  # noqa: E402
from voxel_ode.rollout import GridRollout  # noqa: E402
from voxel_ode.schema import STATIC_NAMES  # noqa: E402
from voxel_ode.units import YEAR  # noqa: E402

SLABS = ((0.0, 60 / 326), (180 / 326, 187 / 326))  # fractions of Z
FULL = (326, 70, 76)
ACTIVE_SHARE = 0.15
YEARS = 29
Shape = tuple[int, int, int]


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
        "origin": torch.zeros(1, 3, dtype=torch.int64),
        "well_rates": torch.full((1, 2), 50.0),
        "well_now": torch.full((1, 6), 90.0),
        "well_next": torch.full((1, 6), 90.0),
        "previous_total": torch.zeros(1),
    }
    return Fields(**devices.move(values, device))


def make_network(args: argparse.Namespace, shape: Shape, device: torch.device) -> VoxelAutoRegressor:
    """Return a network with random weights and the fastest routes of its convolutions."""
    torch.manual_seed(0)
    sizes = {"receptive_field_radius": args.radius, "base_channels": args.channels, "depth": args.depth}
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


def measure(args: argparse.Namespace, shape: Shape) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    device = devices.resolve_device(args.device)
    precision = resolve_precision("auto" if devices.is_cuda(device) else "fp32", device)
    fields, network = make_fields(shape, device), make_network(args, shape, device)
    active = (fields.masks[0, 0] > 0).cpu().numpy()
    z, y, x = (slice(0, n) for n in shape)
    ways = {"whole": [Region((z, y, x), (z, y, x))], "slabs": plan_regions(active, network)}
    seconds: dict[str, float] = {}
    states: dict[str, torch.Tensor] = {}
    with torch.no_grad(), precision.autocast():
        for name, regions in ways.items():
            for keep in (False, True):
                rollout = GridRollout(network, fields, regions, keep_static=keep)
                key = f"{name}{', static stem once' if keep else ''}"
                seconds[key], found = fastest(lambda r=rollout: r.step(fields.state), args.repeats, device)
                states[key] = found[0]
                del rollout, found
        rollout = GridRollout(network, fields, ways["slabs"])
        began = clock(device)
        for _ in rollout.steps(args.years):
            pass
        total = clock(device) - began
    once = ", static stem once"
    cells = {name: sum(r.num_cells for r in regions) for name, regions in ways.items()}
    reference = states["whole"]

    def apart(name: str) -> float:
        return float((states[name] - reference).abs().max())

    rows = [
        row("weights", parameter_count(network), ""),
        row("active cells", 100 * float(active.mean()), "%"),
        row("cells computed, whole / slabs", cells["whole"] / cells["slabs"], "times"),
        *(row(f"a year, {name}", value, "s") for name, value in seconds.items()),
        row("whole / slabs", seconds[f"whole{once}"] / seconds[f"slabs{once}"], "times", least=3.0),
        row("slabs: stem every year / once", seconds["slabs"] / seconds[f"slabs{once}"], "times"),
        row("slabs differ from whole by", apart("slabs"), "std", most=1e-5),
        row("static stem once differs by", apart(f"slabs{once}"), "std", most=1e-5),
        row(f"{args.years} years by slabs", total, "s"),
        row("peak memory", devices.peak_memory_bytes(device) / 2**30, "GiB"),
    ]
    return rows


def main() -> int:
    """Measure, print, and write benchmarks/results/voxel_ode_rollout.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--grid", type=int, nargs=3, default=FULL, help="Z Y X cells")
    parser.add_argument("--channels", type=int, default=16, help="width of the network")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the trunk")
    parser.add_argument("--radius", type=int, default=2, help="of the stem")
    parser.add_argument("--years", type=int, default=YEARS, help="of the last line")
    parser.add_argument("--repeats", type=int, default=2, help="years timed, the fastest counts")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    began = time.perf_counter()
    z, y, x = args.grid
    rows = measure(args, (z, y, x))
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU, {args.device}"
    print(f"{z} x {y} x {x} cells, channels {args.channels}, depth {args.depth}, r {args.radius}")
    publish(
        "voxel_ode_rollout", rows, began, grid=[z, y, x], threads=torch.get_num_threads(), machine=machine
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
