"""The analysis of the latents against a network whose latents are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.run import MachineOptions
from simulgen_vae.latents import LatentConfig, analyze, latent_name, latent_statistics
from simulgen_vae.train import train
from tests.simulgen_vae.cases_vae import config, options, tiny_vae, write_data


def test_statistics_of_the_linear_start():
    """Latents of whitened data have mean 0, variance 1, and the KL of the linear VAE's posterior."""
    vae = tiny_vae(alpha=100.0)
    noise = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    found = latent_statistics(vae, vae.linear.field(noise))
    assert bool(found.active.all())
    torch.testing.assert_close(found.mean, torch.zeros(8).double(), atol=0.06, rtol=0)
    torch.testing.assert_close(found.variance, torch.ones(8).double(), atol=0.08, rtol=0)
    logvar = -torch.log1p(2 * 100.0 * vae.linear.scales.double() ** 2 / 54)
    expected = 0.5 * (1.0 + logvar.exp() - logvar - 1.0)
    torch.testing.assert_close(found.kl, expected, atol=0.05, rtol=0.02)


def test_dead_latents_are_found():
    """A latent without data behind it is inactive."""
    vae = tiny_vae()
    noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    noise[:, 3] = 0.2
    assert (
        latent_statistics(vae, vae.linear.field(noise)).active.tolist() == [True] * 3 + [False] + [True] * 4
    )


def test_names():
    """Latents are named z[i] and h_l[i], the deepest level first."""
    vae = tiny_vae()
    assert [latent_name(vae, k) for k in (0, 3, 4, 7)] == ["z[0]", "z[3]", "h_1[0]", "h_2[1]"]


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The report has a line a latent and three figures; a frame that is not there is refused."""
    monkeypatch.setattr("simulgen_vae.train._contest", lambda *_: None)
    path = write_data(tmp_path / "d.npz")
    train(config(path, lc_epochs=1), options(tmp_path / "run"))
    out = tmp_path / "report"
    settings = LatentConfig(model=str(tmp_path / "run"), traversals=2)
    found = analyze(settings, MachineOptions(device="cpu"), out)
    assert {p.name for p in out.iterdir()} == {"latents.json", "pca.png", "kl.png", "traversals.png"}
    assert json.loads((out / "latents.json").read_text()) == found
    assert len(found["latents"]) == 6 and found["kl_nats"] > 0
    wrong = LatentConfig(model=str(tmp_path / "run"), frame=9)
    with pytest.raises(UserError, match="expected a frame below 9"):
        analyze(wrong, MachineOptions(device="cpu"), out)
