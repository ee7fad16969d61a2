"""What the physics and the loss promise beyond their parts: grids, gradients, symmetric answers, signals."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.optim import warm_restarts
from tests.launch import ROOT, Job
from tests.toy_runs import load
from tests.velocity_inversion.cases import random_batch
from tests.velocity_inversion.test_model import Small
from velocity_inversion.augment import flip
from velocity_inversion.config import TrainConfig
from velocity_inversion.criterion import VelocityInversionLoss
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.losses import waveform_loss
from velocity_inversion.model import VelocityNet
from velocity_inversion.predictions import Tta, predict_batch
from velocity_inversion.simulate import Simulation, default_simulation, simulate

OFF_GRID = replace(
    openfwi_survey(2, 3),
    num_samples=300,
    source_xz=((103.0, 10.0), (420.0, 10.0)),
    receiver_xz=(((55.0, 10.0), (300.0, 10.0), (611.0, 10.0)),) * 2,
)


def smooth_section(shape: tuple[int, int] = (70, 70)) -> torch.Tensor:
    """Return velocities [1, Z, X] that rise with depth and bulge in the middle, km/s."""
    z, x = (torch.linspace(0, 1, n) for n in shape)
    return (2.0 + 1.0 * z[:, None] + 0.3 * torch.sin(torch.pi * x)[None])[None]


@torch.no_grad()
def test_a_coarser_grid_gives_nearly_the_same_gathers():
    """Twice the cell changes the gathers by less than 12 %; points off the grid simulate."""
    fine = replace(OFF_GRID, dx_m=5.0, dz_m=5.0, model_shape_zx=(140, 140))
    vp = smooth_section((140, 140))
    one, other = (simulate(vp, Simulation(fine, grid_m)) for grid_m in (5.0, 10.0))
    assert one.shape == other.shape and float(one.abs().max()) > 0
    assert float((one - other).norm() / one.norm()) < 0.12


@torch.no_grad()
def test_a_batch_is_its_samples():
    """Two sections simulated together have the gathers that each has alone."""
    vp = torch.cat([smooth_section(), smooth_section().flip(-2)])
    simulation = default_simulation(OFF_GRID)
    together = simulate(vp, simulation)
    alone = torch.cat([simulate(v[None], simulation) for v in vp])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_wave_equation_gradient_is_true():
    """In float64 the misfit's derivative with respect to a cell equals a finite difference (1e-3)."""
    survey = replace(OFF_GRID, num_samples=200, model_shape_zx=(24, 70))
    simulation = default_simulation(survey)
    truth = smooth_section((24, 70)).double()
    with torch.no_grad():
        observed = simulate(truth, simulation)
    start = (truth + 0.1 * torch.cos(torch.arange(70) / 9.0)).requires_grad_()

    def misfit(vp: torch.Tensor) -> torch.Tensor:
        return (simulate(vp, simulation) - observed).square().sum()

    (found,) = torch.autograd.grad(misfit(start), start)
    z, x = (int(i) for i in np.unravel_index(int(found[0].abs().argmax()), found[0].shape))
    step = torch.zeros_like(start)
    step[0, z, x] = 1e-4
    with torch.no_grad():
        expected = float(misfit(start + step) - misfit(start - step)) / 2e-4
    assert float(found[0, z, x]) == pytest.approx(expected, rel=1e-3)


def test_the_wave_equation_term_reaches_the_stem():
    """With every other weight at zero, the physics term alone moves the encoder's first weights."""
    survey = replace(openfwi_survey(2, 70), num_samples=300)
    config = replace(TrainConfig(), w_mape=0.0, w_l2=0.0, w_grad=0.0, w_scale=0.0, physics_samples=1)
    criterion, net = VelocityInversionLoss(config, survey), Small()
    batch = {**random_batch(survey), "flipped": torch.zeros(2, dtype=torch.bool), "position": torch.zeros(2)}
    batch = {**batch, "clean": batch["gathers"], "vp": torch.full((2, 1, 70, 70), 2.5)}
    criterion(net(batch), batch, physics=True)["total"].backward()
    first = next(p for name, p in net.named_parameters() if "stem" in name)
    assert first.grad is not None and float(first.grad.abs().max()) > 0


def test_the_truth_costs_nothing():
    """At the truth every part but the scale's is zero, also for a slow layer under a fast one."""
    t = torch.full((1, 1, 8, 8), 3.5)
    t[:, :, 4:] = 2.0
    parts = VelocityInversionLoss(TrainConfig())({"vp": t, "log_scale": torch.zeros_like(t)}, {"vp": t})
    assert [float(parts[name]) for name in ("mape", "l2", "grad", "physics")] == [0.0] * 4
    assert float(parts["scale"]) > 0
    gathers = torch.rand(1, 2, 5, 3)
    assert float(waveform_loss(gathers, gathers)) == 0


@torch.no_grad()
def test_a_symmetric_sample_has_a_symmetric_answer():
    """A sample that is its own mirror image has a prediction that is its own mirror image."""
    net, batch = Small().eval(), random_batch()
    turned = flip(batch, 690.0)
    names = [n for n, v in batch.items() if isinstance(v, torch.Tensor) and v.shape == turned[n].shape]
    both = {n: torch.cat([batch[n], turned[n]], dim=1) for n in names if batch[n].dim() > 1}
    found, _ = predict_batch(net, both, 690.0, Tta(flips=True))
    torch.testing.assert_close(found.flip(-1), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["sigmoid", "softplus"])
@torch.no_grad()
def test_output_keeps_its_bounds(activation: str):
    """Whatever the size of the input, the velocities stay within the bounds (sigmoid) or above the lower."""
    net = Small().eval()
    net.net = VelocityNet(
        (70, 70), 690.0, embed_dim=16, num_heads=2, num_layers=1, stem=8, activation=activation
    ).eval()
    batch = random_batch()
    for size in (1e-6, 1.0, 1e6):
        vp = net({**batch, "gathers": size * batch["gathers"]})["vp"]
        assert bool(torch.isfinite(vp).all()) and float(vp.min()) >= 1.5 - 1e-5
        assert activation == "softplus" or float(vp.max()) <= 4.5 + 1e-5


@pytest.mark.parametrize("steps_per_epoch", [3, 7])
def test_warm_restarts_count_epochs(steps_per_epoch: int):
    """With a first period of 10 epochs that doubles, the rate restarts at epochs 10, 30 and 70."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warm_restarts(optimizer, 10 * steps_per_epoch, 2, 0.01)
    rates = []
    for _ in range(75 * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    jumps = [i / steps_per_epoch for i in range(1, len(rates)) if rates[i] > rates[i - 1] + 0.5]
    assert jumps == [10, 30, 70]


def test_a_signal_leaves_a_good_checkpoint(data: Path, tmp_path: Path):
    """SIGTERM ends the training with 75 and a checkpoint that a resumed run takes to the end."""
    script = str(ROOT / "scripts/velocity_inversion/train.py")
    flags = ["--preset", "smoke", "--train_data_path", str(data / "train"), "--out", str(tmp_path / "run")]
    flags += ["--val_data_path", str(data / "val"), "--device", "cpu", "--threads", "1", "--no_tensorboard"]
    command = [sys.executable, script, *flags, "--max_steps", "4000", "--num_epochs", "4000"]
    job = Job([*command, "--num_models", "1", "--save_every", "1"], tmp_path / "said.txt")
    last = tmp_path / "run/member_00/last.pt"
    job.wait_for(lambda: bool(list((tmp_path / "run/member_00").rglob("*.pt"))), 90)
    job.send(signal.SIGTERM)
    assert job.process.wait(60) == 75, job.output
    found = next(p for p in (last, *(tmp_path / "run/member_00").rglob("last.pt")) if p.exists())
    checkpoint = load(found)
    assert checkpoint["step"] >= 1 and all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values())
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in checkpoint["state_dict"])
