"""A whole-mesh VAE beside this package on the same runs. Run: python benchmarks/simulgen_vae_peer.py.

The peer is built as such surrogates often are: one-dimensional convolutions over time with a channel for
every node, fields scaled to one range, and an MLP from the parameters to the latents; with and without a
normalisation at the end of the decoder, which loses a run's amplitude. The better of the two counts. 64
runs of heat through a layer (1024 cells, 32 frames), 52 to learn from, 12 unseen. Beside it: the mean
field, POD-32 with a shared Gaussian process regression, and gp2. The table and
benchmarks/results/simulgen_vae_peer.json say the same. Times are CPU seconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks._table import NoOptions, publish, row  # noqa: E402
from benchmarks.simulgen_vae_scaling import rows_of  # noqa: E402
from common.cli import main, option, parse  # noqa: E402
from common.noise import torch_stream  # noqa: E402
from common.optim import adamw, clip_gradients, warmup_cosine  # noqa: E402
from common.run import BasicOptions  # noqa: E402
from simulgen_vae import baselines, gp2  # noqa: E402
from simulgen_vae.config_data import MakeDataConfig  # noqa: E402
from simulgen_vae.contest import predict_rows  # noqa: E402
from simulgen_vae.field_data import FieldData  # noqa: E402
from simulgen_vae.fields import open_fields  # noqa: E402
from simulgen_vae.make_data import make_data  # noqa: E402

LATENTS, MODES = 32, 32
WIDTHS = (128, 96, 64)


@dataclass(frozen=True)
class Config:
    """Sizes of the measurement."""

    smoke: bool = option(False, "tiny sizes, nothing is stored")
    epochs: int = option(200, "of the peer's network; its conditioner takes three times as many")


class MeshVae(nn.Module):
    """Encoder and decoder over time, M nodes as channels; [B, M, T] in -0.7..0.7.

    Args:
        nodes: M.
        frames: T.
        closing: normalise the output.
    """

    def __init__(self, nodes: int, frames: int, closing: bool) -> None:
        super().__init__()
        self.frames = frames // 2 ** len(WIDTHS)
        befores = (nodes, *WIDTHS[:-1])
        self.encoder = nn.Sequential(
            *(_block(nn.Conv1d(a, b, 5, 2, 2), b) for a, b in zip(befores, WIDTHS, strict=True))
        )
        self.top = nn.Linear(WIDTHS[-1] * self.frames, 2 * LATENTS)
        self.bottom = nn.Linear(LATENTS, WIDTHS[-1] * self.frames)
        self.decoder = nn.Sequential(
            *(_block(_up(a, b), b) for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)),
            _up(WIDTHS[0], nodes),
            nn.GroupNorm(1, nodes) if closing else nn.Identity(),
        )

    def encode(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance [B, latents]."""
        mean, logvar = self.top(self.encoder(u).flatten(1)).chunk(2, dim=1)
        return mean, logvar.clamp(-20, 6)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return [B, M, T]."""
        return self.decoder(self.bottom(z).view(len(z), WIDTHS[-1], self.frames))


def _block(layer: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.GroupNorm(8, width), nn.GELU())


def _up(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv1d(before, after, 5, padding=2))


def train_vae(model: MeshVae, u: torch.Tensor, epochs: int, seed: int) -> None:
    """Minimise the reconstruction and a small KL with AdamW under a cosine, batches of 16."""
    steps = epochs * -(-len(u) // 16)
    optimizer = adamw(model, 1e-3)
    schedule = warmup_cosine(optimizer, steps // 20, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(u), generator=torch_stream(seed, "peer order", epoch))
        for batch in order.split(16):
            mean, logvar = model.encode(u[batch])
            noise = torch.randn(mean.shape, generator=torch_stream(seed, "peer noise", epoch, int(batch[0])))
            z = mean + noise * torch.exp(0.5 * logvar)
            divergence = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(1).mean()
            loss = (model.decode(z) - u[batch]).square().mean() + 1e-6 * divergence
            _update(model, loss, optimizer, schedule)


def train_conditioner(net: nn.Module, x: torch.Tensor, z: torch.Tensor, epochs: int) -> None:
    """Minimise the squared error of the latents, all rows at once."""
    optimizer = adamw(net, 2e-3)
    schedule = warmup_cosine(optimizer, epochs // 20, epochs)
    for _ in range(epochs):
        _update(net, (net(x) - z).square().mean(), optimizer, schedule)


def _update(module: nn.Module, loss: torch.Tensor, optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_gradients(module.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def relative_l2(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean over rows of |u_hat - u| / |u|."""
    return float(((found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean())


def peer(
    u: torch.Tensor, params: torch.Tensor, num_train: int, epochs: int, seed: int, closing: bool
) -> tuple[float, float]:
    """Return the peer's errors on the rows behind the training ones: from parameters, and auto-encoding.

    Args:
        u: [N, T, M] fields.
        params: [N, P].
        num_train: rows to learn from.
        epochs: of the network.
        seed: of weights and order.
        closing: normalise the decoder's output.
    """
    train = u[:num_train]
    low, high = train.min(), train.max()
    scaled = (1.4 * (u - low) / (high - low) - 0.7).transpose(1, 2).contiguous()
    x = (params - params[:num_train].mean(0)) / params[:num_train].std(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MeshVae(u.shape[2], u.shape[1], closing)
        net = nn.Sequential(
            nn.Linear(x.shape[1], 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, LATENTS)
        )
    train_vae(model, scaled[:num_train], epochs, seed)
    with torch.no_grad():
        z = model.encode(scaled)[0]
    mean, std = z[:num_train].mean(0), z[:num_train].std(0).clamp_min(1e-6)
    train_conditioner(net, x[:num_train].float(), (z[:num_train] - mean) / std, 3 * epochs)
    with torch.no_grad():
        guesses = (mean + std * net(x[num_train:].float()), z[num_train:])
        fields = [(model.decode(g).transpose(1, 2) + 0.7) / 1.4 * (high - low) + low for g in guesses]
    return relative_l2(fields[0], u[num_train:]), relative_l2(fields[1], u[num_train:])


def ours(
    data: FieldData, truth: torch.Tensor, num_train: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return errors on the unseen rows, and CPU seconds, of the regression and of gp2."""
    train, test = rows_of(data, num_train, data.num_samples - num_train)
    train.seed = seed
    errors, times = {}, {}
    for name in ("gpr_shared", "gp2"):
        began = time.process_time()
        if name == "gp2":
            c = predict_rows(gp2.fit_predictor(train), test)
        else:
            fitted = baselines.fit_baseline(name, train, MODES)
            assert fitted is not None
            c = fitted.predict(test)
        times[name] = time.process_time() - began
        errors[name] = relative_l2(train.basis.decode(c), truth)
    return errors, times


def measure(config: Config, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return the lines."""
    num, num_train, nx, frames = (16, 12, 16, 8) if config.smoke else (64, 52, 32, 32)
    path = folder / "advdiff.h5"
    flags = MakeDataConfig("advdiff", num, nx, nx if nx == 32 else 8, frames, str(path), figures=False)
    make_data(flags, BasicOptions(), seed)
    data = open_fields(path)
    assert data.params is not None
    u = torch.stack([torch.from_numpy(data.trajectory(i)) for i in range(num)])[..., 0]
    began = time.process_time()
    epochs = 2 if config.smoke else config.epochs
    both = [
        peer(u, torch.from_numpy(data.params), num_train, epochs, seed, closing) for closing in (True, False)
    ]
    seconds, predicted = time.process_time() - began, min(both)[0]
    errors, times = ours(data, u[num_train:, ..., None], num_train, seed)
    data.close()
    mean = relative_l2(u[:num_train].mean(0).expand(num - num_train, -1, -1), u[num_train:])
    least = None if config.smoke else 1.0
    return [
        row("mean field", mean, "relative L2"),
        row("whole-mesh VAE + MLP, normalised output", both[0][0], "relative L2"),
        row("the same, auto-encoding", both[0][1], "relative L2"),
        row("whole-mesh VAE + MLP, plain output", both[1][0], "relative L2"),
        row("the same, auto-encoding", both[1][1], "relative L2"),
        row("whole-mesh VAE, both trainings", seconds, "CPU s"),
        row(f"POD-{MODES} + shared GPR", errors["gpr_shared"], "relative L2"),
        row("ours (gp2)", errors["gp2"], "relative L2"),
        row("ours (gp2), training and prediction", times["gp2"], "CPU s"),
        row(
            "ours / the better whole-mesh VAE + MLP",
            errors["gp2"] / predicted,
            "ratio",
            least,
            baseline="whole-mesh VAE + MLP",
        ),
        row(
            "the better whole-mesh VAE + MLP / POD + GPR",
            predicted / errors["gpr_shared"],
            "ratio",
            baseline="POD + GPR",
        ),
    ]


def run(argv: Sequence[str]) -> None:
    """Measure, print, and write benchmarks/results/simulgen_vae_peer.json."""
    parsed = parse(argv, Config, NoOptions, description=__doc__)
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        lines = measure(parsed.config, 0, Path(name))
    if parsed.config.smoke:
        for line in lines:
            print(line["what"], line["value"])
    else:
        publish("simulgen_vae_peer", lines, began)


if __name__ == "__main__":
    main(run)
