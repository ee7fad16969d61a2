"""Networks: sizes and symmetries; losses by hand; calibration."""

import math
from typing import Any

import pytest
import torch

from common.optim import parameter_count
from tests.velocity_inversion.cases import random_batch
from velocity_inversion import losses
from velocity_inversion.augment import flip
from velocity_inversion.ensemble import fit_weights
from velocity_inversion.geometry import openfwi_survey
from velocity_inversion.inversionnet import InversionNet
from velocity_inversion.model import VelocityNet, with_channels
from velocity_inversion.predictions import Tta, conformal_factor, predict_batch
from velocity_inversion.preprocess import NUM_OFFSETS, Amplitude


class Small(torch.nn.Module):
    """A small network that takes gathers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = VelocityNet((70, 70), 690.0, embed_dim=16, num_heads=2, num_layers=1, stem=8)

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Apply it without amplitude tables."""
        length = batch["gathers"].shape[2]
        tables = torch.zeros(NUM_OFFSETS, length), torch.ones(NUM_OFFSETS, length)
        return self.net(with_channels(batch, Amplitude(1.0, *tables, 700.0)))


def test_parameter_counts():
    """2.46 M weights by default, less than 5 M on the 300 x 1259 m grid, 24.4 M in InversionNet."""
    net = VelocityNet((70, 70), 690.0)
    counts = [parameter_count(part) for part in (net.encoder, net.decoder, net)]
    assert counts == [1_759_484, 705_424, 2_464_908]
    assert parameter_count(VelocityNet((1259, 300), 299.0)) == 2_724_850
    assert parameter_count(InversionNet()) == 24_409_123


@pytest.mark.parametrize(("shots", "receivers"), [(1, 31), (3, 70), (9, 24)])
@torch.no_grad()
def test_any_acquisition_runs(shots: int, receivers: int):
    """Any number of shots and receivers stays within the bounds; moving the sources changes the answer."""
    net = Small().eval()
    batch = random_batch(openfwi_survey(shots, receivers))
    found = net(batch)["vp"]
    assert found.shape == (2, 1, 70, 70) and 1.5 <= float(found.min()) <= float(found.max()) <= 4.5
    moved = {**batch, "source_xz": batch["source_xz"] + 100.0}
    assert float((net(moved)["vp"] - found).abs().max()) > 1e-5


@torch.no_grad()
def test_shot_order_and_padding_do_not_matter():
    """Permuted shots, and one more dead shot, give the same section."""
    net, batch = Small().eval(), random_batch()
    plain = net(batch)["vp"]
    names = ("gathers", "source_xz", "receiver_xz", "live")
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(net({n: batch[n][:, order] for n in names})["vp"], plain, atol=1e-5, rtol=0)
    padded = {n: torch.cat([batch[n], torch.zeros_like(batch[n][:, :1])], 1) for n in names}
    torch.testing.assert_close(net(padded)["vp"], plain, atol=1e-5, rtol=0)


def test_every_token_reaches_every_patch():
    """One output cell has a gradient with respect to every memory token."""
    net = Small().net
    memory = torch.randn(1, 9, 2, 16, requires_grad=True)
    u, _ = net.decoder(memory, torch.linspace(0, 1, 9)[None], net.start)
    u[0, 0, 35, 35].backward()
    assert memory.grad is not None and bool((memory.grad.abs().sum(-1) > 0).all())


@torch.no_grad()
def test_flip_averaging_is_exact():
    """f_TTA(P d) = P f_TTA(d) with random weights."""
    net, batch = Small().eval(), random_batch()
    plain, _ = predict_batch(net, batch, 690.0, Tta(flips=True))
    turned, _ = predict_batch(net, flip(batch, 690.0), 690.0, Tta(flips=True))
    torch.testing.assert_close(turned.flip(-1), plain, atol=1e-5, rtol=0)


def test_losses_by_hand():
    """Each term for v = (2, 3), t = (2, 4)."""
    v, t = torch.tensor([[[[2.0, 3.0]]]]), torch.tensor([[[[2.0, 4.0]]]])
    assert float(losses.mape_loss(v, t)) == pytest.approx(0.125)
    assert float(losses.l2_loss(v, t)) == pytest.approx(0.5)
    assert float(losses.gradient_loss(v.expand(1, 1, 2, 2), t.expand(1, 1, 2, 2))) == pytest.approx(1.0)
    assert float(losses.bounds_loss(v, 2.5, 2.75)) == pytest.approx((0.25 + 0.0625) / 2)
    assert float(losses.scale_loss(torch.zeros_like(v), v, t)) == pytest.approx(math.log(2) + 0.5)
    assert float(losses.mape_loss(t, t) + losses.l2_loss(t, t)) == 0


def test_fitted_weights_prefer_the_better_member():
    """Of an exact and a wrong member the exact one gets most of the weight."""
    truth = torch.rand(3, 4, 4) + 2
    assert float(fit_weights(torch.stack([truth, truth + 1]), truth)[0]) > 0.9


def test_conformal_factor_covers():
    """On Laplace errors of a wrong scale the half-widths cover what was asked for, within 0.02."""
    torch.manual_seed(0)
    errors = torch.distributions.Laplace(0.0, 0.3).sample((2000, 4, 4)).abs()
    q = conformal_factor(errors[:1000], torch.ones(1000, 4, 4), 0.9)
    assert float((errors[1000:] <= q).float().mean()) == pytest.approx(0.9, abs=0.02)
    assert 1000 / 1001 * float((errors[:1000] > q).float().mean()) + 1 / 1001 <= 0.1 + 1e-6
