"""What a training step costs beside the peer's layout. Run: python benchmarks/voxel_ode_step.py.

The peer (github.com/Fchaubard/GeothermalVoxelNet) has a large kernel in the stem, two 3^3 convolutions a
block, GroupNorm over all channels and cells, FiLM and a pooled scalar head; it is built here with PyTorch's
own layers and our numbers of channels, blocks and weights. Both sides see the same random fields of 32^3
cells, batch 1, one year, forward, backward and AdamW, the fastest of some steps; ours chooses how its
convolutions are computed as training does. Then the kernel modes, with their multiply-adds, and the routes
of the convolutions beside each other: a whole step of a demo's network, and one layer.
The table and benchmarks/results/voxel_ode_step.json say the same.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks._table import publish, row  # noqa: E402
from common import device as devices  # noqa: E402
from common.noise import torch_stream  # noqa: E402
from common.optim import parameter_count  # noqa: E402
from voxel_ode.config import KERNEL_MODES, ModelConfig, TrainConfig  # noqa: E402
from voxel_ode.convolutions import BACKENDS, choose_backends, convolve, set_backends  # noqa: E402
from voxel_ode.fields import Fields  # noqa: E402
from voxel_ode.losses import grid_losses  # noqa: E402
from voxel_ode.model import VoxelAutoRegressor  # noqa: E402
from voxel_ode.normalize import Normalizer  # noqa: E402
from voxel_ode.schema import STATIC_NAMES  # noqa: E402
from voxel_ode.train import optimizer_of  # noqa: E402
from voxel_ode.units import YEAR  # noqa: E402
from voxel_ode.unroll import UnrolledLoss  # noqa: E402

CELLS, NUM_PARAMS = 32, 26
WIDTH, DEPTH, RADII = 32, 4, (2, 3)
STEPS = 3
DENSE_CELLS = 16  # where dense kernels or slow routes are compared
ROUTE_CELLS = (32, 24, 24)
COUNTED_CELLS = 4
Batch = dict[str, torch.Tensor]
Table = list[dict[str, Any]]


class PeerBlock(nn.Module):
    """Conv, GroupNorm, SiLU, Conv, GroupNorm, FiLM, residual, SiLU."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) for _ in range(2))
        self.film = nn.Linear(NUM_PARAMS, 2 * c)

    def forward(self, x: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        h = F.silu(self.norms[0](self.convs[0](x)))
        h = self.norms[1](self.convs[1](h))
        gamma, beta = self.film(params)[:, :, None, None, None].chunk(2, dim=1)
        return F.silu(x + (1 + gamma) * h + beta)


class Peer(nn.Module):
    """The peer's layout for 13 input channels, two grids and five scalars."""

    def __init__(self, c: int, depth: int, radius: int) -> None:
        super().__init__()
        kernel = 2 * radius + 1
        self.stem = nn.Sequential(
            nn.Conv3d(13, c, kernel, padding=radius, bias=False), nn.GroupNorm(1, c), nn.SiLU()
        )
        self.blocks = nn.ModuleList(PeerBlock(c) for _ in range(depth))
        self.head = nn.Sequential(
            nn.Conv3d(c, c, 3, padding=1, bias=False), nn.GroupNorm(1, c), nn.SiLU(), nn.Conv3d(c, 2, 1)
        )
        self.scalars = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, 5))

    def forward(self, x: torch.Tensor, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return grids and scalars."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, params)
        return self.head(x), self.scalars(x.mean((2, 3, 4)))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the same masked loss as ours."""
        x = torch.cat([batch["static"], batch["states"][:, 0]], dim=1)
        grids, scalars = self(x, batch["params"])
        masks = batch["masks"][:, [1, 0]]
        parts = grid_losses(grids * masks, batch["states"][:, 1], masks, torch.ones(2))
        return sum(parts, (scalars - batch["scalars"][:, 0]).square().mean())


def make_batch(cells: int) -> Batch:
    """Return random fields on a cube of cells, all active, with physically plausible numbers."""
    g = torch_stream(0, "step benchmark")
    grid = (cells,) * 3

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g)

    state = normal(1, 2, *grid)
    return {
        "static": normal(1, len(STATIC_NAMES), *grid),
        "states": torch.stack([state, state + 0.1 * normal(1, 2, *grid)], dim=1),
        "masks": torch.ones(1, 3, *grid) * torch.tensor([1.0, 1.0, 0.0])[:, None, None, None],
        "loss_mask": torch.ones(1, *grid),
        "params": torch.rand(1, NUM_PARAMS, generator=g),
        "scalars": normal(1, 1, 5),
        "scalars_raw": torch.zeros(1, 2, 5),
        "well_features": torch.full((1, 2, 6), 90.0),
        "well_rates": torch.full((1, 2), 50.0),
        "well_source": torch.zeros(1, 1, *grid),
        "rock": 10 ** (1.5 + 0.4 * normal(1, 3, *grid)),
        "porosity": torch.full((1, 1, *grid), 0.1),
        "initial": state,
        "origin": torch.zeros(1, 3, dtype=torch.int64),
        "cell_size": torch.tensor([[10.0, 50.0, 50.0]]),
        "dt_s": torch.full((1,), YEAR),
        "injection_c": torch.full((1,), 40.0),
        "wells_complete": torch.ones(1, dtype=torch.bool),
    }


def make_normalizer() -> Normalizer:
    """Return a normaliser of plain numbers."""
    count = len(STATIC_NAMES)
    lists: dict[str, Any] = {f"static_{n}": [float(n == "std")] * count for n in ("mean", "std")}
    lists |= {f"param_{n}": [0.5] * NUM_PARAMS for n in ("mean", "std", "min", "max")}
    return Normalizer.from_dict(
        lists
        | {
            "static_channels": list(STATIC_NAMES),
            "static_kinds": ["identity"] * count,
            "grid_mean": [200.0, 90.0],
            "grid_std": [10.0, 10.0],
            "delta_rms": [0.3, 1.0],
            "scalar_mean": [10.0] * 5,
            "scalar_std": [1.0] * 5,
            "scalar_log1p": [1.0] * 5,
            "params_raw": True,
            "channel_range": {},
            "dataset_id": "",
        }
    )


def make_ours(cells: int, backend: str = "auto", **changes: Any) -> UnrolledLoss:
    """Return our network with its loss, its convolutions computed as `backend` says."""
    model = VoxelAutoRegressor(ModelConfig(**changes), make_normalizer())
    devices.channels_last(model)
    set_backends(model, choose_backends(model, backend, (1, cells, cells, cells), torch.device("cpu")))
    return UnrolledLoss(model, (1.0, 1.0, 1.0), 1)


def step_ms(module: nn.Module, loss: Callable[[], torch.Tensor], steps: int = STEPS) -> float:
    """Return the CPU time of the fastest of some training steps, ms; the first one warms up."""
    optimizer = optimizer_of(module, TrainConfig())
    times = []
    for _ in range(steps + 1):
        began = time.process_time()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        times.append(time.process_time() - began)
    return 1e3 * min(times[1:])


def ours_ms(batch: Batch, backend: str = "auto", **changes: Any) -> tuple[float, int]:
    """Return the time of our step, ms, and the weights of the network."""
    cells = batch["static"].shape[-1]
    losses = make_ours(cells, backend, **changes)
    return step_ms(losses, lambda: losses(batch)["loss"]), parameter_count(losses)


def peer_rows() -> Table:
    """Measure our step and the peer's at equal numbers of channels, blocks and radius."""
    rows = []
    batch = make_batch(CELLS)
    for radius in RADII:
        size: dict[str, Any] = {"base_channels": WIDTH, "depth": DEPTH, "receptive_field_radius": radius}
        peer = Peer(WIDTH, DEPTH, radius)
        theirs = step_ms(peer, lambda net=peer: net.loss(batch))
        plain, weights = ours_ms(batch, flux_inputs=False, **size)
        flux, flux_weights = ours_ms(batch, **size)
        name = f"c {WIDTH}, depth {DEPTH}, r {radius}, {CELLS}^3"
        rows += [
            row(f"peer, {name}, {parameter_count(peer):,} weights", theirs, "ms"),
            row(
                f"ours, flux off, {weights:,} weights",
                plain,
                "ms",
                theirs,
                baseline="peer",
                ratio=plain / theirs,
            ),
            row(f"ours, flux on, {flux_weights:,} weights", flux, "ms", baseline="peer", ratio=flux / theirs),
        ]
    return rows


def mode_rows() -> Table:
    """Measure the three kernel modes at equal width."""
    batch = make_batch(DENSE_CELLS)
    size: dict[str, Any] = {"base_channels": WIDTH, "depth": DEPTH, "receptive_field_radius": 2}
    times = {mode: ours_ms(batch, kernel_mode=mode, **size)[0] for mode in KERNEL_MODES}
    name = f"c {WIDTH}, depth {DEPTH}, r 2, {DENSE_CELLS}^3"
    rows = []
    for mode in KERNEL_MODES:
        most = times["dense"] if mode == "separable" else None
        compared = {} if mode == "dense" else {"baseline": "dense", "ratio": times[mode] / times["dense"]}
        rows.append(row(f"kernel mode {mode}, {name}", times[mode], "ms", most, **compared))
    return rows


def backend_rows() -> Table:
    """Measure the whole step of a demo's network with each route of its convolutions."""
    batch = make_batch(DENSE_CELLS)
    size: dict[str, Any] = {"base_channels": 16, "depth": 4, "receptive_field_radius": 2, "multiscale": 2}
    times = {name: ours_ms(batch, name, **size)[0] for name in BACKENDS}
    what = f"a whole training step, c 16, depth 4, r 2, 2 levels, {DENSE_CELLS}^3"
    return [beside_native(f"{what}, {name}", name, times) for name in BACKENDS]


def beside_native(what: str, name: str, times: dict[str, float]) -> dict[str, Any]:
    """Return the row of a route's time, ms, beside that of the native one."""
    compared = {} if name == "native" else {"baseline": "native", "ratio": times[name] / times["native"]}
    return row(what, times[name], "ms", **compared)


def route(channels: int, name: str) -> tuple[float, torch.Tensor]:
    """Return ms of one 3^3 convolution, forward and backward, by a route, and what it gives."""
    g = torch_stream(0, "routes")
    x = devices.like_weights(torch.randn(1, channels, *ROUTE_CELLS, generator=g)).requires_grad_()
    weight = torch.randn(channels, channels, 3, 3, 3, generator=g) / (27 * channels) ** 0.5
    y = convolve(x, weight.requires_grad_(), "native")
    times = []
    for _ in range(STEPS):
        began = time.process_time()
        y = convolve(x, weight, name)
        y.backward(torch.ones_like(y))
        times.append(time.process_time() - began)
    return 1e3 * min(times), y.detach()


def route_rows() -> Table:
    """Measure one convolution by every route, how far it is from native, and a native one twice as wide."""
    found = {name: route(16, name) for name in BACKENDS}
    times, expected = {name: ms for name, (ms, _) in found.items()}, found["native"][1]
    cells = "x".join(map(str, ROUTE_CELLS))
    rows = []
    for name, (_, y) in found.items():
        error = float((y - expected).norm() / expected.norm())
        bound = 2e-2 if name == "bf16" else 1e-5
        rows.append(beside_native(f"3^3, 16 to 16 channels, {cells}, {name}", name, times))
        rows.append(row(f"its difference from native, {name}", error, "relative", bound))
    wide = route(32, "native")[0]
    compared: dict[str, Any] = {"baseline": "16 to 16 channels, native", "ratio": wide / times["native"]}
    return [*rows, row(f"3^3, 32 to 32 channels, {cells}, native", wide, "ms", **compared)]


def multiply_adds(mode: str, channels: int, depth: int, radius: int) -> float:
    """Return the multiply-adds of a voxel and year, counted in a network of tensors without memory.

    FiLM is left out: it is computed once a sample, not for each voxel.
    """
    sizes: dict[str, Any] = {"base_channels": channels, "depth": depth, "receptive_field_radius": radius}
    config = ModelConfig(kernel_mode=mode, flux_inputs=False, **sizes)
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = VoxelAutoRegressor(config, make_normalizer())
        fields = Fields.from_batch(make_batch(COUNTED_CELLS))
        fixed = network.static_features(fields, once=False)
        with counter:
            network.step(fixed, fields.state)
    return counter.get_total_flops() / 2 / COUNTED_CELLS**3


def count_rows() -> Table:
    """Count the multiply-adds of the three kernel modes at full width."""
    c, depth, radius = 128, 12, 3
    counts = {mode: multiply_adds(mode, c, depth, radius) for mode in KERNEL_MODES}
    rows = []
    for mode, count in counts.items():
        compared = {} if mode == "dense" else {"baseline": "dense", "ratio": count / counts["dense"]}
        what = f"multiply-adds a voxel, kernel mode {mode}, c {c}, depth {depth}, r {radius}"
        rows.append(row(what, count / 1e6, "M", **compared))
    return rows


def stem_rows() -> Table:
    """Measure a rollout's year with the static share of the stem computed once, and with the whole stem."""
    batch = make_batch(CELLS)
    model = make_ours(CELLS, base_channels=16, depth=DEPTH, receptive_field_radius=3, flux_inputs=False).model
    fields = Fields.from_batch(batch)
    found, states = {}, []
    with torch.no_grad():
        for once in (True, False):
            fixed = model.static_features(fields, once=once)
            times = []
            for _ in range(STEPS):
                began = time.process_time()
                states.append(model.step(fixed, fields.state)[0])
                times.append(time.process_time() - began)
            found[once] = 1e3 * min(times)
    difference = float((states[0] - states[-1]).abs().max())
    return [
        row("one year, stem whole", found[False], "ms"),
        row(
            "one year, static stem once",
            found[True],
            "ms",
            found[False],
            baseline="stem whole",
            ratio=found[True] / found[False],
        ),
        row("largest difference of the two", difference, "normalised", 1e-5),
    ]


def main() -> int:
    """Measure, print, and write benchmarks/results/voxel_ode_step.json."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = peer_rows() + mode_rows() + count_rows() + backend_rows() + route_rows() + stem_rows()
    publish("voxel_ode_step", rows, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
